"""Which families of routes there are. One line each; an area's module says no prefix twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from api.routes import auth, pages, system, users


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A router under ``/api/v1`` and what holds for all of it."""

    router: APIRouter
    dependencies: tuple[Callable[..., Any], ...] = ()


def listed(*, sandbox: bool) -> Iterator[Area]:
    """Everything under ``/api/v1``. What is the sandbox's own exists nowhere else, not even in the schema."""
    yield Area(router=auth.router)
    yield Area(router=users.router)


def outside() -> Iterator[APIRouter]:
    """What has fixed addresses of its own."""
    yield system.router
    yield pages.router
