"""What the worker is told by its environment: names begin with ``BERTH_``; secrets may come as ``…_FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from activities.adapters.smtp import SmtpSettings
from activities.templates import Platform
from api.settings import FromEnvironment
from workflows.settings import TemporalSettings, parse_encryption_keys


class WorkerSettings(FromEnvironment):
    model_config = SettingsConfigDict(env_prefix="BERTH_", extra="ignore")

    environment: str = "production"
    worker_database_url: str
    database_pool: int = Field(default=16, ge=1)
    temporal_address: str
    temporal_namespace: str = "default"
    encryption_key: SecretStr = SecretStr("")
    stripe_url: str | None = None
    stripe_api_key: SecretStr = SecretStr("")
    smtp_host: str = "127.0.0.1"
    smtp_port: int = 25
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    mail_from: str = "Berth <no-reply@berth.localhost>"
    cluster: str = "simulated"
    kubeconfig: Path | None = None
    ingress_class: str = "nginx"
    ingress_namespace: str = "ingress-nginx"
    dns_namespace: str = "kube-system"
    cluster_issuer: str = "letsencrypt"
    storage_class: str | None = None
    """None takes the cluster's default class."""
    probe_cidrs: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks that the API server connects from, parted by commas."""
    base_domain: str = "apps.berth.localhost"
    public_url: str = "http://127.0.0.1:8000"
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    log_format: str = "json"
    log_level: str = "INFO"
    build: str = "0.1.0"
    provisioning_patience_seconds: float = Field(default=600, gt=0)
    template_directory: Path = Path(__file__).resolve().parents[1] / "templates"
    cached_workflows: int = Field(default=1_000, ge=0)
    """Idle subscriptions beyond these rest on the server alone and are replayed when they wake: some 70 KiB each."""
    concurrent_activities: int = 60
    cluster_activities: int = 24

    @field_validator("probe_cidrs", mode="before")
    @classmethod
    def _parted(cls, told: object) -> object:
        return [part.strip() for part in told.split(",") if part.strip()] if isinstance(told, str) else told

    @model_validator(mode="after")
    def _sandbox_gives_up_sooner(self) -> Self:
        """As the sandbox's contract says: 60 s of one and the same failing reason."""
        if self.environment == "sandbox" and "provisioning_patience_seconds" not in self.model_fields_set:
            self.provisioning_patience_seconds = 60
        return self

    def smtp(self) -> SmtpSettings:
        return SmtpSettings(
            host=self.smtp_host,
            port=self.smtp_port,
            security=self.smtp_security,
            username=self.smtp_username,
            password=self.smtp_password.get_secret_value() if self.smtp_password else None,
        )

    def platform(self) -> Platform:
        return Platform(
            ingress_class=self.ingress_class,
            ingress_namespace=self.ingress_namespace,
            dns_namespace=self.dns_namespace,
            cluster_issuer=self.cluster_issuer,
            storage_class=self.storage_class,
            probe_cidrs=self.probe_cidrs,
        )

    def temporal(self) -> TemporalSettings:
        return TemporalSettings(
            address=self.temporal_address,
            namespace=self.temporal_namespace,
            encryption_keys=parse_encryption_keys(self.encryption_key.get_secret_value()),
        )
