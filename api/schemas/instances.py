"""Instances and what is done to them."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from api.response_envelope import Instant, ResponseModel
from api.schemas.catalogue import ResourcesOut, resources_of
from db.queries.instance_reads import InstanceDetails, OperationDetails


class ConditionOut(ResponseModel):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    at: Instant | None = None


class InstanceOut(TypedDict):
    """``reason`` is a stable code that says why it is not ready; ``conditions`` say it in words."""

    id: str
    subscription_id: str
    status: str
    reason: str | None
    url: str | None
    hostname: str
    namespace: str
    service: str
    version: str
    resources: ResourcesOut
    parameters: dict[str, Any]
    conditions: list[ConditionOut]
    created_at: Instant
    ready_at: Instant | None
    deleted_at: Instant | None
    workflow_id: str


class OperationOut(ResponseModel):
    """``reason`` is a stable code of why it failed; ``message`` says it in words."""

    id: str
    kind: str
    status: str
    reason: str | None = None
    message: str | None = None
    created_at: Instant | None = None
    started_at: Instant | None = None
    finished_at: Instant | None = None
    workflow_id: str | None = None


class OperationStarted(ResponseModel):
    operation: OperationOut


class CredentialsOut(ResponseModel):
    """The first administrator's. ``url`` is where to sign in."""

    url: str
    username: str
    password: str


def instance_out(row: InstanceDetails, workflow_id: str) -> InstanceOut:
    return InstanceOut(
        id=row.id,
        subscription_id=row.subscription_id,
        status=row.status,
        reason=row.failure_reason,
        url=row.url,
        hostname=row.hostname,
        namespace=row.namespace,
        service=row.service_slug,
        version=row.version,
        resources=resources_of(row),
        parameters=row.parameters,
        conditions=[ConditionOut.model_validate(condition) for condition in row.conditions],
        created_at=row.created_at,
        ready_at=row.ready_at,
        deleted_at=row.deleted_at,
        workflow_id=workflow_id,
    )


def operation_out(row: OperationDetails, workflow_id: str) -> OperationOut:
    return OperationOut(
        id=row.id,
        kind=row.kind,
        status=row.status,
        reason=row.failure_reason,
        message=row.message,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        workflow_id=workflow_id,
    )
