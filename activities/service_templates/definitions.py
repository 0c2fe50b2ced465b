"""Reads the definition of a service, ``service.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema.protocols import Validator

from activities.service_templates.manifests import YAML_LOADER, InvalidTemplate
from workflows.json_schema import build_validator, find_schema_fault
from workflows.rules.errors import ErrorCode, RuleViolation


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedSecret:
    """A random value of a Secret."""

    length: int
    alphabet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BcryptHash:
    """The bcrypt hash of another value of the same Secret, named by ``bcrypt``."""

    bcrypt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerValue:
    """An attribute of the customer; ``customer`` is ``email``. The parameter named by ``parameter`` overrides it."""

    customer: str
    parameter: str | None = None


SecretValue = GeneratedSecret | BcryptHash | CustomerValue


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """The first administrator's credentials: two keys of one Secret, and the path of the sign-in page."""

    secret: str
    username: str
    password: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTemplate:
    """One ``service.yaml``. ``definition`` is the whole document, for the catalogue."""

    slug: str
    definition: Mapping[str, Any]
    secrets: Mapping[str, Mapping[str, SecretValue]]
    credentials: SignIn | None
    ready_within_seconds: int
    backup_cron_job: str | None
    validator: Validator

    @property
    def version(self) -> str:
        return str(self.definition["version"])

    def resolve_parameters(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Return the customer's choices with defaults filled in.

        Raises:
            RuleViolation: ``VALIDATION_ERROR`` with the field's path and the reason.
        """
        properties: Mapping[str, Any] = self.definition["parameters"].get("properties", {})
        filled = {name: schema["default"] for name, schema in properties.items() if "default" in schema} | dict(choices)
        for error in self.validator.iter_errors(filled):
            path = ".".join(str(part) for part in error.absolute_path) or "parameters"
            raise RuleViolation(ErrorCode.VALIDATION_ERROR, f"{path}: {error.message}", {"field": path})
        return filled


def load_service(file: Path) -> ServiceTemplate:
    """Read one ``service.yaml``.

    Raises:
        InvalidTemplate: It is not YAML, the slug is not the folder, the version has no images, the schema of the
            parameters cannot be used, or a key is missing.
    """
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), Loader=YAML_LOADER)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidTemplate(f"{file}: {error}") from error
    try:
        if document["slug"] != file.parent.name or str(document["version"]) not in document["versions"]:
            raise InvalidTemplate(f"{file}: the slug is not the folder, or the version is not in versions")
        if (fault := find_schema_fault(document["parameters"])) is not None:
            raise InvalidTemplate(f"{file}: parameters: {fault}")
        return ServiceTemplate(
            slug=document["slug"],
            definition=document,
            secrets={
                name: {key: _secret_value(declaration) for key, declaration in keys.items()}
                for name, keys in document.get("secrets", {}).items()
            },
            credentials=SignIn(**document["credentials"]) if "credentials" in document else None,
            ready_within_seconds=document["ready_within_seconds"],
            backup_cron_job=document.get("backup", {}).get("cron_job"),
            validator=build_validator(document["parameters"]),
        )
    except (KeyError, TypeError) as error:
        raise InvalidTemplate(f"{file}: {error!r}") from error


def _secret_value(declaration: Mapping[str, Any]) -> SecretValue:
    if "bcrypt" in declaration:
        return BcryptHash(**declaration)
    return CustomerValue(**declaration) if "customer" in declaration else GeneratedSecret(**declaration)
