"""Every operation of the schema with what the schema allows and with what it forbids: never a fault of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.stack import Customer, RunningStack

OPENAPI = Path(__file__).resolve().parents[2] / "openapi.json"
EXAMPLES = 12
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
def somebody(stack: RunningStack) -> Customer:
    return stack.register()


@pytest.mark.scenario("S10")
@pytest.mark.parametrize(("path", "method"), list(_operations()))
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_brings_it_down(
    stack: RunningStack, schema: Any, somebody: Customer, path: str, method: str, mode: GenerationMode
) -> None:
    caller = stack.administrator() if "/admin/" in path else somebody
    operation = schema[path][method.upper()]

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
        if caller.token and caller.call("GET", "/api/v1/users/me")[0] == 401:
            caller.sign_in()
        response = case.call(base_url=stack.api, headers={"Authorization": f"Bearer {caller.token}"}, timeout=20)
        if response.status_code == 503 and "Retry-After" in response.headers:
            return
        case.validate_response(response, checks=CHECKS)

    answered()
