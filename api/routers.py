"""The routers of the API, one line each."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import BaseRoute

from api.router_factory import PREFIX
from api.routes import (
    auth,
    billing,
    catalogue,
    docs,
    instances,
    mail_link_pages,
    payments,
    sandbox_clock,
    subscriptions,
    system,
    users,
    webhooks,
)
from api.routes.admin import catalogue as admin_catalogue
from api.routes.admin import organizations as admin_organizations


def all_routes(*, sandbox: bool) -> list[BaseRoute]:
    """Return every route in the order in which the application matches them; sandbox routes only in the sandbox.

    They are asked one after the other, those that are requested most before others.
    """
    all_routers = [
        billing.router,
        instances.router,
        subscriptions.router,
        payments.router,
        auth.router,
        users.router,
        catalogue.router,
        webhooks.router,
        admin_organizations.router,
        admin_catalogue.router,
        *([sandbox_clock.router] if sandbox else []),
        system.router,
        docs.router,
        mail_link_pages.router,
    ]
    return [route for router in all_routers for route in router.routes]


def timeout_overrides(*, sandbox: bool) -> Mapping[str, float]:
    """Return the paths with another time limit than other requests, and the limit in seconds."""
    return {f"{PREFIX}{sandbox_clock.PATH}": sandbox_clock.TIMEOUT_SECONDS} if sandbox else {}
