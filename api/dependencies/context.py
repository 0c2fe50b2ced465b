"""The application's context, and the request's id and client address.

Every dependency is a coroutine function: FastAPI would run a plain function in a thread.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.app_context import AppContext
from workflows.client import WorkflowClient


def app_context(request: Request) -> AppContext:
    """Return the context of the application that serves this request."""
    context: AppContext = request.app.state.context
    return context


def client_address(request: Request) -> str:
    """Return the client's address. Behind a proxy, uvicorn sets it from the proxies in ``BERTH_TRUSTED_PROXIES``."""
    return request.client.host if request.client else "unknown"


async def get_app_context(request: Request) -> AppContext:
    return app_context(request)


async def get_workflow_client(request: Request) -> WorkflowClient:
    return app_context(request).workflows


async def get_request_id(request: Request) -> str:
    return str(request.state.request_id)


async def get_client_address(request: Request) -> str:
    return client_address(request)


AppContextDep = Annotated[AppContext, Depends(get_app_context)]
Workflows = Annotated[WorkflowClient, Depends(get_workflow_client)]
RequestId = Annotated[str, Depends(get_request_id)]
Address = Annotated[str, Depends(get_client_address)]
