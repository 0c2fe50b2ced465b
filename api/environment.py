"""Read settings from ``BERTH_*`` variables and report every missing or unsafe one at once, in words."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from email.utils import getaddresses, parseaddr
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "BERTH_"
DEPLOYED_ENVIRONMENTS = ("production", "staging")
"""Environments with real customers. Unsafe defaults are accepted in ``sandbox`` and ``test`` only."""

PLACEHOLDER_SUFFIXES = (
    ".example", ".example.com", ".example.net", ".example.org", ".invalid", ".local", ".localhost", ".test",
)  # fmt: skip
"""Domains, with those below them, that never receive mail (RFC 2606, RFC 6762)."""
NO_HTTP_URL = "is not a web address. Set one such as https://berth.company.com"
DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
"""One label or more: a private network may serve instances below ``lan``."""

Environment = Literal["production", "staging", "sandbox", "test"]
LogFormat = Literal["json", "text"]
LOG_LEVEL_ALIASES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
"""As Python's ``logging`` and most other programs accept them."""


def read_log_level(value: Any) -> Any:
    """Return the name of a level as it is documented; anything but text passes through."""
    if not isinstance(value, str):
        return value
    name = value.strip().upper()
    return LOG_LEVEL_ALIASES.get(name, name)


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(read_log_level)]
Port = Annotated[int, Field(ge=0, le=65_535)]
"""0 lets the system choose one, or turns the listener off."""
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConfigurationError(Exception):
    """``faults`` has one line for each missing, malformed or unsafe setting."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class UnreadableFile:
    """Stands for the value of a setting whose ``…_FILE`` cannot be read, so that validation reports it."""

    def __init__(self, error: OSError | ValueError) -> None:
        self.reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"


def _read_secret_file(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the content of the file that ``<name>_FILE`` names without its last newline; None without either.

    Raises:
        OSError, ValueError: The file cannot be read.
    """
    path = environ.get(f"{name}_FILE")
    return Path(path).read_text(encoding="utf-8").rstrip("\r\n") or None if path else None


