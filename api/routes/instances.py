"""Instances: reads from the database; operations are updates of the subscription that owns the instance."""

from __future__ import annotations

from typing import Literal

import structlog
from cryptography.exceptions import InvalidTag
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Address, AppContextDep, RequestId, Workflows
from api.dependencies.transactions import Reads, Session
from api.errors import AUTHENTICATED_RESPONSES, ApiError, conflict_error, not_found_error, unavailable_error
from api.idempotency import IdempotentRequest, OptionalIdempotency
from api.locks import SUBSCRIPTION_LOCKS
from api.pagination import FullPage, created_cursor
from api.response_envelope import Envelope, JsonResponse, Page, format_instant, list_response, now, success
from api.router_factory import PathId, api_router
from api.schemas.instances import (
    CredentialsOut,
    InstanceOut,
    OperationOut,
    OperationStarted,
    instance_out,
    operation_out,
)
from db.encryption import UnknownEncryptionKey
from db.queries import credentials, instance_reads
from db.queries.instance_reads import InstanceDetails, OperationDetails
from db.reads import SessionReader
from workflows import names
from workflows.client import UpdateResult
from workflows.ports.instances import OperationStatus
from workflows.ports.subscription import CustomerOperation, StartOperation, SubscriptionResult
from workflows.rules.errors import ErrorCode
from workflows.rules.instance import PROVISIONED_STATUSES, InstanceStatus, require_operation_allowed

log = structlog.get_logger("api.instances")

router = api_router("instances", prefix="/instances", responses=AUTHENTICATED_RESPONSES)


