"""Every malformed setting is one fault in words: choices, numbers, durations, addresses."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.environment import EnvironmentSettings, check_environment, load
from api.ratelimit import RateLimiter
from api.settings import ApiSettings, load_settings
from deploy.local.data_directory import Home
from deploy.local.settings_check import require_valid_settings
from deploy.local.stack import ConfigurationError, Stack
from tests.local.test_production_settings import COMPLETE
from worker.settings import WorkerSettings

RANDOM = "9f3c07d5b1e8426a"
NOT_RANDOM = "so that it can be guessed. Set "
DATABASE = "postgresql+psycopg://berth:secret@127.0.0.1:9/berth"


def fault_of(settings: type[EnvironmentSettings], **changed: str) -> str:
    """Return the only fault of production settings that are complete but for ``changed``."""
    complete = COMPLETE["api" if settings is ApiSettings else "worker"]
    (fault,) = check_environment(settings, complete | changed)
    return fault


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BERTH_RATE_LIMIT", "maybe", "must be 'on' or 'off'."),
        ("BERTH_LOG_LEVEL", "loud", "must be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'."),
        ("BERTH_LOG_FORMAT", "xml", "must be 'json' or 'text'."),
        ("BERTH_PORT", "65536", "must be less than or equal to 65535."),
        ("BERTH_ACCESS_TOKEN_SECONDS", "0", "must be greater than 0."),
        ("BERTH_REQUEST_TIMEOUT_SECONDS", "-1.5", "must be greater than 0."),
        ("BERTH_REQUEST_TIMEOUT_SECONDS", "inf", "must be a finite number."),
        ("BERTH_MAX_BODY_BYTES", "1 MB", "must be a valid integer."),
        ("BERTH_CORS_ORIGINS", "https://a.example, portal", "has an entry that is no origin: 'portal'."),
        ("BERTH_CORS_ORIGINS", "https://a.example/path", "has an entry that is no origin: 'https://a.example/path'."),
        ("BERTH_CORS_ORIGINS", "https://user@a.example", "has an entry that is no origin: 'https://user@a.example'."),
        ("BERTH_CORS_ORIGINS", "https://a.example:port", "has an entry that is no origin: 'https://a.example:port'."),
        ("BERTH_CORS_ORIGINS", "null", "has an entry that is no origin: 'null'."),
        ("BERTH_TRUSTED_PROXIES", "*", "has an entry that is no network: '*'."),
        ("BERTH_TRUSTED_PROXIES", "10.0.0.1, proxy", "has an entry that is no network: 'proxy'."),
        ("BERTH_TRUSTED_PROXIES", "10.0.0.1, ::/0", "names more than the proxy: clients"),
        ("BERTH_TRUSTED_PROXIES", "0.0.0.0/1", "names more than the proxy: clients"),
        ("BERTH_TRUSTED_PROXIES", "10.0.0.0/7", "names more than the proxy: clients"),
        ("BERTH_TRUSTED_PROXIES", "2000::/15", "names more than the proxy: clients"),
        ("BERTH_JWT_SECRET", "a" * 32, "repeats a few characters"),
        ("BERTH_JWT_SECRET", f"2:{RANDOM * 2},1:{'abcd' * 8}", "repeats a few characters"),
        ("BERTH_JWT_SECRET", f"{RANDOM}{RANDOM[::-1]},{RANDOM[::-1]}{RANDOM}", "repeats an id (without one it is 1)"),
        (
            "BERTH_JWT_SECRET",
            f"a:{RANDOM}{RANDOM[::-1]},a:{RANDOM[::-1]}{RANDOM}",
            "repeats an id (without one it is 1)",
        ),
        ("BERTH_ENCRYPTION_KEY", b64encode(b"a" * 32).decode(), "repeats a few characters"),
        (
            "BERTH_ENCRYPTION_KEY",
            f"2:{b64encode((RANDOM * 2).encode()).decode()},1:{b64encode(b'a' * 32).decode()}",
            "repeats a few characters",
        ),
        ("BERTH_STRIPE_WEBHOOK_SECRET", "whsec_" + "a" * 32, "repeats a few characters"),
        ("BERTH_RAZORPAY_WEBHOOK_SECRET", "a" * 32, "repeats a few characters"),
        ("BERTH_MIDTRANS_SERVER_KEY", "a" * 32, "repeats a few characters"),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://:ab/cd==@redis.company.com:6379/0", "is not an address of Redis."),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://:ab#cd@redis.company.com", "is not an address of Redis."),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://:a[b]c@redis.company.com", "is not an address of Redis."),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://:a\u2100c@redis.company.com", "is not an address of Redis."),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://redis.company.com:six", "is not an address of Redis."),
        ("BERTH_RATE_LIMIT_STORAGE", "redis://:secret@redis.company.com", "would send its password to redis.company"),
        ("BERTH_RATE_LIMIT_STORAGE", "async+redis://berth:secret@10.1.2.3:6379/0", "would send its password to 10.1."),
        ("BERTH_RATE_LIMIT_STORAGE", "redis://10.1.2.3?password=secret", "would send its password to 10.1.2.3 in"),
        (
            "BERTH_RATE_LIMIT_STORAGE",
            "redis+cluster://:secret@[::1]:1,b.company.com:2",
            "would send its password to b.",
        ),
        ("BERTH_PUBLIC_URL", "https://berth.io:port", "is not a web address."),
        ("BERTH_API_DATABASE_URL", "mysql://berth:secret@host/berth", "is not an address of PostgreSQL."),
        ("BERTH_API_DATABASE_URL", f"{DATABASE}?wrong=secret", "is not an address of PostgreSQL."),
        ("BERTH_API_DATABASE_URL", DATABASE.replace(":9", ":nine"), "is not an address of PostgreSQL."),
        ("BERTH_TEMPORAL_ADDRESS", "temporal", "is not a host and a port."),
        ("BERTH_TEMPORAL_ADDRESS", "http://temporal:7233", "is not a host and a port."),
    ],
)
def test_a_malformed_setting_of_the_api_is_one_fault(name: str, value: str, expected: str) -> None:
    fault = fault_of(ApiSettings, **{name: value})
    assert fault.startswith(f"{name} {expected}")
    assert "secret" not in fault


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BERTH_STRIPE_URL", "stripe", "is not a web address."),
        ("BERTH_SMTP_PORT", "0", "must be greater than or equal to 1."),
        ("BERTH_METRICS_PORT", "many", "must be a valid integer."),
        ("BERTH_MAX_CONCURRENT_ACTIVITIES", "0", "must be greater than 0."),
        ("BERTH_PROVISIONING_FAILURE_THRESHOLD_SECONDS", "nan", "must be"),
        ("BERTH_BASE_DOMAIN", "https://apps.berth.io", "is not a domain name."),
        ("BERTH_MAIL_FROM", "Berth", "is not a mail address."),
        ("BERTH_MAIL_FROM", "Berth <berth>", "is not a mail address."),
        ("BERTH_MAIL_FROM", "berth@mailhost", "is berth@mailhost, a placeholder: no mail reaches mailhost."),
        ("BERTH_MAIL_FROM", "Berth <berth@mail.example.com>", "is Berth <berth@mail.example.com>, a placeholder:"),
        ("BERTH_SUPPORT_EMAIL", "help@berth.TEST.", "is help@berth.TEST., a placeholder:"),
        ("BERTH_SUPPORT_EMAIL", "Help <help@berth.io>", "is not a mail address."),
    ],
)
def test_a_malformed_setting_of_the_worker_is_one_fault(name: str, value: str, expected: str) -> None:
    assert fault_of(WorkerSettings, **{name: value}).startswith(f"{name} {expected}")


@pytest.mark.parametrize(
    ("settings", "name", "value", "expected"),
    [
        (WorkerSettings, "BERTH_STRIPE_API_KEY", "rk_test_0123456789", "is a key of Stripe's test mode"),
        (WorkerSettings, "BERTH_STRIPE_API_KEY", "pk_live_0123456789", "is not a secret key of Stripe"),
        (WorkerSettings, "BERTH_STRIPE_URL", "http://127.0.0.1:9", "is http://127.0.0.1:9: keys and payments would"),
        (WorkerSettings, "BERTH_STRIPE_URL", "https://localhost:9/", "is https://localhost:9, a stand-in"),
        (ApiSettings, "BERTH_STRIPE_WEBHOOK_SECRET", "0123456789abcdef", "is not a signing secret of Stripe"),
        (ApiSettings, "BERTH_MIDTRANS_SERVER_KEY", "Mid-server", "is too short: webhooks could be forged"),
        (ApiSettings, "BERTH_RAZORPAY_WEBHOOK_SECRET", "secret", "is too short: webhooks could be forged"),
    ],
)
def test_production_refuses_stand_ins_and_test_modes_of_gateways(
    settings: type[EnvironmentSettings], name: str, value: str, expected: str
) -> None:
    fault = fault_of(settings, **{name: value})
    assert fault.startswith(f"{name} {expected}")
    assert name.endswith("URL") or value not in fault


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_production_speaks_to_a_distant_database_over_tls(settings: type[EnvironmentSettings]) -> None:
    program = "api" if settings is ApiSettings else "worker"
    name, user = f"BERTH_{program.upper()}_DATABASE_URL", f"postgresql+psycopg://berth_{program}:hunter2"
    for clear in ("", "?sslmode=prefer", "?sslmode=disable"):
        fault = fault_of(settings, **{name: f"{user}@db.company.com/berth{clear}"})
        assert fault.startswith(f"{name} does not require TLS: customers' data would travel to db.company.com")
        assert "hunter2" not in fault
    # One distant address among several is enough, and libpq connects to `hostaddr`, whatever `host` says.
    for address, distant in (
        ("@/berth?host=/var/run/postgresql,db.company.com", "db.company.com"),
        ("@localhost/berth?hostaddr=10.1.2.3", "10.1.2.3"),
    ):
        fault = fault_of(settings, **{name: user + address})
        assert fault.startswith(f"{name} does not require TLS: customers' data would travel to {distant} in")
    for secure in (
        "@db.company.com/berth?sslmode=verify-full", "@db.company.com:5432/berth?sslmode=require",
        "@127.0.0.1/berth", "@localhost/berth", "@/berth?host=/var/run/postgresql", "@/berth",
    ):  # fmt: skip
        assert check_environment(settings, COMPLETE[program] | {name: user + secure}) == []


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
    fault = fault_of(settings, **distant, BERTH_TEMPORAL_TLS="on", BERTH_TEMPORAL_CERTIFICATE="pem")
    assert fault.startswith("BERTH_TEMPORAL_TLS needs both BERTH_TEMPORAL_CERTIFICATE and BERTH_TEMPORAL_KEY")
    fault = fault_of(settings, BERTH_TEMPORAL_CERTIFICATE="pem")
    assert fault.startswith("BERTH_TEMPORAL_TLS needs both BERTH_TEMPORAL_CERTIFICATE and BERTH_TEMPORAL_KEY")
    pair = {"BERTH_TEMPORAL_CERTIFICATE": "pem", "BERTH_TEMPORAL_KEY": "pem"}
    assert fault_of(settings, **pair).startswith("BERTH_TEMPORAL_TLS is off, so that BERTH_TEMPORAL_CERTIFICATE")
    authority = {"BERTH_TEMPORAL_CA": "pem"}
    fault = fault_of(settings, **authority)
    assert fault.startswith(
        "BERTH_TEMPORAL_TLS is off, so that the server would not be verified with BERTH_TEMPORAL_CA."
    )
    for secured in ({"BERTH_TEMPORAL_TLS": "on"}, {"BERTH_TEMPORAL_API_KEY": "key"}):
        assert check_environment(settings, complete | pair | authority | secured) == []
    (tmp_path / "ca.pem").write_text("authority\n")
    monkeypatch.setenv("BERTH_TEMPORAL_CA_FILE", str(tmp_path / "ca.pem"))
    values = {name.removeprefix("BERTH_").lower(): value for name, value in complete.items()}
    loaded = load(settings, **values, temporal_tls="on", temporal_api_key="key")
    assert isinstance(loaded, ApiSettings | WorkerSettings)
    temporal = loaded.temporal if isinstance(loaded, ApiSettings) else loaded.temporal_settings()
    assert (temporal.tls, temporal.ca, temporal.api_key) == (True, "authority", "key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BERTH_TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::/32, fd00::/16"),
        ("BERTH_RATE_LIMIT_STORAGE", "redis://:secret@127.0.0.1:6379"),
        ("BERTH_RATE_LIMIT_STORAGE", "redis://redis.company.com"),
        ("BERTH_RATE_LIMIT_STORAGE", "rediss://:secret@redis.company.com"),
        ("BERTH_RATE_LIMIT_STORAGE", "redis+unix://:secret@/run/redis.sock"),
    ],
)
def test_a_safe_value_of_the_api_is_no_fault(name: str, value: str) -> None:
    assert check_environment(ApiSettings, COMPLETE["api"] | {name: value}) == []


def test_a_constant_encryption_key_of_the_worker_is_a_fault() -> None:
    fault = fault_of(WorkerSettings, BERTH_ENCRYPTION_KEY=b64encode(b"a" * 32).decode())
    assert fault.startswith("BERTH_ENCRYPTION_KEY repeats a few characters")


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        ("abcde" * 7, "repeats a few characters"),
        # Cut off in the last repetition.
        ("correct-horse-1" * 3 + "corr", "repeats a few characters"),
        ("changeme" * 4, "repeats a few characters"),
        ("0123456789abcdef" * 2, "is a sequence of neighbouring characters"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ123456", "is a sequence of neighbouring characters"),
        ("9876543210zyxwvutsrqponmlkjihgfed", "is a sequence of neighbouring characters"),
        ("changeme-" + RANDOM * 2, "contains a placeholder"),
        ("Please-Change-Me-Before-You-Go-Live", "contains a placeholder"),
        ("replace_me_" + RANDOM * 2, "contains a placeholder"),
        ("MY.SECRET." + RANDOM * 2, "contains a placeholder"),
        (RANDOM * 2 + "Password", "contains a placeholder"),
        ("example-key-of-the-documentation-01", "contains a placeholder"),
        ("please change me before it goes live", "contains a placeholder"),
    ],
)
def test_production_refuses_a_secret_that_can_be_guessed(secret: str, fault: str) -> None:
    remedy = f"{NOT_RANDOM}a random one, such as `openssl rand -base64 32` prints."
    for name in ("BERTH_JWT_SECRET", "BERTH_RAZORPAY_WEBHOOK_SECRET"):
        assert fault_of(ApiSettings, **{name: secret}) == f"{name} {fault}, {remedy}"
    encoded = b64encode(secret.encode()[:32]).decode()
    for settings in (ApiSettings, WorkerSettings):
        if not fault.startswith("contains"):
            assert fault_of(settings, BERTH_ENCRYPTION_KEY=encoded) == f"BERTH_ENCRYPTION_KEY {fault}, {remedy}"
    stripe = fault_of(ApiSettings, BERTH_STRIPE_WEBHOOK_SECRET=f"whsec_{secret}")
    assert stripe == f"BERTH_STRIPE_WEBHOOK_SECRET {fault}, {NOT_RANDOM}the one that Stripe shows."
    sandbox = COMPLETE["api"] | {"BERTH_ENVIRONMENT": "sandbox", "BERTH_JWT_SECRET": secret}
    assert check_environment(ApiSettings, sandbox) == []


def test_the_prefix_of_a_key_of_midtrans_makes_it_no_harder_to_guess() -> None:
    for prefix in ("Mid-server-", ""):
        fault = fault_of(ApiSettings, BERTH_MIDTRANS_SERVER_KEY=prefix + "x" * 24)
        assert fault.startswith("BERTH_MIDTRANS_SERVER_KEY repeats a few characters")
    fault = fault_of(ApiSettings, BERTH_MIDTRANS_SERVER_KEY="Mid-server-9f3c07")
    assert fault.startswith("BERTH_MIDTRANS_SERVER_KEY is too short")


@given(st.binary(min_size=32, max_size=32))
def test_a_random_secret_is_accepted(random_bytes: bytes) -> None:
    assume(len(set(random_bytes)) > 8)
    secret = b64encode(random_bytes).decode()
    assert check_environment(ApiSettings, COMPLETE["api"] | {"BERTH_JWT_SECRET": secret}) == []


def test_staging_may_use_the_test_modes_of_gateways_but_no_clear_text() -> None:
    api = COMPLETE["api"] | {
        "BERTH_ENVIRONMENT": "staging",
        "BERTH_MIDTRANS_SERVER_KEY": "SB-Mid-server-9f3c07d5b1e8426a",
    }
    worker = COMPLETE["worker"] | {"BERTH_ENVIRONMENT": "staging", "BERTH_STRIPE_API_KEY": "sk_test_0123456789"}
    assert check_environment(ApiSettings, api) == []
    assert check_environment(WorkerSettings, worker) == []
    (fault,) = check_environment(WorkerSettings, worker | {"BERTH_STRIPE_URL": "http://stripe.invalid"})
    assert fault.startswith("BERTH_STRIPE_URL is http://stripe.invalid: keys and payments")
    (fault,) = check_environment(WorkerSettings, worker | {"BERTH_STRIPE_API_KEY": "pk_test_0123456789"})
    assert fault.startswith("BERTH_STRIPE_API_KEY is not a secret key of Stripe")


@pytest.mark.parametrize("key", ["sk_live_0123456789", "rk_live_0123456789"])
def test_production_accepts_secret_and_restricted_keys_of_the_live_mode(key: str) -> None:
    complete = COMPLETE["worker"] | {"BERTH_STRIPE_API_KEY": key, "BERTH_STRIPE_URL": ""}
    assert check_environment(WorkerSettings, complete) == []
    others = {"BERTH_MIDTRANS_SERVER_KEY": "Mid-server-9f3c07d5b1e8426a", "BERTH_RAZORPAY_WEBHOOK_SECRET": RANDOM}
    assert check_environment(ApiSettings, COMPLETE["api"] | others) == []


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


def test_a_sandbox_sends_from_a_reserved_domain() -> None:
    sandbox = COMPLETE["worker"] | {"BERTH_ENVIRONMENT": "sandbox", "BERTH_MAIL_FROM": "berth@berth.example"}
    assert check_environment(WorkerSettings, sandbox) == []


@pytest.mark.parametrize(
    ("value", "level"), [("debug", "DEBUG"), ("warn", "WARNING"), ("Warning", "WARNING"), ("fatal", "CRITICAL")]
)
def test_levels_have_the_names_that_loggers_accept(value: str, level: str) -> None:
    assert check_environment(WorkerSettings, COMPLETE["worker"] | {"BERTH_LOG_LEVEL": value}) == []
    assert api_settings(log_level=value).log_level == level


def api_settings(**changed: str) -> ApiSettings:
    return load_settings(
        environment="test", api_database_url=DATABASE, jwt_secret="x" * 32, temporal_address="127.0.0.1:9", **changed
    )


def test_origins_of_applications_are_accepted_as_they_are_sent() -> None:
    origins = api_settings(
        cors_origins="capacitor://localhost, https://Portal.example/, http://[::1]:8100"
    ).cors_origins
    assert origins == ("capacitor://localhost", "https://portal.example", "http://[::1]:8100")
    assert api_settings(cors_origins="*").cors_origins == ("*",)


@pytest.mark.parametrize("storage", ["redis+unix:///run/redis/redis.sock?db=1", "async+redis+unix:///run/redis.sock"])
def test_rate_limits_are_stored_in_a_redis_behind_a_socket(storage: str) -> None:
    assert check_environment(ApiSettings, COMPLETE["api"] | {"BERTH_RATE_LIMIT_STORAGE": storage}) == []
    RateLimiter(storage)


def test_proxies_are_networks_as_uvicorn_reads_them() -> None:
    proxies = api_settings(trusted_proxies="10.0.0.5, 10.1.2.3/8, fd00::1").trusted_proxies
    assert proxies == ("10.0.0.5/32", "10.0.0.0/8", "fd00::1/128")
    trusted = ProxyHeadersMiddleware(lambda *_: None, list(proxies)).trusted_hosts  # type: ignore[arg-type]
    assert trusted.get_trusted_client_address("203.0.113.9, 10.200.0.1") == ("203.0.113.9", 0)


def test_a_base_domain_may_have_one_label() -> None:
    for settings, complete in ((ApiSettings, COMPLETE["api"]), (WorkerSettings, COMPLETE["worker"])):
        assert check_environment(settings, complete | {"BERTH_BASE_DOMAIN": "lan"}) == []
        sandbox = complete | {"BERTH_ENVIRONMENT": "sandbox", "BERTH_BASE_DOMAIN": "localhost"}
        assert check_environment(settings, sandbox) == []
    fault = fault_of(ApiSettings, BERTH_BASE_DOMAIN="localhost")
    assert fault.startswith("BERTH_BASE_DOMAIN is localhost, which only this machine reaches.")


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://berth.lan", "lan"),
        ("https://Portal.Apps.berth.io:8443/", "apps.Berth.io"),
        ("https://a.b.io.", "b.io"),
    ],
)
def test_no_instance_can_get_the_name_of_the_api(url: str, domain: str) -> None:
    fault = fault_of(ApiSettings, BERTH_PUBLIC_URL=url, BERTH_BASE_DOMAIN=domain)
    assert fault.startswith("BERTH_BASE_DOMAIN gives customers' instances names beside ")


def test_a_name_that_no_instance_can_get_is_accepted_below_the_domain() -> None:
    for url in ("https://lan", "https://a.b.lan", "https://berth.example"):
        settings = {"BERTH_PUBLIC_URL": url, "BERTH_BASE_DOMAIN": "lan"}
        assert check_environment(ApiSettings, COMPLETE["api"] | settings) == []


def local_stack(folder: Path, **environ: str) -> Stack:
    home = Home(folder)
    home.create()
    return Stack(home, environ)


def test_the_local_stack_refuses_what_its_processes_would_refuse(tmp_path: Path) -> None:
    require_valid_settings(local_stack(tmp_path))
    stack = local_stack(tmp_path, BERTH_RATE_LIMIT="maybe", BERTH_LOG_FORMAT="xml", BERTH_SMTP_SECURITY="ssl")
    with pytest.raises(ConfigurationError) as refused:
        require_valid_settings(stack)
    assert str(refused.value).splitlines() == [
        "BERTH_RATE_LIMIT must be 'on' or 'off'.",
        "BERTH_LOG_FORMAT must be 'json' or 'text'.",
        "BERTH_SMTP_SECURITY must be 'none', 'starttls' or 'tls'.",
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("BERTH_DEMO", "off"), ("BERTH_CLUSTER", "minikube"), ("BERTH_PORT", "99999")]
)
def test_the_local_stack_names_a_setting_of_its_own_that_is_malformed(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is '{value}'; set "):
        local_stack(tmp_path, **{name: value})