def read_variable(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the value of a variable, or of the file that ``<name>_FILE`` names, for commands that need few settings.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        return environ.get(name) or _read_secret_file(name, environ)
    except (OSError, ValueError) as error:
        raise ConfigurationError([_describe_unreadable_file(name, UnreadableFile(error))]) from None


def _describe_unreadable_file(name: str, file: UnreadableFile) -> str:
    return f"{name}_FILE names a file that cannot be read: {file.reason}."


class FileSecretsSource(PydanticBaseSettingsSource):
    """``BERTH_JWT_SECRET_FILE=/run/secrets/jwt`` sets ``jwt_secret`` to the content without its last newline."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        try:
            return _read_secret_file(f"{PREFIX}{field_name.upper()}", os.environ), field_name, False
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


def check_environment(settings: type[EnvironmentSettings], environ: Mapping[str, str]) -> list[str]:
    """Return the faults that a process with the environment ``environ`` would report; empty when it would start."""
    values = {
        field: value
        for field in settings.model_fields
        if (value := environ.get(f"{PREFIX}{field.upper()}")) is not None
    }
    try:
        load(settings, **{field: value for field, value in values.items() if value})
    except ConfigurationError as error:
        return error.faults
    return []


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
            lines.append(_describe_unreadable_file(name, fault["input"]))
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


def is_production(info: ValidationInfo) -> bool:
    """Whether money is real: `is_deployed` without ``staging``, which may use the test modes of gateways."""
    return is_deployed(info) and info.data.get("environment") != "staging"


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
    """Refuse addresses that customers cannot reach, or that carry their passwords and tokens in clear text.

    Links are the address with a path behind it: it has no user, query or fragment.
    """
    parts = parse_http_url(value)
    if "@" in parts.netloc or "?" in value or "#" in value:
        raise ValueError(
            "has a user, a query or a fragment, and links are made by adding a path."
            " Set an address such as https://berth.company.com"
        )
    if is_deployed(info):
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


def parse_http_url(value: str) -> SplitResult:
    """Return the parts of an ``http://`` or ``https://`` address. Raises ``ValueError`` for anything else."""
    try:
        parts = urlsplit(value)
        # The port is parsed when it is read.
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(NO_HTTP_URL) from None
    if not valid or not value.isprintable() or " " in value:
        raise ValueError(NO_HTTP_URL)
    return parts


def check_http_url(value: str | None) -> str | None:
    """Require an ``http://`` or ``https://`` address and return it without a slash at its end."""
    if value is None:
        return None
    parse_http_url(value)
    return value.rstrip("/")


def check_service_url(value: str | None, info: ValidationInfo) -> str | None:
    """As `check_http_url`, for a service that is sent keys: where customers are real, over TLS and not a stand-in."""
    url = check_http_url(value)
    if url is None or not is_deployed(info):
        return url
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise ValueError(f"is {url}: keys and payments would travel in clear text. Set an address with https://")
    if is_loopback(parts.hostname or ""):
        raise ValueError(f"is {url}, a stand-in on this machine. Leave it unset for the service's own address")
    return url


def check_origin(value: str) -> str:
    """Require an origin as browsers and web views send it, of any scheme (``capacitor://localhost``), or ``*``.

    Returns:
        The origin in lower case without a slash at its end: it is compared with the header as it is.
    """
    if value == "*":
        return value
    origin = value.lower().removesuffix("/")
    try:
        parts = urlsplit(origin)
        # Neither a user nor a path. The port is parsed when it is read.
        is_origin = bool(parts.scheme and parts.hostname) and parts.port != 0 and parts.username is None
        is_origin = is_origin and origin == f"{parts.scheme}://{parts.netloc}" and origin.isprintable()
    except ValueError:
        is_origin = False
    if not is_origin:
        raise ValueError(f"has an entry that is no origin: {value!r}. Write origins as https://portal.company.com")
    return origin


def check_mail_sender(value: str, info: ValidationInfo) -> str:
    """Require one ``name@domain`` or ``Name <name@domain>``; for real customers, of a domain that receives mail."""
    address, *others = (address for _, address in getaddresses([value]))
    user, _, domain = address.rpartition("@")
    # A list or a group of addresses has another end.
    is_alone = not others and value.rstrip().endswith((address, ">"))
    if not user or not domain or not is_alone or not value.isprintable() or any(map(str.isspace, address)):
        raise ValueError(
            "is not a mail address. Set one such as Berth <billing@company.com>; a name with a comma needs quotes"
        )
    name = domain.rstrip(".").lower()
    if is_deployed(info) and ("." not in name or f".{name}".endswith(PLACEHOLDER_SUFFIXES)):
        raise ValueError(f"is {value}, a placeholder: no mail reaches {domain}. Set an address that receives mail")
    return value


def check_mail_address(value: str | None, info: ValidationInfo) -> str | None:
    """As `check_mail_sender`, without a name beside the address: it stands in links."""
    if value is None:
        return None
    if parseaddr(value)[1] != value:
        raise ValueError("is not a mail address. Set one such as support@company.com")
    return check_mail_sender(value, info)


def check_distinct_names(public_url: str | None, base_domain: str | None) -> None:
    """Raise ``ValueError`` if a customer's instance could get the host name of the API. None is a faulty setting."""
    host = (urlsplit(public_url).hostname or "").rstrip(".") if public_url else ""
    base = base_domain.rstrip(".").lower() if base_domain else ""
    if base and host.partition(".")[2] == base:
        raise ValueError(
            f"gives customers' instances names beside {host}, so that one could order that name."
            " Set a separate domain for instances, such as apps.company.com"
        )


def check_host(value: str) -> str:
    """Require the name or the address of a host, without a scheme or a port."""
    if parse_address(value) is None and not DOMAIN.fullmatch(value.rstrip(".")):
        raise ValueError("is not a host. Set its name or address alone, such as smtp.company.com")
    return value


def check_metrics_host(value: str, info: ValidationInfo) -> str:
    """Refuse to serve metrics on every address, or on one of the Internet, where customers are real."""
    address = parse_address(value)
    if address is None:
        return value
    address = getattr(address, "ipv4_mapped", None) or address
    if is_deployed(info) and info.data.get("metrics_port") and (address.is_unspecified or address.is_global):
        raise ValueError(
            f"is {value}: anyone could read the metrics. Set the address of this machine in the network of the"
            " monitoring system"
        )
    return value


def check_base_domain(value: str, info: ValidationInfo) -> str:
    """Require a domain name; refuse one that resolves to the customer's own machine."""
    if not is_loopback(value) and not DOMAIN.fullmatch(value):
        raise ValueError("is not a domain name. Set one such as apps.company.com")
    if is_deployed(info) and is_loopback(value):
        raise ValueError(f"is {value}, which only this machine reaches. Set the domain that instances get names below")
    return value


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine. An empty name counts as such."""
    name = host.rstrip(".").lower()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    address = parse_address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def parse_address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that ``host`` is, or None for a name.

    Programs that resolve names take other spellings of IPv4 addresses as well: ``0``, ``127.1``, ``0x7f000001``.
    """
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None
