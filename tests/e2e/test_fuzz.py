"""Every operation of the schema with what the schema allows and with what it forbids: never a fault of our own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.steps import card, invoices, order_until_ready, top_up
from tests.support.running_stack import ApiUser, RunningStack

OPENAPI = Path(__file__).resolve().parents[2] / "openapi.json"
EXAMPLES = int(os.environ.get("BERTH_FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# It moves clocks for minutes; its own tests drive it.
LEFT_OUT = {"/api/v1/sandbox/clock/advance"}
METHODS = {"get", "post", "put", "patch", "delete"}


def _operations() -> Iterator[Any]:
    for path, methods in json.loads(OPENAPI.read_text())["paths"].items():
        for method in sorted(METHODS & methods.keys()):
            if path not in LEFT_OUT:
                yield pytest.param(path, method, id=f"{method.upper()} {path}")


@pytest.fixture(scope="module")
def schema(stack: RunningStack) -> Any:
    """What the running API says of itself."""
    return schemathesis.openapi.from_dict(httpx.get(f"{stack.api}/openapi.json", timeout=20).json())


@pytest.fixture(scope="module")
def fuzzed_user(stack: RunningStack) -> ApiUser:
    return stack.register()


@pytest.fixture(scope="module")
def existing_ids(fuzzed_user: ApiUser) -> dict[str, str]:
    """Ids that exist, by the name of the parameter that takes them: unknown ones never get past the front door."""
    saved, paid = card(fuzzed_user), top_up(fuzzed_user, 1500)
    subscription = order_until_ready(fuzzed_user)
    (invoice,) = invoices(fuzzed_user, subscription["id"])
    return {
        "subscription_id": subscription["id"],
        "instance_id": subscription["instance"]["id"],
        "invoice_id": invoice["id"],
        "payment_id": paid["id"],
        "payment_method_id": saved["id"],
        "plan_id": fuzzed_user.plan("n8n-pro"),
        "slug": "n8n",
    }


@pytest.mark.scenario("S10")
@pytest.mark.parametrize(("path", "method"), list(_operations()))
def test_no_request_makes_the_api_fail(
    stack: RunningStack,
    administrator: ApiUser,
    schema: Any,
    fuzzed_user: ApiUser,
    existing_ids: dict[str, str],
    path: str,
    method: str,
) -> None:
    caller = administrator if "/admin/" in path else fuzzed_user
    operation = schema[path][method.upper()]

    def ask(case: Any) -> None:
        response = case.call(base_url=stack.api, headers={"Authorization": f"Bearer {caller.token}"}, timeout=20)
        if response.status_code == 401 and path != "/api/v1/auth/login":
            caller.sign_in()
        if response.status_code == 503 and "Retry-After" in response.headers:
            return
        case.validate_response(response, checks=CHECKS)

    for mode in GenerationMode:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def answered(case: Any) -> None:
            ask(case)
            existing = {name: existing_ids[name] for name in case.path_parameters or {} if name in existing_ids}
            if existing:
                case.path_parameters.update(existing)
                ask(case)

        try:
            answered()
        except Unsatisfiable:
            # It takes nothing that could be wrong.
            assert mode is GenerationMode.NEGATIVE
    # No request changed a session, a role or a wallet of another account.
    assert caller.request("GET", "/api/v1/users/me")[0] in (200, 401)


def test_the_documentation_loads_nothing_from_other_hosts(stack: RunningStack) -> None:
    for page in ("/docs", "/redoc"):
        response = httpx.get(f"{stack.api}{page}", timeout=10)
        assert response.status_code == 200
        parts = re.findall(r'(?:src|href)="([^"]+)"', response.text)
        assert len(parts) >= 2
        for part in parts:
            assert part.startswith("/"), part
            assert httpx.get(f"{stack.api}{part}", timeout=10).status_code == 200, part
        assert "unsafe-inline" not in response.headers["Content-Security-Policy"].partition("style-src")[0]
