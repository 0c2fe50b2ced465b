"""Is it alive, is everything there that it needs, and how is it doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import temporalio.api.enums.v1
import temporalio.api.taskqueue.v1
import temporalio.api.workflowservice.v1
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials
from sqlalchemy import text
from starlette.responses import Response

from api.app_context import AppContext
from api.dependencies.authentication import BearerCredentials, authenticate, is_address_allowed
from api.dependencies.context import Address, AppContextDep
from api.dependencies.rate_limits import rate_limit_by_address
from api.errors import RETRY_AFTER_SECONDS, ApiError, error_responses, not_found_error
from api.response_envelope import JsonResponse, format_instant, now
from api.router_factory import api_router
from workflows import names

router = api_router("system", base_path="")

CHECK_SECONDS = 2.0


@router.get("/health")
async def health() -> JsonResponse:
    """Return that this process responds; no dependency is checked."""
    return JsonResponse({"success": True, "data": {"status": "ok"}, "status": "ok", "timestamp": format_instant(now())})


@router.get("/status", dependencies=[Depends(rate_limit_by_address)], responses=error_responses(429))
async def status(ctx: AppContextDep, credentials: BearerCredentials = None) -> JsonResponse:
    """Each dependency with its latency. 200 as long as reads and sign-in work, 503 without the database.

    For administrators, the response includes versions and error messages.
    """
    checks: dict[str, Callable[[AppContext], Awaitable[Any]]] = {
        "database": _database, "temporal": _temporal, "workers": _workers,
    }  # fmt: skip
    include_details = _is_administrator(ctx, credentials)
    results = await asyncio.gather(*(_check(check, ctx, include_details) for check in checks.values()))
    dependencies = dict(zip(checks, results, strict=True))
    up = {name: item["status"] == "ok" for name, item in dependencies.items()}
    overall = "ok" if all(up.values()) else "degraded" if up["database"] else "unavailable"
    content = {
        "success": overall != "unavailable",
        "data": {"status": overall, "dependencies": dependencies},
        "status": overall,
        "timestamp": format_instant(now()),
    }
    if overall != "unavailable":
        return JsonResponse(content)
    content["error"] = {"code": "UNAVAILABLE", "message": "The database is not available.", "details": {}}
    return JsonResponse(content, status_code=503, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


@router.get("/metrics", response_class=Response)
async def metrics(ctx: AppContextDep, host: Address) -> Response:
    """Prometheus' text; only for the networks that ``BERTH_METRICS_ALLOWED_NETWORKS`` names, where it names any."""
    if not is_address_allowed(host, ctx.settings.metrics_allowed_networks):
        raise not_found_error("page")
    return Response(ctx.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _is_administrator(ctx: AppContext, credentials: HTTPAuthorizationCredentials | None) -> bool:
    if credentials is None:
        return False
    try:
        return authenticate(ctx, credentials.credentials).is_administrator
    except ApiError:
        return False


async def _check(
    check: Callable[[AppContext], Awaitable[Any]], ctx: AppContext, include_details: bool
) -> dict[str, Any]:
    """Never longer than ``CHECK_SECONDS``, whatever hangs."""
    began = time.perf_counter()
    asking = asyncio.ensure_future(check(ctx))
    await asyncio.wait({asking}, timeout=CHECK_SECONDS)
    result: dict[str, Any] = {"status": "ok", "latency_ms": round((time.perf_counter() - began) * 1000, 2)}
    if not asking.done():
        asking.cancel()
        asking.add_done_callback(lambda done: None if done.cancelled() else _consume_exception(done))
        problem: str | None = f"health check timed out after {CHECK_SECONDS:g} s"
    else:
        error = asking.exception()
        problem = None if error is None else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if error is None and include_details and asking.result():
            result["details"] = asking.result()
    if problem is not None:
        result["status"] = "unavailable"
        if include_details:
            result["problem"] = problem
    return result


def _consume_exception(done: asyncio.Future[Any]) -> None:
    done.exception()


async def _database(ctx: AppContext) -> dict[str, Any]:
    async with ctx.sessions() as session:
        version = await session.scalar(text("SHOW server_version"))
    return {"version": version}


async def _temporal(ctx: AppContext) -> dict[str, Any]:
    client = ctx.workflows.client
    reply = await client.workflow_service.get_system_info(
        temporalio.api.workflowservice.v1.GetSystemInfoRequest(), timeout=timedelta(seconds=CHECK_SECONDS)
    )
    return {"version": reply.server_version, "namespace": client.namespace}


class NoPollers(Exception):
    """No worker polls the task queue: orders are accepted and wait."""


async def _workers(ctx: AppContext) -> dict[str, Any]:
    client = ctx.workflows.client
    reply = await client.workflow_service.describe_task_queue(
        temporalio.api.workflowservice.v1.DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=temporalio.api.taskqueue.v1.TaskQueue(name=names.PLATFORM_QUEUE),
            task_queue_type=temporalio.api.enums.v1.TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        ),
        timeout=timedelta(seconds=CHECK_SECONDS),
    )
    if not reply.pollers:
        raise NoPollers(f"no worker polls the task queue {names.PLATFORM_QUEUE}")
    return {"pollers": len(reply.pollers)}
