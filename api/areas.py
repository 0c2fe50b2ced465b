"""Which families of routes there are. One line each; an area's module says no prefix twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from api.routes import (
    admin,
    admin_catalogue,
    auth,
    billing,
    docs,
    instances,
    pages,
    payments,
    sandbox_clock,
    services,
    subscriptions,
    system,
    users,
    webhooks,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A router under ``/api/v1`` and what holds for all of it."""

    router: APIRouter
    dependencies: tuple[Callable[..., Any], ...] = ()


def listed(*, sandbox: bool) -> Iterator[Area]:
    """Everything under ``/api/v1``. What is the sandbox's own exists nowhere else, not even in the schema."""
    yield Area(router=auth.router)
    yield Area(router=users.router)
    yield Area(router=services.router)
    yield Area(router=subscriptions.router)
    yield Area(router=instances.router)
    yield Area(router=billing.router)
    yield Area(router=payments.router)
    yield Area(router=webhooks.router)
    yield Area(router=admin.router)
    yield Area(router=admin_catalogue.router)
    if sandbox:
        yield Area(router=sandbox_clock.router)


def patient(*, sandbox: bool) -> Mapping[str, float]:
    """Paths that may take longer than a request usually may, and how many seconds."""
    return {f"/api/v1{sandbox_clock.PATH}": sandbox_clock.SECONDS} if sandbox else {}


def outside() -> Iterator[APIRouter]:
    """What has fixed addresses of its own."""
    yield system.router
    yield docs.router
    yield pages.router
