"""What a deployment beyond one machine tells the worker reaches the cluster's manifests and the mail server."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.settings import WorkerSettings

NEEDED = {"BERTH_WORKER_DATABASE_URL": "postgresql://nowhere/berth", "BERTH_TEMPORAL_ADDRESS": "127.0.0.1:7233"}


def told(monkeypatch: pytest.MonkeyPatch, **environment: str) -> WorkerSettings:
    for name, value in (NEEDED | environment).items():
        monkeypatch.setenv(name, value)
    return WorkerSettings()


def test_the_clusters_ways_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = told(
        monkeypatch,
        BERTH_INGRESS_CLASS="traefik",
        BERTH_CLUSTER_ISSUER="internal",
        BERTH_STORAGE_CLASS="fast",
        BERTH_PROBE_CIDRS="10.1.0.0/24, 10.2.0.0/24",
    )
    platform = settings.platform()
    assert (platform.ingress_class, platform.cluster_issuer, platform.storage_class) == ("traefik", "internal", "fast")
    assert platform.probe_cidrs == ("10.1.0.0/24", "10.2.0.0/24")
    assert platform.ingress_namespace == "ingress-nginx"


def test_the_mail_servers_password_comes_from_a_file_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("correct horse\n")
    settings = told(
        monkeypatch, BERTH_SMTP_SECURITY="starttls", BERTH_SMTP_USERNAME="berth", BERTH_SMTP_PASSWORD_FILE=str(secret)
    )
    smtp = settings.smtp()
    assert (smtp.security, smtp.username, smtp.password) == ("starttls", "berth", "correct horse")
    assert "correct horse" not in repr(settings)


def test_an_unknown_security_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="smtp_security"):
        told(monkeypatch, BERTH_SMTP_SECURITY="ssl")


def test_the_sandbox_gives_up_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, BERTH_ENVIRONMENT="sandbox").provisioning_patience_seconds == 60
    assert told(monkeypatch, BERTH_ENVIRONMENT="production").provisioning_patience_seconds == 600
