"""Addresses of PostgreSQL and Temporal: readable, and over TLS to another machine where customers are real."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.environment import EnvironmentSettings, check_environment, load
from api.settings import ApiSettings
from tests.local.test_production_settings import COMPLETE
from tests.local.test_setting_rules import fault_of
from tests.support.certificates import create_identity
from worker.settings import WorkerSettings


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_production_speaks_to_a_distant_database_over_tls(
    settings: type[EnvironmentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "api" if settings is ApiSettings else "worker"
    name, user = f"BERTH_{program.upper()}_DATABASE_URL", f"postgresql+psycopg://berth_{program}:hunter2"
    for clear in ("", "?sslmode=prefer", "?sslmode=disable"):
        fault = fault_of(settings, **{name: f"{user}@db.company.com/berth{clear}"})
        assert fault.startswith(f"{name} does not require TLS: customers' data would travel to db.company.com")
        assert "hunter2" not in fault
    # One distant address among several is enough, and libpq connects to `hostaddr`, whatever `host` says.
    for address, distant in (
        ("@/berth?host=/var/run/postgresql,db.company.com", "db.company.com"),
        ("@/berth?host=db.company.com&host=localhost", "db.company.com"),
        ("@/berth?host=localhost:5432&host=db.company.com:5433&sslmode=prefer", "db.company.com"),
        ("@localhost/berth?host=db.company.com", "db.company.com"),
        ("@localhost/berth?hostaddr=10.1.2.3", "10.1.2.3"),
        ("@/berth?host=localhost,db.company.com&hostaddr=127.0.0.1,", "db.company.com"),
        ("@/berth?host=localhost,localhost&hostaddr=,10.1.2.3", "10.1.2.3"),
        ("@/berth?service=production", "the host of a connection service"),
    ):
        fault = fault_of(settings, **{name: user + address})
        assert fault.startswith(f"{name} does not require TLS: customers' data would travel to {distant} in")
    for secure in (
        "@db.company.com/berth?sslmode=verify-full", "@db.company.com:5432/berth?sslmode=require",
        "@127.0.0.1/berth", "@localhost/berth", "@/berth?host=/var/run/postgresql", "@/berth",
        "@/berth?host=a.company.com&host=b.company.com&sslmode=require", "@/berth?host=localhost:1&host=127.0.0.1:2",
        "@/berth?host=localhost,::1", "@db.company.com/berth?hostaddr=127.0.0.1", "@/berth?service=a&sslmode=require",
    ):  # fmt: skip
        assert check_environment(settings, COMPLETE[program] | {name: user + secure}) == []
    for repeated in ("?sslmode=disable&sslmode=require", "?hostaddr=127.0.0.1&hostaddr=10.1.2.3"):
        fault = fault_of(settings, **{name: f"{user}@db.company.com/berth{repeated}"})
        assert fault.startswith(f"{name} is not an address of PostgreSQL.")
    # libpq takes from the environment what the address does not say.
    monkeypatch.setenv("PGHOST", "db.company.com")
    fault = fault_of(settings, **{name: f"{user}@/berth"})
    assert fault.startswith(f"{name} does not require TLS: customers' data would travel to db.company.com in")


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_production_speaks_to_a_distant_temporal_server_over_tls(
    settings: type[EnvironmentSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distant = {"BERTH_TEMPORAL_ADDRESS": "temporal.company.com:7233"}
    fault = fault_of(settings, **distant)
    assert fault.startswith("BERTH_TEMPORAL_TLS is off: commands to temporal.company.com would travel without")
    complete = COMPLETE["api" if settings is ApiSettings else "worker"] | distant
    for secured in ({"BERTH_TEMPORAL_TLS": "on"}, {"BERTH_TEMPORAL_API_KEY": "key"}):
        assert check_environment(settings, complete | secured) == []
    for near in ("127.0.0.1:7233", "[::1]:7233", "localhost:7233"):
        assert check_environment(settings, complete | {"BERTH_TEMPORAL_ADDRESS": near}) == []
    identity = create_identity()
    fault = fault_of(settings, **distant, BERTH_TEMPORAL_TLS="on", BERTH_TEMPORAL_CERTIFICATE=identity.certificate)
    assert fault.startswith("BERTH_TEMPORAL_TLS needs both BERTH_TEMPORAL_CERTIFICATE and BERTH_TEMPORAL_KEY")
    fault = fault_of(settings, BERTH_TEMPORAL_CERTIFICATE=identity.certificate)
    assert fault.startswith("BERTH_TEMPORAL_TLS needs both BERTH_TEMPORAL_CERTIFICATE and BERTH_TEMPORAL_KEY")
    pair = {"BERTH_TEMPORAL_CERTIFICATE": identity.certificate, "BERTH_TEMPORAL_KEY": identity.key}
    assert fault_of(settings, **pair).startswith("BERTH_TEMPORAL_TLS is off, so that BERTH_TEMPORAL_CERTIFICATE")
    authority = {"BERTH_TEMPORAL_CA": identity.certificate}
    fault = fault_of(settings, **authority)
    assert fault.startswith(
        "BERTH_TEMPORAL_TLS is off, so that the server would not be verified with BERTH_TEMPORAL_CA."
    )
    for secured in ({"BERTH_TEMPORAL_TLS": "on"}, {"BERTH_TEMPORAL_API_KEY": "key"}):
        assert check_environment(settings, complete | pair | authority | secured) == []
    (tmp_path / "ca.pem").write_text(identity.certificate)
    monkeypatch.setenv("BERTH_TEMPORAL_CA_FILE", str(tmp_path / "ca.pem"))
    values = {name.removeprefix("BERTH_").lower(): value for name, value in complete.items()}
    loaded = load(settings, **values, temporal_tls="on", temporal_api_key="key")
    assert isinstance(loaded, ApiSettings | WorkerSettings)
    temporal = loaded.temporal if isinstance(loaded, ApiSettings) else loaded.temporal_settings()
    assert (temporal.tls, temporal.ca, temporal.api_key) == (True, identity.certificate.rstrip(), "key")


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_a_certificate_or_key_that_cannot_be_read_is_named(settings: type[EnvironmentSettings]) -> None:
    identity, other = create_identity(), create_identity()
    pair = {"BERTH_TEMPORAL_CERTIFICATE": identity.certificate, "BERTH_TEMPORAL_KEY": identity.key}
    damaged = identity.certificate.replace("\nMII", "\nMIX", 1)
    for content in ("hunter2", identity.key, damaged, identity.certificate[:-40]):
        fault = fault_of(settings, BERTH_TEMPORAL_TLS="on", BERTH_TEMPORAL_CA=content)
        assert fault.startswith("BERTH_TEMPORAL_CA is no certificate in PEM.")
        fault = fault_of(settings, **pair | {"BERTH_TEMPORAL_TLS": "on", "BERTH_TEMPORAL_CERTIFICATE": content})
        assert fault.startswith("BERTH_TEMPORAL_CERTIFICATE is no certificate in PEM.")
        assert "hunter2" not in fault
    for content in ("hunter2", identity.certificate, identity.key[:-60]):
        fault = fault_of(settings, **pair | {"BERTH_TEMPORAL_TLS": "on", "BERTH_TEMPORAL_KEY": content})
        assert fault.startswith("BERTH_TEMPORAL_KEY is no private key in PEM")
        assert "hunter2" not in fault
    fault = fault_of(settings, **pair | {"BERTH_TEMPORAL_TLS": "on", "BERTH_TEMPORAL_KEY": other.key})
    assert fault.startswith("BERTH_TEMPORAL_KEY is not the key of BERTH_TEMPORAL_CERTIFICATE.")
    complete = COMPLETE["api" if settings is ApiSettings else "worker"] | pair | {"BERTH_TEMPORAL_TLS": "on"}
    for chain in (identity.certificate, identity.certificate + other.certificate):
        accepted = {"BERTH_TEMPORAL_CA": chain, "BERTH_TEMPORAL_CERTIFICATE": chain}
        assert check_environment(settings, complete | accepted) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://berth_api:p#ss?word@db:5432/berth?sslmode=require",
        "postgresql+psycopg://berth_api:p%2Fss%40w%25@db/berth?sslmode=verify-full",
        "postgresql://berth_api:secret@[fd00::1]:5432/berth?sslmode=verify-ca",
        "postgresql+psycopg://berth_api@/berth?host=/var/run/postgresql",
    ],
)
def test_addresses_of_the_database_that_the_processes_use_are_accepted(url: str) -> None:
    assert check_environment(ApiSettings, COMPLETE["api"] | {"BERTH_API_DATABASE_URL": url}) == []
    assert check_environment(WorkerSettings, COMPLETE["worker"] | {"BERTH_WORKER_DATABASE_URL": url}) == []


def test_a_password_that_must_be_escaped_is_said() -> None:
    fault = fault_of(ApiSettings, BERTH_API_DATABASE_URL="postgresql+psycopg://berth:se/cret@db/berth")
    assert fault.endswith("in a password write / as %2F, @ as %40 and % as %25.")
