"""The FastAPI application. It connects on first use, so that it starts while its dependencies are unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta

from fastapi import FastAPI
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from api import errors, routers
from api.app_context import AppContext
from api.metrics import ApiMetrics
from api.middleware import RequestMiddleware
from api.passwords import PasswordHasher
from api.ratelimit import RateLimiter
from api.revocations import RevocationCache
from api.schema_check import DatabaseCheck
from api.settings import ApiSettings, load_settings
from api.strict_json import StrictJsonMiddleware
from api.tokens import AccessTokens
from db.session import create_database_engine, session_factory
from workflows.client import WorkflowClient
from workflows.connection import connect

VERSION = "0.1.0"
MAX_STATEMENT_MILLISECONDS = 8000
DESCRIPTION = (
    "Managed open-source software: choose an application, pay, and get an isolated instance that is looked after.\n\n"
    "Every answer is an envelope: `success`, `data` or `error`, `timestamp`. Amounts are whole minor units with their"
    " currency, instants RFC 3339 in UTC, ids opaque. Lists are paged by `cursor`."
)


def create_app(settings: ApiSettings | None = None) -> FastAPI:
    """Return the application; ``settings`` None reads the environment.

    Raises:
        pydantic.ValidationError: the environment lacks something or says something impossible.
    """
    settings = settings or load_settings()
    metrics = ApiMetrics()
    app = FastAPI(
        title="Berth",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan(settings, metrics),
        routes=routers.all_routes(sandbox=settings.is_sandbox),
        openapi_url="/openapi.json",
        # `routes/docs.py` serves the pages without third-party servers.
        docs_url=None,
        redoc_url=None,
    )
    errors.install_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(StrictJsonMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=1)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After", "Idempotent-Replayed"],
            max_age=600,
        )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        seconds=settings.request_timeout_seconds,
        https=settings.public_url.startswith("https://"),
        patient=routers.timeout_overrides(sandbox=settings.is_sandbox),
    )
    return app


def _lifespan(settings: ApiSettings, metrics: ApiMetrics) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = _engine(settings)
        client = await connect(settings.temporal, lazy=True)
        sessions = session_factory(engine, encryptor=settings.field_encryption)
        revocations = RevocationCache(sessions, every=settings.revocation_refresh_seconds)
        app.state.context = AppContext(
            settings=settings,
            engine=engine,
            sessions=sessions,
            workflows=WorkflowClient(client),
            tokens=AccessTokens(settings.jwt_keys, lifetime=timedelta(seconds=settings.access_token_seconds)),
            passwords=PasswordHasher(),
            revocations=revocations,
            rate_limits=RateLimiter(settings.rate_limit_storage if settings.rate_limit == "on" else None),
            metrics=metrics,
        )
        revocation_task = asyncio.create_task(revocations.run(), name="revocations")
        try:
            yield
        finally:
            revocation_task.cancel()
            with suppress(asyncio.CancelledError):
                await revocation_task
            await app.state.context.wait_for_tasks_after_responses()
            await app.state.context.cancel_detached()
            await engine.dispose()

    return lifespan


def _engine(settings: ApiSettings) -> AsyncEngine:
    # A transaction ends with its request: one that is idle for longer was abandoned, and holds its locks.
    limit = int(settings.request_timeout_seconds * 1000)
    url = make_url(settings.api_database_url.get_secret_value()).update_query_dict(
        {
            "options": f"-c timezone=UTC -c statement_timeout={min(limit, MAX_STATEMENT_MILLISECONDS)}"
            f" -c idle_in_transaction_session_timeout={limit}"
        }
    )
    engine = create_database_engine(
        url.render_as_string(hide_password=False),
        pool_size=settings.database_pool_size,
        timeout_seconds=settings.database_timeout_seconds,
        explicit_begin=True,
    )
    return DatabaseCheck("API").attach(engine)
