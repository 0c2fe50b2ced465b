"""What the API is told by its environment: ``BERTH_*``, or ``BERTH_*_FILE`` naming a file that holds the value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from db.sealing import Sealer
from workflows.settings import TemporalSettings, parse_encryption_keys

PREFIX = "BERTH_"
SHORTEST_JWT_SECRET = 32


class FromFiles(PydanticBaseSettingsSource):
    """``BERTH_JWT_SECRET_FILE=/run/secrets/jwt`` gives ``jwt_secret`` that file's content without its last newline."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        return (Path(path).read_text(encoding="utf-8").rstrip("\r\n") if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class FromEnvironment(BaseSettings):
    """Reads the environment, and files that it names; nothing else."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FromFiles(settings_cls)


class Settings(FromEnvironment):
    """Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", populate_by_name=True, frozen=True)

    environment: Literal["production", "staging", "sandbox", "test"] = "production"
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = "http://127.0.0.1:8000"
    base_domain: str = "apps.berth.localhost"
    api_database_url: SecretStr
    database_pool: int = Field(default=10, ge=1)
    temporal_address: str = "127.0.0.1:7233"
    temporal_namespace: str = "default"
    jwt_secret: SecretStr
    """One secret, or a ring ``id:secret,id:secret``: the first signs, every one verifies."""
    encryption_key: SecretStr | None = None
    """32 bytes of base64, or a ring ``id:key,id:key``: the first encrypts, every one decrypts."""
    stripe_webhook_secret: SecretStr | None = None
    midtrans_server_key: SecretStr | None = None
    razorpay_webhook_secret: SecretStr | None = None
    mailbox_url: str | None = None

    access_token_seconds: int = 15 * 60
    refresh_token_seconds: int = 30 * 24 * 3600
    verification_seconds: int = 48 * 3600
    reset_seconds: int = 3600
    revocation_refresh_seconds: float = 1.0

    rate_limit: Literal["on", "off"] = "on"
    rate_limit_storage: str = Field(
        default="memory://", validation_alias=AliasChoices("RATE_LIMIT_STORAGE", "BERTH_RATE_LIMIT_STORAGE")
    )
    body_limit: int = 256 * 1024
    request_seconds: float = 10.0
    database_seconds: float = 4.0
    """How long a request waits for a connection before it answers 503."""
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: str = ""
    """Addresses whose ``X-Forwarded-For`` is believed, as uvicorn spells them."""
    admin_allow: tuple[str, ...] = ()
    """Networks that may reach administrators' routes; empty means any."""
    metrics_allow: tuple[str, ...] = ()
    log_format: Literal["json", "text"] = "json"
    log_level: str = "INFO"

    @field_validator("public_url", "mailbox_url")
    @classmethod
    def _without_last_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _secrets_are_strong(self) -> Self:
        if not self.jwt_keys or any(len(secret) < SHORTEST_JWT_SECRET for _, secret in self.jwt_keys):
            raise ValueError(f"jwt_secret: every secret has at least {SHORTEST_JWT_SECRET} bytes")
        if self.environment in ("production", "staging") and self.encryption_key is None:
            raise ValueError("encryption_key is required outside of a sandbox")
        return self

    @property
    def sandbox(self) -> bool:
        return self.environment == "sandbox"

    @property
    def jwt_keys(self) -> tuple[tuple[str, bytes], ...]:
        """Pairs of key id and secret; the first one signs."""
        pairs = (part.strip().rpartition(":") for part in self.jwt_secret.get_secret_value().split(","))
        return tuple((key_id or "1", secret.encode()) for key_id, _, secret in pairs if secret)

    @property
    def encryption_keys(self) -> tuple[tuple[str, bytes], ...]:
        return parse_encryption_keys(self.encryption_key.get_secret_value()) if self.encryption_key else ()

    @property
    def sealer(self) -> Sealer | None:
        return Sealer(self.encryption_keys) if self.encryption_keys else None

    @property
    def temporal(self) -> TemporalSettings:
        return TemporalSettings(
            address=self.temporal_address,
            namespace=self.temporal_namespace,
            encryption_keys=self.encryption_keys,
        )


def networks(given: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(network, strict=False) for network in given)


def load(**given: Any) -> Settings:
    """Read the settings from the environment; ``given`` goes before it. Raises ``pydantic.ValidationError``."""
    values: Mapping[str, Any] = given
    return Settings(**values)
