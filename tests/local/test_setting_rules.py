"""Every malformed setting is one fault in words: choices, numbers, durations, addresses."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.environment import EnvironmentSettings, check_environment
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
        ("BERTH_JWT_SECRET", f"2:{RANDOM}{RANDOM[::-1]},1:{'abcd' * 8}", "repeats a few characters"),
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
        ("BERTH_PUBLIC_URL", "https://user:pw@berth.io", "has a user, a query or a fragment, and links"),
        ("BERTH_PUBLIC_URL", "https://@berth.io", "has a user, a query or a fragment, and links"),
        ("BERTH_PUBLIC_URL", "https://berth.io/portal?x=1", "has a user, a query or a fragment, and links"),
        ("BERTH_PUBLIC_URL", "https://berth.io?", "has a user, a query or a fragment, and links"),
        ("BERTH_PUBLIC_URL", "https://berth.io/#portal", "has a user, a query or a fragment, and links"),
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
        ("BERTH_MAIL_FROM", "a@berth.io, b@berth.io", "is not a mail address."),
        ("BERTH_MAIL_FROM", "a@berth.io; b@berth.io", "is not a mail address."),
        ("BERTH_MAIL_FROM", "a@berth.io,", "is not a mail address."),
        ("BERTH_MAIL_FROM", "Berth: a@berth.io;", "is not a mail address."),
        ("BERTH_MAIL_FROM", "Berth, Inc. <a@berth.io>", "is not a mail address."),
        ("BERTH_SUPPORT_EMAIL", "a@berth.io,b@berth.io", "is not a mail address."),
        ("BERTH_SMTP_HOST", "", "is not set: no mail could be sent."),
        ("BERTH_SMTP_HOST", "smtp://smtp.berth.io:587", "is not a host."),
        ("BERTH_SMTP_HOST", "smtp.berth.io:587", "is not a host."),
        ("BERTH_STRIPE_API_KEY", "sk_live_", "is not a whole secret key of Stripe"),
        ("BERTH_STRIPE_API_KEY", "sk_live_...", "is not a whole secret key of Stripe"),
        ("BERTH_STRIPE_API_KEY", "rk_live_<the key of the dashboard>", "is not a whole secret key of Stripe"),
        ("BERTH_STRIPE_API_KEY", "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx", "repeats a few characters"),
        ("BERTH_MAIL_FROM", "berth@mailhost", "is berth@mailhost, a placeholder: no mail reaches mailhost."),
        ("BERTH_MAIL_FROM", "Berth <berth@mail.example.com>", "is Berth <berth@mail.example.com>, a placeholder:"),
        ("BERTH_SUPPORT_EMAIL", "help@berth.TEST.", "is help@berth.TEST., a placeholder:"),
        ("BERTH_SUPPORT_EMAIL", "Help <help@berth.io>", "is not a mail address."),
    ],
)
def test_a_malformed_setting_of_the_worker_is_one_fault(name: str, value: str, expected: str) -> None:
    assert fault_of(WorkerSettings, **{name: value}).startswith(f"{name} {expected}")


@pytest.mark.parametrize(
    ("host", "is_open"),
    [
        ("0.0.0.0", True), ("::", True), ("[::]", True), ("::ffff:0.0.0.0", True), ("8.8.8.8", True),  # noqa: S104
        ("0", True), ("0x0", True), ("134744072", True), ("127.1", False),
        ("127.0.0.1", False), ("10.1.2.3", False), ("fd00::1", False), ("worker-1.internal", False),
    ],
)  # fmt: skip
def test_production_refuses_open_metrics_of_the_worker(host: str, is_open: bool) -> None:
    served = {"BERTH_METRICS_HOST": host, "BERTH_METRICS_PORT": "9100"}
    if is_open:
        assert fault_of(WorkerSettings, **served).startswith(f"BERTH_METRICS_HOST is {host}: anyone could read")
    for accepted in (
        {"BERTH_METRICS_HOST": host}, served | {"BERTH_ENVIRONMENT": "sandbox"}, {} if is_open else served
    ):  # fmt: skip
        assert check_environment(WorkerSettings, COMPLETE["worker"] | accepted) == []


def test_a_sender_may_have_a_name_in_quotes() -> None:
    for sender in ('"Berth, Inc." <billing@berth.io>', "Berth Inc. <billing@berth.io>", "billing@berth.io"):
        assert check_environment(WorkerSettings, COMPLETE["worker"] | {"BERTH_MAIL_FROM": sender}) == []


@pytest.mark.parametrize(
    ("settings", "name", "value", "expected"),
    [
        (WorkerSettings, "BERTH_STRIPE_API_KEY", "rk_test_0123456789", "is a key of Stripe's test mode"),
        (WorkerSettings, "BERTH_STRIPE_API_KEY", "pk_live_0123456789", "is not a secret key of Stripe"),
        (WorkerSettings, "BERTH_STRIPE_URL", "http://127.0.0.1:9", "is http://127.0.0.1:9: keys and payments would"),
        (WorkerSettings, "BERTH_STRIPE_URL", "https://localhost:9/", "is https://localhost:9, a stand-in"),
        (WorkerSettings, "BERTH_STRIPE_URL", "https://127.1/", "is https://127.1, a stand-in"),
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


def test_staging_may_use_the_test_modes_of_gateways_but_no_clear_text() -> None:
    api = COMPLETE["api"] | {
        "BERTH_ENVIRONMENT": "staging",
        "BERTH_MIDTRANS_SERVER_KEY": "SB-Mid-server-9f3c07d5b1e8426a",
    }
    worker = COMPLETE["worker"] | {"BERTH_ENVIRONMENT": "staging", "BERTH_STRIPE_API_KEY": f"sk_test_{RANDOM}"}
    assert check_environment(ApiSettings, api) == []
    assert check_environment(WorkerSettings, worker) == []
    (fault,) = check_environment(WorkerSettings, worker | {"BERTH_STRIPE_URL": "http://stripe.invalid"})
    assert fault.startswith("BERTH_STRIPE_URL is http://stripe.invalid: keys and payments")
    (fault,) = check_environment(WorkerSettings, worker | {"BERTH_STRIPE_API_KEY": "pk_test_0123456789"})
    assert fault.startswith("BERTH_STRIPE_API_KEY is not a secret key of Stripe")


@pytest.mark.parametrize("key", [f"sk_live_{RANDOM}", f"rk_live_{RANDOM}_{RANDOM[::-1]}-{RANDOM}"])
def test_production_accepts_secret_and_restricted_keys_of_the_live_mode(key: str) -> None:
    complete = COMPLETE["worker"] | {"BERTH_STRIPE_API_KEY": key, "BERTH_STRIPE_URL": ""}
    assert check_environment(WorkerSettings, complete) == []
    others = {"BERTH_MIDTRANS_SERVER_KEY": "Mid-server-9f3c07d5b1e8426a", "BERTH_RAZORPAY_WEBHOOK_SECRET": RANDOM}
    assert check_environment(ApiSettings, COMPLETE["api"] | others) == []


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
