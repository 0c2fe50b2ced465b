"""Is it alive, is everything there that it needs, and how is it doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any

import temporalio.api.enums.v1
import temporalio.api.taskqueue.v1
import temporalio.api.workflowservice.v1
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import text
from starlette.responses import Response

from api.context import Context
from api.deps import Address, Ctx, limit_by_address, signed_in, within
from api.envelope import Json, instant_text, now
from api.errors import RETRY_AFTER_SECONDS, ApiError, documented, not_found
from api.families import family
from workflows import names

router = family("system", under="")

CHECK_SECONDS = 2.0
_bearer = HTTPBearer(auto_error=False)


@router.get("/health")
async def health() -> Json:
    """Whether this process answers; it asks nobody."""
    return Json({"success": True, "data": {"status": "ok"}, "status": "ok", "timestamp": instant_text(now())})


@router.get("/status", dependencies=[Depends(limit_by_address)], responses=documented(429))
async def status(
    ctx: Ctx, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
) -> Json:
    """Each dependency with its latency. 200 as long as reads and sign-in work, 503 without the database.

    Administrators are also told what is wrong.
    """
    checks: dict[str, Callable[[Context], Awaitable[Any]]] = {
        "database": _database, "temporal": _temporal, "workers": _workers,
    }  # fmt: skip
    told = _is_administrator(ctx, credentials)
    found = await asyncio.gather(*(_check(check, ctx, told) for check in checks.values()))
    dependencies = dict(zip(checks, found, strict=True))
    up = {name: item["status"] == "ok" for name, item in dependencies.items()}
    overall = "ok" if all(up.values()) else "degraded" if up["database"] else "unavailable"
    content = {
        "success": overall != "unavailable",
        "data": {"status": overall, "dependencies": dependencies},
        "status": overall,
        "timestamp": instant_text(now()),
    }
    if overall != "unavailable":
        return Json(content)
    content["error"] = {"code": "UNAVAILABLE", "message": "The database is not available.", "details": {}}
    return Json(content, status_code=503, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


@router.get("/metrics", response_class=Response)
async def metrics(ctx: Ctx, host: Address) -> Response:
    """Prometheus' text; only for the networks that ``BERTH_METRICS_ALLOW`` names, where it names any."""
    if not within(host, ctx.settings.metrics_allow):
        raise not_found("page")
    return Response(ctx.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _is_administrator(ctx: Context, credentials: HTTPAuthorizationCredentials | None) -> bool:
    if credentials is None:
        return False
    try:
        return signed_in(ctx, credentials.credentials).is_administrator
    except ApiError:
        return False


async def _check(check: Callable[[Context], Awaitable[Any]], ctx: Context, told: bool) -> dict[str, Any]:
    """Never longer than ``CHECK_SECONDS``, whatever hangs."""
    began = time.perf_counter()
    asking = asyncio.ensure_future(check(ctx))
    await asyncio.wait({asking}, timeout=CHECK_SECONDS)
    found: dict[str, Any] = {"status": "ok", "latency_ms": round((time.perf_counter() - began) * 1000, 2)}
    if not asking.done():
        asking.cancel()
        asking.add_done_callback(lambda done: None if done.cancelled() else _seen(done))
        problem: str | None = f"no answer within {CHECK_SECONDS:g} s"
    else:
        error = asking.exception()
        problem = None if error is None else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if error is None and told and asking.result():
            found["details"] = asking.result()
    if problem is not None:
        found["status"] = "unavailable"
        if told:
            found["problem"] = problem
    return found


def _seen(done: asyncio.Future[Any]) -> None:
    done.exception()


async def _database(ctx: Context) -> dict[str, Any]:
    async with ctx.sessions() as session:
        version = await session.scalar(text("SHOW server_version"))
    return {"version": version}


async def _temporal(ctx: Context) -> dict[str, Any]:
    client = ctx.orchestrator.client
    reply = await client.workflow_service.get_system_info(
        temporalio.api.workflowservice.v1.GetSystemInfoRequest(), timeout=timedelta(seconds=CHECK_SECONDS)
    )
    return {"version": reply.server_version, "namespace": client.namespace}


class NoWorkers(Exception):
    """Nobody has asked for work lately: orders are accepted and wait."""


async def _workers(ctx: Context) -> dict[str, Any]:
    client = ctx.orchestrator.client
    reply = await client.workflow_service.describe_task_queue(
        temporalio.api.workflowservice.v1.DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=temporalio.api.taskqueue.v1.TaskQueue(name=names.PLATFORM),
            task_queue_type=temporalio.api.enums.v1.TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        ),
        timeout=timedelta(seconds=CHECK_SECONDS),
    )
    if not reply.pollers:
        raise NoWorkers(f"nobody polls {names.PLATFORM}")
    return {"pollers": len(reply.pollers)}
