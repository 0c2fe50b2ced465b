"""Settings of the API: ``BERTH_*`` variables, or ``BERTH_*_FILE`` naming a file that holds the value."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from api.connection_settings import (
    check_certificates,
    check_database_tls,
    check_database_url,
    check_host_and_port,
    check_private_key,
    check_temporal_tls,
)
from api.environment import (
    EnvironmentSettings,
    LogFormat,
    LogLevel,
    Port,
    PositiveFloat,
    PositiveInt,
    check_base_domain,
    check_distinct_names,
    check_networks,
    check_origin,
    check_public_url,
    is_deployed,
    is_loopback,
    load,
    split_list,
)
from api.gateway_secrets import (
    check_midtrans_server_key,
    check_razorpay_webhook_secret,
    check_stripe_webhook_secret,
)
from api.secret_strength import check_not_guessable
from db.encryption import FieldEncryption
from workflows.settings import TemporalSettings, parse_encryption_keys

MIN_JWT_SECRET_BYTES = 32
MIN_NETWORK_PREFIX = {4: 8, 6: 16}
"""Shortest prefix of a network of proxies, by version of IP: that of the largest private network in use, 10.0.0.0/8."""
RATE_LIMIT_STORAGES = ("memory", "redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster")
CLEAR_TEXT_STORAGES = ("redis", "redis+sentinel", "redis+cluster")

TextList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list), AfterValidator(check_networks)]


class ApiSettings(EnvironmentSettings):
    """Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(frozen=True)

    host: str = "127.0.0.1"
    port: Port = 8000
    public_url: Annotated[str, AfterValidator(check_public_url)] = "http://127.0.0.1:8000"
    base_domain: Annotated[str, AfterValidator(check_base_domain)] = "apps.berth.localhost"
    api_database_url: SecretStr = Field(description="it is the address of the database, as the role berth_api")
    database_pool_size: int = Field(default=10, ge=1)
    temporal_address: Annotated[str, AfterValidator(check_host_and_port)] = Field(
        description="it is the host and port of the Temporal server"
    )
    temporal_namespace: str = "default"
    temporal_api_key: SecretStr | None = None
    temporal_ca: Annotated[str | None, AfterValidator(check_certificates)] = None
    """PEM of the authority of Temporal's certificate. None: the system's. ``BERTH_TEMPORAL_CA_FILE`` names a file."""
    temporal_certificate: Annotated[str | None, AfterValidator(check_certificates)] = None
    temporal_key: Annotated[SecretStr | None, AfterValidator(check_private_key)] = None
    """PEM of this process's certificate and private key, where Temporal requires them."""
    temporal_tls: Annotated[Literal["on", "off"], AfterValidator(check_temporal_tls)] = "off"
    jwt_secret: SecretStr = Field(
        description=f"it signs access tokens. Set at least {MIN_JWT_SECRET_BYTES} random bytes"
    )
    """One secret, or a ring ``id:secret,id:secret``: the first signs, every one verifies."""
    encryption_key: SecretStr | None = None
    """32 bytes of base64, or a ring ``id:key,id:key``: the first encrypts, every one decrypts."""
    stripe_webhook_secret: SecretStr | None = None
    midtrans_server_key: SecretStr | None = None
    razorpay_webhook_secret: SecretStr | None = None

    access_token_seconds: PositiveInt = 15 * 60
    refresh_token_seconds: PositiveInt = 30 * 24 * 3600
    verification_token_seconds: PositiveInt = 48 * 3600
    reset_token_seconds: PositiveInt = 3600
    revocation_refresh_seconds: PositiveFloat = 1.0

    rate_limit: Literal["on", "off"] = "on"
    rate_limit_storage: str = Field(
        default="memory://", validation_alias=AliasChoices("RATE_LIMIT_STORAGE", "BERTH_RATE_LIMIT_STORAGE")
    )
    max_body_bytes: PositiveInt = 256 * 1024
    request_timeout_seconds: PositiveFloat = 10.0
    database_timeout_seconds: PositiveFloat = 4.0
    """How long a request waits for a connection before it answers 503."""
    cors_origins: TextList = ()
    trusted_proxies: Networks = ()
    """Networks of the proxies whose ``X-Forwarded-For`` names the client. Production has one: it terminates HTTPS."""
    admin_allowed_networks: Networks = ()
    """Networks that may reach administrators' routes; empty means any."""
    metrics_allowed_networks: Networks = ()
    """Networks that may read ``/metrics``; empty means any, which production refuses."""
    log_format: LogFormat = "json"
    log_level: LogLevel = "INFO"

    @field_validator("api_database_url")
    @classmethod
    def _require_database_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        check_database_tls(check_database_url(value.get_secret_value()), info)
        return value

    @field_validator("base_domain")
    @classmethod
    def _require_other_domain(cls, value: str, info: ValidationInfo) -> str:
        check_distinct_names(info.data.get("public_url"), value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _require_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_origin(origin) for origin in value)

    @field_validator("jwt_secret")
    @classmethod
    def _require_strong_jwt_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        keys = _split_jwt_keys(value)
        if not keys or any(len(secret) < MIN_JWT_SECRET_BYTES for _, secret in keys):
            raise ValueError(
                f"is too short to sign access tokens: every secret has at least {MIN_JWT_SECRET_BYTES} bytes"
            )
        if len({key_id for key_id, _ in keys}) < len(keys):
            raise ValueError(
                "repeats an id (without one it is 1), so that access tokens would be refused."
                " Write a ring as 2:…,1:…; the first signs"
            )
        for _, secret in keys:
            check_not_guessable(secret.decode(), info)
        return value

    @field_validator("encryption_key")
    @classmethod
    def _require_encryption_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        return check_encryption_key(value, info)

    @field_validator("stripe_webhook_secret")
    @classmethod
    def _require_webhook_secret(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if is_deployed(info) and not (value and value.get_secret_value()):
            raise ValueError("is not set: it verifies Stripe's webhooks. Set the endpoint's signing secret")
        check_stripe_webhook_secret(value.get_secret_value() if value else "", info)
        return value

    @field_validator("midtrans_server_key")
    @classmethod
    def _require_midtrans_production_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            check_midtrans_server_key(value.get_secret_value(), info)
        return value

    @field_validator("razorpay_webhook_secret")
    @classmethod
    def _require_razorpay_secret(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            check_razorpay_webhook_secret(value.get_secret_value(), info)
        return value

    @field_validator("rate_limit")
    @classmethod
    def _require_rate_limit(cls, value: str, info: ValidationInfo) -> str:
        if value == "off" and is_deployed(info):
            raise ValueError("is off: passwords could be guessed without limit. Set it to on")
        return value

    @field_validator("rate_limit_storage")
    @classmethod
    def _require_shared_storage(cls, value: str, info: ValidationInfo) -> str:
        scheme = value.removeprefix("async+").partition("://")[0]
        if scheme not in RATE_LIMIT_STORAGES:
            raise ValueError(f"begins with none of {', '.join(f'{name}://' for name in RATE_LIMIT_STORAGES)}")
        if is_deployed(info) and scheme == "memory":
            raise ValueError("is memory://: each process would count for itself. Set a redis:// address")
        if scheme.startswith("redis") and scheme != "redis+unix":
            _check_storage_address(value)
        if is_deployed(info) and scheme in CLEAR_TEXT_STORAGES:
            _check_storage_password(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _require_proxies(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        networks = parse_networks(value)
        if is_deployed(info) and not networks:
            raise ValueError(
                "is not set: every client would have the address of the proxy that terminates HTTPS, for rate limits"
                " and allowed networks alike. Set the addresses of the proxy"
            )
        if is_deployed(info) and any(network.prefixlen < MIN_NETWORK_PREFIX[network.version] for network in networks):
            raise ValueError(
                "names more than the proxy: clients in that network could choose their own address. Set the addresses"
                " of the proxy, at most an IPv4 /8 or an IPv6 /16"
            )
        # Uvicorn takes a network with bits of a host for the name of a host.
        return tuple(str(network) for network in networks)

    @field_validator("metrics_allowed_networks")
    @classmethod
    def _require_metrics_networks(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if is_deployed(info) and not value:
            raise ValueError("is not set: anyone could read /metrics. Set the networks of the monitoring system")
        networks = parse_networks(value)
        if is_deployed(info) and any(network.prefixlen < MIN_NETWORK_PREFIX[network.version] for network in networks):
            raise ValueError(
                "names nearly every address, which could then read /metrics. Set the networks of the monitoring system,"
                " at most an IPv4 /8 or an IPv6 /16"
            )
        return value

    @property
    def is_sandbox(self) -> bool:
        return self.environment == "sandbox"

    @property
    def jwt_keys(self) -> tuple[tuple[str, bytes], ...]:
        """Pairs of key id and secret; the first one signs."""
        return _split_jwt_keys(self.jwt_secret)

    @property
    def encryption_keys(self) -> tuple[tuple[str, bytes], ...]:
        return parse_encryption_keys(self.encryption_key.get_secret_value()) if self.encryption_key else ()

    @property
    def field_encryption(self) -> FieldEncryption | None:
        return FieldEncryption(self.encryption_keys) if self.encryption_keys else None

    @property
    def temporal(self) -> TemporalSettings:
        return TemporalSettings(
            address=self.temporal_address,
            namespace=self.temporal_namespace,
            encryption_keys=self.encryption_keys,
            tls=self.temporal_tls == "on",
            ca=self.temporal_ca,
            certificate=self.temporal_certificate,
            key=self.temporal_key.get_secret_value() if self.temporal_key else None,
            api_key=self.temporal_api_key.get_secret_value() if self.temporal_api_key else None,
        )


def parse_networks(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(network, strict=False) for network in networks)


def _split_jwt_keys(ring: SecretStr) -> tuple[tuple[str, bytes], ...]:
    parts = filter(None, (part.strip() for part in ring.get_secret_value().split(",")))
    pairs = (part.rpartition(":") for part in parts)
    return tuple((key_id or "1", secret.encode()) for key_id, _, secret in pairs)


def _check_storage_address(address: str) -> None:
    """Refuse an address that the client of Redis could not read. Neither error quotes it."""
    try:
        parts = urlsplit(address)
        hosts = parts.netloc.rpartition("@")[2]
        is_readable = "@" not in f"{parts.path}{parts.fragment}" and all(
            urlsplit(f"//{host}").port != 0 for host in hosts.split(",")
        )
    except ValueError:
        is_readable = False
    if not is_readable:
        raise ValueError(
            "is not an address of Redis. Set one such as rediss://:password@redis.company.com:6379;"
            " in a password write / as %2F, # as %23, @ as %40 and % as %25"
        )


def _check_storage_password(address: str) -> None:
    """Refuse a password that would travel to another machine in clear text. The error does not quote it."""
    parts = urlsplit(address)
    credentials, _, hosts = parts.netloc.rpartition("@")
    if not credentials.partition(":")[2] and "password" not in parse_qs(parts.query):
        return
    distant = [
        host for host in (urlsplit(f"//{host}").hostname or "" for host in hosts.split(",")) if not is_loopback(host)
    ]
    if distant:
        raise ValueError(f"would send its password to {distant[0]} in clear text. Set a rediss:// address")


def check_encryption_key(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Require a key where customers' data is real, and a well-formed one everywhere."""
    text = value.get_secret_value() if value else ""
    try:
        keys = parse_encryption_keys(text)
    except ValueError:
        raise ValueError("is malformed: each key is 32 bytes of base64, and each id appears once") from None
    if not keys and is_deployed(info):
        raise ValueError("is not set: it encrypts customers' data. Set 32 random bytes as base64")
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        check_not_guessable(part.rpartition(":")[2], info)
    return value


def load_settings(**overrides: Any) -> ApiSettings:
    """Read the settings from the environment; ``overrides`` go before it. Raises `ConfigurationError`."""
    return load(ApiSettings, **overrides)
