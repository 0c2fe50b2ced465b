"""Settings of the worker reach the cluster's manifests and the mail server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from api.environment import ConfigurationError, load
from api.startup_errors import CannotStart
from worker.registry import open_dependencies
from worker.settings import WorkerSettings

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"

SETTINGS = {
    "BERTH_ENVIRONMENT": "test",
    "BERTH_WORKER_DATABASE_URL": "postgresql://127.0.0.1:9/berth",
    "BERTH_TEMPORAL_ADDRESS": "127.0.0.1:7233",
}


def load_worker_settings(monkeypatch: pytest.MonkeyPatch, **environment: str) -> WorkerSettings:
    for name, value in (SETTINGS | environment).items():
        monkeypatch.setenv(name, value)
    return load(WorkerSettings)


def test_settings_choose_the_cluster_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_worker_settings(
        monkeypatch,
        BERTH_INGRESS_CLASS="traefik",
        BERTH_CLUSTER_ISSUER="internal",
        BERTH_STORAGE_CLASS="fast",
    )
    profile = settings.cluster_profile()
    assert (profile.ingress_class, profile.cluster_issuer, profile.storage_class) == ("traefik", "internal", "fast")
    assert profile.ingress_namespace == "ingress-nginx"


def test_the_mail_servers_password_comes_from_a_file_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("correct horse\n")
    settings = load_worker_settings(
        monkeypatch, BERTH_SMTP_SECURITY="starttls", BERTH_SMTP_USERNAME="berth", BERTH_SMTP_PASSWORD_FILE=str(secret)
    )
    smtp = settings.smtp_settings()
    assert (smtp.security, smtp.username, smtp.password) == ("starttls", "berth", "correct horse")
    assert "correct horse" not in repr(settings)


def test_an_unknown_security_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^BERTH_SMTP_SECURITY must be 'none', 'starttls' or 'tls'\.$"):
        load_worker_settings(monkeypatch, BERTH_SMTP_SECURITY="ssl")


def test_the_sandbox_reports_a_failing_instance_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_worker_settings(monkeypatch).provisioning_failure_threshold_seconds == 600
    monkeypatch.setenv("BERTH_PROVISIONING_FAILURE_THRESHOLD_SECONDS", "5")
    assert load_worker_settings(monkeypatch, BERTH_ENVIRONMENT="sandbox").provisioning_failure_threshold_seconds == 5
    monkeypatch.delenv("BERTH_PROVISIONING_FAILURE_THRESHOLD_SECONDS")
    assert load_worker_settings(monkeypatch, BERTH_ENVIRONMENT="sandbox").provisioning_failure_threshold_seconds == 60


@pytest.mark.parametrize(
    ("sender", "support", "expected"),
    [
        ("Berth <hello@berth.io>", "help@berth.io", "help@berth.io"),
        ("Berth <hello@berth.io>", "", "hello@berth.io"),
        ("Berth <no-reply@berth.io>", "", None),
        ("NoReply@berth.io", "", None),
        ("do-not-reply@berth.io", "", None),
        ("donotreply@berth.io", "", None),
        ("no-reply@berth.io", "help@berth.io", "help@berth.io"),
        ("replies@berth.io", "", "replies@berth.io"),
        ("norepublic@berth.io", "", "norepublic@berth.io"),
    ],
)
def test_customers_are_not_asked_to_write_to_a_no_reply_address(
    monkeypatch: pytest.MonkeyPatch, sender: str, support: str, expected: str | None
) -> None:
    settings = load_worker_settings(monkeypatch, BERTH_MAIL_FROM=sender, BERTH_SUPPORT_EMAIL=support)
    assert settings.support_address() == expected


@pytest.mark.parametrize("lacking", ["email/layout.html", "email/layout.txt", "services/_base/_probe.yaml.j2"])
def test_a_folder_that_lacks_templates_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str
) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    assert load_worker_settings(monkeypatch, BERTH_TEMPLATE_DIRECTORY=str(templates)).template_directory == templates
    (templates / lacking).unlink()
    with pytest.raises(ConfigurationError, match=f"^BERTH_TEMPLATE_DIRECTORY is {templates}, which lacks {lacking}"):
        load_worker_settings(monkeypatch, BERTH_TEMPLATE_DIRECTORY=str(templates))


@pytest.mark.parametrize("content", ["slug: [", "slug: other\nversion: 1\nversions: {}", "- a list"])
async def test_a_malformed_service_template_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    (templates / "services" / "other").mkdir()
    (templates / "services" / "other" / "service.yaml").write_text(content)
    settings = load_worker_settings(monkeypatch, BERTH_TEMPLATE_DIRECTORY=str(templates))
    with pytest.raises(CannotStart) as refused:
        async with open_dependencies(settings):
            pass
    assert str(refused.value).startswith("a service template of BERTH_TEMPLATE_DIRECTORY cannot be used: ")
    assert "other/service.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)
