"""Settings of the worker: ``BERTH_*`` variables, or ``BERTH_*_FILE`` naming a file that holds the value."""

from __future__ import annotations

import re
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from activities.adapters.smtp import SmtpSettings
from activities.service_templates.values import ClusterProfile
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
    check_host,
    check_mail_address,
    check_mail_sender,
    check_metrics_host,
    check_public_url,
    check_service_url,
    is_deployed,
)
from api.gateway_secrets import check_stripe_key
from api.settings import check_encryption_key
from workflows.settings import TemporalSettings, parse_encryption_keys

TEMPLATE_FILES = (
    "email/layout.html",
    "email/layout.txt",
    "services/_base/_probe.yaml.j2",
    "services/[!_]*/service.yaml",
)
"""Of the folder of templates; the last one is a pattern."""

NO_REPLY = re.compile(r"(do[-_.]?not|no)[-_.]?reply\b", re.IGNORECASE)


class WorkerSettings(EnvironmentSettings):
    worker_database_url: Annotated[str, AfterValidator(check_database_url), AfterValidator(check_database_tls)] = Field(
        description="it is the address of the database, as the role berth_worker"
    )
    database_pool_size: PositiveInt = 16
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
    encryption_key: SecretStr = SecretStr("")
    stripe_url: Annotated[str | None, AfterValidator(check_service_url)] = None
    stripe_api_key: SecretStr = SecretStr("")
    smtp_host: str = ""
    """Unset: this machine, except where customers are real."""
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = 25
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    mail_from: Annotated[str, AfterValidator(check_mail_sender)] = "Berth <no-reply@berth.localhost>"
    support_email: Annotated[str | None, AfterValidator(check_mail_address)] = None
    """Address for customers' questions, shown in every mail. None: the address of ``mail_from``, unless that is a
    ``no-reply`` one."""
    kubeconfig: Path | None = None
    ingress_class: str = "nginx"
    ingress_namespace: str = "ingress-nginx"
    dns_namespace: str = "kube-system"
    cluster_issuer: str = "letsencrypt"
    storage_class: str | None = None
    """None takes the cluster's default class."""
    base_domain: Annotated[str, AfterValidator(check_base_domain)] = "apps.berth.localhost"
    public_url: Annotated[str, AfterValidator(check_public_url)] = "http://127.0.0.1:8000"
    metrics_port: Port = 0
    metrics_host: Annotated[str, AfterValidator(check_metrics_host)] = "127.0.0.1"
    log_format: LogFormat = "json"
    log_level: LogLevel = "INFO"
    build_id: str = "0.1.0"
    provisioning_failure_threshold_seconds: PositiveFloat = 600
    template_directory: Path = Path(__file__).resolve().parents[1] / "templates"
    max_cached_workflows: int = Field(default=2_500, ge=0)
    """Cached workflows, some 73 KiB each. An evicted subscription is replayed when its timer fires: the cache holds a
    burst of 2,000 renewals that are due at once (decision 13)."""
    max_concurrent_activities: PositiveInt = 60
    max_concurrent_cluster_activities: PositiveInt = 24
    """Requests to the cluster at the same time, a thread each, and as many activities that do not wait."""
    max_concurrent_cluster_waits: PositiveInt = 200
    """Further activities: most wait for readiness or removal, for minutes and without a thread, and others must not
    queue behind them."""

    @field_validator("template_directory")
    @classmethod
    def _require_templates(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError(f"is {value}, which is not a folder. Set the folder of the mails and service templates")
        lacking = next((file for file in TEMPLATE_FILES if not any(value.glob(file))), None)
        if lacking is not None:
            raise ValueError(f"is {value}, which lacks {lacking}. Set the folder of the mails and service templates")
        return value

    @field_validator("smtp_host")
    @classmethod
    def _require_mail_server(cls, value: str, info: ValidationInfo) -> str:
        if not value and is_deployed(info):
            raise ValueError("is not set: no mail could be sent. Set the host of the mail server")
        return check_host(value or "127.0.0.1")

    @field_validator("encryption_key")
    @classmethod
    def _require_encryption_key(cls, value: SecretStr, info: ValidationInfo) -> SecretStr | None:
        return check_encryption_key(value, info)

    @field_validator("stripe_api_key")
    @classmethod
    def _require_gateway_key(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if is_deployed(info) and not value.get_secret_value():
            raise ValueError("is not set: no payment could be collected. Set Stripe's secret key")
        check_stripe_key(value.get_secret_value(), info)
        return value

    @field_validator("smtp_security")
    @classmethod
    def _require_encrypted_mail(cls, value: str, info: ValidationInfo) -> str:
        if is_deployed(info) and value == "none":
            raise ValueError("is none: mails with one-time links would travel in clear text. Set starttls or tls")
        return value

    @model_validator(mode="after")
    def _default_sandbox_threshold(self) -> Self:
        """Report a failing instance after 60 s in the sandbox, unless the setting says otherwise."""
        if self.environment == "sandbox" and "provisioning_failure_threshold_seconds" not in self.model_fields_set:
            self.provisioning_failure_threshold_seconds = 60
        return self

    def support_address(self) -> str | None:
        """Return the address that customers are asked to write to; None for a sender named ``no-reply``."""
        if self.support_email:
            return self.support_email
        sender = parseaddr(self.mail_from)[1]
        return None if NO_REPLY.match(sender) else sender

    def smtp_settings(self) -> SmtpSettings:
        return SmtpSettings(
            host=self.smtp_host,
            port=self.smtp_port,
            security=self.smtp_security,
            username=self.smtp_username,
            password=self.smtp_password.get_secret_value() if self.smtp_password else None,
        )

    def cluster_profile(self) -> ClusterProfile:
        return ClusterProfile(
            ingress_class=self.ingress_class,
            ingress_namespace=self.ingress_namespace,
            dns_namespace=self.dns_namespace,
            cluster_issuer=self.cluster_issuer,
            storage_class=self.storage_class,
        )

    def temporal_settings(self) -> TemporalSettings:
        return TemporalSettings(
            address=self.temporal_address,
            namespace=self.temporal_namespace,
            encryption_keys=parse_encryption_keys(self.encryption_key.get_secret_value()),
            tls=self.temporal_tls == "on",
            ca=self.temporal_ca,
            certificate=self.temporal_certificate,
            key=self.temporal_key.get_secret_value() if self.temporal_key else None,
            api_key=self.temporal_api_key.get_secret_value() if self.temporal_api_key else None,
        )
