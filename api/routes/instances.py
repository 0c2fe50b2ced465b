"""Instances: seen in the database, operated through the subscription that owns them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path
from starlette.responses import Response

from api.deps import Orders, SignedIn, Units, UnitsOfWork, Work
from api.envelope import Envelope, Json, Page, answer, listed, ok
from api.errors import SIGNED_IN, not_found
from api.families import family
from api.idempotency import MaybeOnce, Once
from api.ids import new_id
from api.listing import LongPageOf, after_created
from api.routes.subscriptions import order_id
from api.schemas.instances import (
    InstanceOut,
    OperationOut,
    OperationStarted,
    instance_out,
    operation_out,
)
from api.serial import ORDERS as TURNS
from db.models.instances import Instance, InstanceOperation
from db.queries import instance_reads
from workflows import names
from workflows.ports.instances import OperationStatus
from workflows.ports.subscription import CustomerOperation, OperateOrder
from workflows.rules.ids import derived
from workflows.rules.instance import InstanceStatus, require_operable

router = family("instances", prefix="/instances", responses=SIGNED_IN)

Id = Annotated[str, Path(max_length=100)]
KINDS = {"restart": CustomerOperation.RESTART, "stop": CustomerOperation.STOP, "start": CustomerOperation.START}


@router.get("", response_model=Page[InstanceOut])
async def instances(
    session: Work, caller: SignedIn, page: LongPageOf, status: InstanceStatus | None = None
) -> Response:
    rows = await instance_reads.instances(
        session, caller.organization_id, limit=page.limit + 1, after=after_created(page), status=status
    )
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([_shown(row) for row in shown], meta, page.fields)


@router.get("/{instance_id}", response_model=Envelope[InstanceOut])
async def instance(session: Work, caller: SignedIn, instance_id: Id) -> Envelope[InstanceOut]:
    found = await instance_reads.instance(session, instance_id, caller.organization_id)
    if found is None:
        raise not_found("instance")
    return ok(_shown(found))


@router.post("/{instance_id}/backups", response_model=Envelope[OperationStarted], status_code=202)
async def back_up(instance_id: Id, once: MaybeOnce, units: UnitsOfWork, orders: Orders) -> Response:
    return await _operate(once, units, orders, instance_id, CustomerOperation.BACKUP)


@router.post("/{instance_id}/{kind}", response_model=Envelope[OperationStarted], status_code=202)
async def operate(
    instance_id: Id, kind: Literal["restart", "stop", "start"], once: MaybeOnce, units: UnitsOfWork, orders: Orders
) -> Response:
    """One operation at a time: another one on its way answers 409."""
    return await _operate(once, units, orders, instance_id, KINDS[kind])


@router.get("/{instance_id}/operations", response_model=Page[OperationOut])
async def operations(session: Work, caller: SignedIn, instance_id: Id, page: LongPageOf) -> Response:
    if await instance_reads.instance(session, instance_id, caller.organization_id) is None:
        raise not_found("instance")
    rows = await instance_reads.operations(session, instance_id, limit=page.limit + 1, after=after_created(page))
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([_operation(row) for row in shown], meta, page.fields)


@router.get("/{instance_id}/operations/{operation_id}", response_model=Envelope[OperationOut])
async def operation(session: Work, caller: SignedIn, instance_id: Id, operation_id: Id) -> Envelope[OperationOut]:
    if await instance_reads.instance(session, instance_id, caller.organization_id) is None:
        raise not_found("instance")
    found = await instance_reads.operation(session, instance_id, operation_id)
    if found is None:
        raise not_found("operation")
    return ok(_operation(found))


async def _operate(once: Once, units: Units, orders: Orders, instance_id: str, kind: CustomerOperation) -> Response:
    caller = once.caller

    async def work() -> Json:
        async with units.begin() as session:
            found = await instance_reads.instance(session, instance_id, caller.organization_id)
        if found is None:
            raise not_found("instance")
        require_operable(kind.value, InstanceStatus(found.status))
        key = (caller.organization_id, once.route, once.key)
        operation_id = derived("op", *(part or "" for part in key)) if once.key is not None else new_id("op")
        command = OperateOrder(order_id=order_id(once), actor=caller.user_id, operation_id=operation_id, kind=kind)
        async with TURNS.of(found.subscription_id):
            await orders.operate(found.subscription_id, command)
        async with units.begin() as session:
            row = await instance_reads.operation(session, instance_id, operation_id)
        shown = (
            _operation(row)
            if row is not None
            else OperationOut(id=operation_id, kind=kind, status=OperationStatus.PENDING)
        )
        return answer(OperationStarted(operation=shown), status=202, message="The operation is on its way.")

    return await once(work)


def _shown(row: Instance) -> InstanceOut:
    return instance_out(row, names.subscription_workflow(row.subscription_id))


def _operation(row: InstanceOperation) -> OperationOut:
    return operation_out(row, names.operation_workflow(row.instance_id, row.id))