@router.get("", response_model=Page[InstanceOut])
async def instances(reads: Reads, page: FullPage, status: InstanceStatus | None = None) -> Response:
    rows = await instance_reads.list_instances(
        reads, reads.organization_id, limit=page.limit + 1, after=created_cursor(page), status=status
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([_to_response(row) for row in items], meta, page.fields)


@router.get("/{instance_id}", response_model=Envelope[InstanceOut])
async def instance(reads: Reads, instance_id: PathId) -> JsonResponse:
    row = await instance_reads.get_instance(reads, instance_id, reads.organization_id)
    if row is None:
        raise not_found_error("instance")
    return success(_to_response(row))


@router.post("/{instance_id}/backups", response_model=Envelope[OperationStarted], status_code=202)
async def create_backup(instance_id: PathId, once: OptionalIdempotency, workflows: Workflows) -> Response:
    return await _operate(once, workflows, instance_id, CustomerOperation.BACKUP)


@router.post("/{instance_id}/credentials", response_model=Envelope[CredentialsOut])
async def hand_over_credentials(
    session: Session,
    ctx: AppContextDep,
    caller: AuthenticatedCaller,
    instance_id: PathId,
    request_id: RequestId,
    address: Address,
) -> JsonResponse:
    """Return the first administrator's credentials, once. Any later call answers 409 `CONFLICT`.

    The audit log records to whom they were handed over. `Idempotency-Key` has no effect here: a stored answer would be
    a stored password.
    """
    sealed = await credentials.take(
        session,
        instance_id=instance_id,
        organization_id=caller.organization_id,
        user_id=caller.user_id,
        statuses=PROVISIONED_STATUSES,
        at=now(),
        ip=address,
        request_id=request_id,
    )
    if sealed is None:
        raise await _why_no_credentials(session, instance_id, caller.organization_id)
    encryption = ctx.settings.field_encryption
    # Raising rolls the transaction back: what cannot be opened is not used up.
    if encryption is None:
        raise unavailable_error("The credential store")
    try:
        plain = encryption.decrypt_mapping(sealed, purpose=credentials.purpose(instance_id))
    except (UnknownEncryptionKey, InvalidTag) as error:
        log.error("credentials cannot be opened", instance=instance_id, error=type(error).__name__)
        raise unavailable_error("The credential store") from error
    return success(CredentialsOut(**plain), "These credentials are shown once. Store them now.")


@router.post("/{instance_id}/{kind}", response_model=Envelope[OperationStarted], status_code=202)
async def operate(
    instance_id: PathId,
    kind: Literal["restart", "stop", "start"],
    once: OptionalIdempotency,
    workflows: Workflows,
) -> Response:
    """Start an operation. 409 `CONFLICT` while another operation of the instance is in progress."""
    return await _operate(once, workflows, instance_id, CustomerOperation(kind))


@router.get("/{instance_id}/operations", response_model=Page[OperationOut])
async def operations(reads: Reads, instance_id: PathId, page: FullPage) -> Response:
    rows = await instance_reads.list_operations(
        reads, instance_id, reads.organization_id, limit=page.limit + 1, after=created_cursor(page)
    )
    if rows is None:
        raise not_found_error("instance")
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([_to_operation_response(row) for row in items], meta, page.fields)


@router.get("/{instance_id}/operations/{operation_id}", response_model=Envelope[OperationOut])
async def operation(reads: Reads, instance_id: PathId, operation_id: PathId) -> JsonResponse:
    row = await instance_reads.get_operation(reads, instance_id, operation_id, reads.organization_id)
    if row is None:
        raise not_found_error("operation")
    return success(_to_operation_response(row))


async def _operate(
    once: IdempotentRequest, workflows: Workflows, instance_id: str, kind: CustomerOperation
) -> Response:
    operation_id = once.derive_id("op")

    async def prepare(session: AsyncSession) -> str:
        instance = await instance_reads.get_instance(SessionReader(session), instance_id, once.caller.organization_id)
        if instance is None:
            raise not_found_error("instance")
        if not once.is_retry:
            require_operation_allowed(kind.value, InstanceStatus(instance.status))
        return instance.subscription_id

    async def send(subscription_id: str) -> UpdateResult[SubscriptionResult]:
        command = StartOperation(
            update_id=once.derive_update_id(), actor=once.caller.user_id, operation_id=operation_id, kind=kind
        )
        async with SUBSCRIPTION_LOCKS.hold(subscription_id):
            return await workflows.start_operation(subscription_id, command)

    async def present(session: AsyncSession, _: str, accepted: UpdateResult[SubscriptionResult]) -> JsonResponse:
        row = await instance_reads.get_operation(
            SessionReader(session), instance_id, operation_id, once.caller.organization_id
        )
        operation = (
            _to_operation_response(row)
            if row is not None
            else OperationOut(id=operation_id, kind=kind, status=OperationStatus.PENDING)
        )
        return success(
            OperationStarted(operation=operation),
            status=202,
            message=f"Operation accepted. Poll `GET /api/v1/instances/{instance_id}/operations/{operation_id}`.",
            # Until the outcome is known the operation may still be refused: a retry under the same key asks again.
            is_final=accepted.result is not None,
        )

    return await once.run_and_present(prepare, send, present)


async def _why_no_credentials(session: AsyncSession, instance_id: str, organization_id: str) -> Exception:
    instance = await instance_reads.get_instance(SessionReader(session), instance_id, organization_id)
    if instance is None:
        return not_found_error("instance")
    if instance.status not in PROVISIONED_STATUSES:
        return ApiError(
            409,
            ErrorCode.ILLEGAL_MOVE,
            f"The instance is {instance.status}. Its credentials are available once it is ready.",
            {"status": instance.status},
        )
    at = await credentials.handed_over_at(session, instance_id)
    if at is None:
        return ApiError(404, "NOT_FOUND", "This instance has no credentials to hand over.")
    return conflict_error(
        "The credentials of this instance were already handed over; they are shown once. "
        "If you no longer have them, ask support for a reset.",
        {"handed_over_at": format_instant(at)},
    )


def _to_response(row: InstanceDetails) -> InstanceOut:
    return instance_out(row, names.subscription_workflow_id(row.subscription_id))


def _to_operation_response(row: OperationDetails) -> OperationOut:
    return operation_out(row, names.operation_workflow_id(row.instance_id, row.id))
