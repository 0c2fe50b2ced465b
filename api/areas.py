"""Which families of routes there are. One line each; an area's module says no prefix twice."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import BaseRoute

from api.families import PREFIX
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


def routes(*, sandbox: bool) -> list[BaseRoute]:
    """Every route, as the application is to search them. What is the sandbox's own exists nowhere else, not even in the
    schema."""
    families = [
        auth.router,
        users.router,
        services.router,
        subscriptions.router,
        instances.router,
        billing.router,
        payments.router,
        webhooks.router,
        admin.router,
        admin_catalogue.router,
        *([sandbox_clock.router] if sandbox else []),
        system.router,
        docs.router,
        pages.router,
    ]
    return [route for router in families for route in router.routes]


def patient(*, sandbox: bool) -> Mapping[str, float]:
    """Paths that may take longer than a request usually may, and how many seconds."""
    return {f"{PREFIX}{sandbox_clock.PATH}": sandbox_clock.SECONDS} if sandbox else {}
