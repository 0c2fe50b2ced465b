"""Puts the API together. Nothing is connected before it is needed: it starts and answers while others are away."""

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

from api import areas, errors
from api.bodies import Bodies
from api.context import Context
from api.metrics import Metrics
from api.middleware import Around
from api.passwords import Passwords
from api.ratelimit import RateLimits
from api.revocations import Revocations
from api.settings import Settings, load
from api.tokens import Tokens
from db.session import create_engine, session_factory
from workflows.client import Orchestrator, connect

VERSION = "0.1.0"
DESCRIPTION = (
    "Managed open-source software: choose an application, pay, and get an isolated instance that is looked after.\n\n"
    "Every answer is an envelope: `success`, `data` or `error`, `timestamp`. Amounts are whole minor units with their"
    " currency, instants RFC 3339 in UTC, ids opaque. Lists are paged by `cursor`."
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; ``settings`` None reads the environment.

    Raises:
        pydantic.ValidationError: the environment lacks something or says something impossible.
    """
    told = settings or load()
    metrics = Metrics()
    app = FastAPI(
        title="Berth",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan(told, metrics),
        routes=areas.routes(sandbox=told.sandbox),
        openapi_url="/openapi.json",
        # `routes/docs.py` serves the pages without anybody else's servers.
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(Bodies, limit=told.body_limit)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    if told.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(told.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After", "Idempotent-Replayed"],
            max_age=600,
        )
    app.add_middleware(
        Around,
        metrics=metrics,
        seconds=told.request_seconds,
        https=told.public_url.startswith("https://"),
        patient=areas.patient(sandbox=told.sandbox),
    )
    return app


def _lifespan(settings: Settings, metrics: Metrics) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = _engine(settings)
        client = await connect(settings.temporal, lazy=True)
        sessions = session_factory(engine, sealer=settings.sealer)
        revocations = Revocations(sessions, every=settings.revocation_refresh_seconds)
        app.state.context = Context(
            settings=settings,
            sessions=sessions,
            orchestrator=Orchestrator(client),
            tokens=Tokens(settings.jwt_keys, lifetime=timedelta(seconds=settings.access_token_seconds)),
            passwords=Passwords(),
            revocations=revocations,
            rate_limits=RateLimits(settings.rate_limit_storage if settings.rate_limit == "on" else None),
            metrics=metrics,
        )
        reading = asyncio.create_task(revocations.run(), name="revocations")
        try:
            yield
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await app.state.context.forget_abandoned()
            await engine.dispose()

    return lifespan


def _engine(settings: Settings) -> AsyncEngine:
    url = make_url(settings.api_database_url.get_secret_value()).update_query_dict(
        {"options": "-c timezone=UTC -c statement_timeout=8000 -c idle_in_transaction_session_timeout=60000"}
    )
    engine = create_engine(
        url.render_as_string(hide_password=False),
        pool_size=settings.database_pool,
        timeout_seconds=settings.database_seconds,
    )
    # A failing statement is reported without what was in it.
    engine.sync_engine.hide_parameters = True
    return engine
