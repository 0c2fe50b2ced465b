"""Read settings from ``BERTH_*`` variables and report every missing or unsafe one at once, in words."""

from __future__ import annotations

import json
import os
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "BERTH_"
DEPLOYED_ENVIRONMENTS = ("production", "staging")
"""Environments with real customers. Unsafe defaults are accepted in ``sandbox`` and ``test`` only."""

Environment = Literal["production", "staging", "sandbox", "test"]


class ConfigurationError(Exception):
    """``faults`` has one line for each missing, malformed or unsafe setting."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class UnreadableFile:
    """Stands for the value of a setting whose ``…_FILE`` cannot be read, so that validation reports it."""

    def __init__(self, error: OSError | ValueError) -> None:
        self.reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"


class FileSecretsSource(PydanticBaseSettingsSource):
    """``BERTH_JWT_SECRET_FILE=/run/secrets/jwt`` sets ``jwt_secret`` to the content without its last newline."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n") or None, field_name, False
        except (OSError, ValueError) as error:
            return UnreadableFile(error), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class EnvironmentSettings(BaseSettings):
    """Reads environment variables, and the files that ``BERTH_*_FILE`` variables name. Empty variables are unset.

    Field validators also run on defaults, and ``environment`` is validated first: a validator decides with
    `is_deployed` whether a value is safe enough.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", populate_by_name=True, validate_default=True
    )

    environment: Environment = "production"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSecretsSource(settings_cls)


SettingsT = TypeVar("SettingsT", bound=EnvironmentSettings)


def load(settings: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read settings from the environment; ``overrides`` go before it. Raises `ConfigurationError`."""
    try:
        return settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(describe_faults(settings, error)) from None


def report_faults(program: str, error: ConfigurationError) -> None:
    """Write every fault to stderr, one a line, below a line that says why ``program`` does not start."""
    environment = os.environ.get(f"{PREFIX}ENVIRONMENT") or "production"
    lines = [
        f"The {program} does not start: settings are missing or unsafe (BERTH_ENVIRONMENT is {environment}).",
        *error.faults,
    ]
    sys.stderr.write("\n".join(lines) + "\n")


def describe_faults(settings: type[EnvironmentSettings], error: ValidationError) -> list[str]:
    """Return one line for each fault: the variable, what is wrong, and what to set. Secret values are not shown."""
    lines = []
    for fault in error.errors(include_url=False):
        field = str(fault["loc"][0]).lower().removeprefix(PREFIX.lower())
        name = PREFIX + field.upper()
        if isinstance(fault.get("input"), UnreadableFile):
            lines.append(f"{name}_FILE names a file that cannot be read: {fault['input'].reason}.")
        elif fault["type"] == "missing":
            lines.append(f"{name} is not set: {settings.model_fields[field].description or 'it is required'}.")
        elif fault["type"] == "value_error":
            lines.append(f"{name} {fault['ctx']['error']}.")
        else:
            needed = fault["msg"].replace("Input should be", "must be").partition(", unable to parse")[0]
            lines.append(f"{name} {needed}.")
    return lines


# ---------------------------------------------------------------- rules for values


def is_deployed(info: ValidationInfo) -> bool:
    """Whether the settings under validation serve real customers. An invalid environment counts as production."""
    return info.data.get("environment", "production") in DEPLOYED_ENVIRONMENTS


def split_list(value: Any) -> Any:
    """Read ``a, b`` or a JSON list; anything but text passes through."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("is neither a list separated by commas nor a JSON list") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def check_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ``ValueError`` naming the first entry that is no network."""
    for network in value:
        try:
            ip_network(network, strict=False)
        except ValueError:
            raise ValueError(f"has an entry that is no network: {network!r}. Write networks as 10.0.0.0/8") from None
    return value


def check_public_url(value: str, info: ValidationInfo) -> str:
    """Refuse addresses that customers cannot reach, or that carry their passwords and tokens in clear text."""
    if is_deployed(info):
        parts = urlsplit(value)
        if is_loopback(parts.hostname or ""):
            raise ValueError(
                f"is {value}, which only this machine reaches: mails and payment pages link to it. "
                "Set the https:// address of this installation"
            )
        if parts.scheme != "https":
            raise ValueError(
                f"is {value}: passwords and tokens would travel in clear text. Set an address that begins with https://"
            )
    return value.rstrip("/")


def check_base_domain(value: str, info: ValidationInfo) -> str:
    """Refuse a domain that resolves to the customer's own machine."""
    if is_deployed(info) and is_loopback(value):
        raise ValueError(f"is {value}, which only this machine reaches. Set the domain that instances get names below")
    return value


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine. An empty name counts as such."""
    name = host.rstrip(".").lower()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
