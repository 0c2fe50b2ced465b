"""What the application holds: engines, clients and keepers, made once per process."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from api.metrics import Metrics
from api.passwords import Passwords
from api.ratelimit import RateLimits
from api.revocations import Revocations
from api.settings import Settings
from api.tokens import Tokens
from db.session import Sessions
from workflows.client import Orchestrator


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    settings: Settings
    sessions: Sessions
    orchestrator: Orchestrator
    tokens: Tokens
    passwords: Passwords
    revocations: Revocations
    rate_limits: RateLimits
    metrics: Metrics


def context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found
