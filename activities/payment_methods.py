"""Cards come on file and leave it: at their gateway and in our books."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.dialects.postgresql import insert
from temporalio import activity

from activities.gateways.base import Declined, Gateway, Rejected
from activities.payments import customer_of
from db.models.payments import PaymentMethod
from db.queries import payments
from db.session import Sessions
from workflows.ports.payments import Attach, Attached, Detach, PaymentMethodAdded, PaymentMethods
from workflows.refusals import refuse
from workflows.rules.errors import Refusal


class PaymentMethodActivities(PaymentMethods):
    def __init__(self, sessions: Sessions, gateways: Mapping[str, Gateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="payment_methods.attach")
    async def attach(self, command: Attach) -> Attached:
        order = command.order
        async with self._sessions.begin() as session:
            known = await session.get(PaymentMethod, order.payment_method_id)
            if known is not None:
                debts = await payments.indebted(session, order.organization_id)
                return Attached(added=_view(known), indebted=debts)
        gateway = self._gateways.get(order.gateway)
        if gateway is None or not gateway.capabilities.saved_methods:
            raise refuse(Refusal.VALIDATION_ERROR, "This gateway keeps no payment methods.")
        customer = await customer_of(self._sessions, gateway, order.organization_id)
        try:
            card = await gateway.attach(order.token, customer, key=f"{order.payment_method_id}:attach")
        except Declined as declined:
            details = {"decline_code": declined.decline_code}
            raise refuse(Refusal.PAYMENT_DECLINED, "The card was declined.", details) from declined
        except Rejected as rejected:
            details = {"gateway_code": rejected.code}
            raise refuse(Refusal.VALIDATION_ERROR, "The gateway does not know this card.", details) from rejected
        async with self._sessions.begin() as session:
            await payments.serialise_methods(session, order.organization_id)
            others = await payments.methods(session, order.organization_id)
            default = order.default or not others
            if default:
                for other in others:
                    other.is_default = False
                # The old default must be gone before the new one stands: the database allows one.
                await session.flush()
            await session.execute(
                insert(PaymentMethod)
                .values(
                    id=order.payment_method_id,
                    organization_id=order.organization_id,
                    gateway=order.gateway,
                    reference=card.reference,
                    customer_reference=customer,
                    brand=card.brand,
                    last4=card.last4,
                    exp_month=card.exp_month,
                    exp_year=card.exp_year,
                    fingerprint=card.fingerprint,
                    is_default=default,
                    position=max((other.position for other in others), default=0) + 1,
                    created_at=command.now,
                )
                .on_conflict_do_nothing(index_elements=[PaymentMethod.id])
            )
            method = await session.get_one(PaymentMethod, order.payment_method_id)
            debts = await payments.indebted(session, order.organization_id)
            return Attached(added=_view(method), indebted=debts)

    @activity.defn(name="payment_methods.detach")
    async def detach(self, command: Detach) -> None:
        order = command.order
        async with self._sessions.begin() as session:
            await payments.serialise_methods(session, order.organization_id)
            method = await session.get(PaymentMethod, order.payment_method_id)
            if method is None or method.organization_id != order.organization_id:
                raise refuse(Refusal.NOT_FOUND, "There is no such payment method.")
            if method.detached_at is None:
                others = [
                    other for other in await payments.methods(session, order.organization_id) if other.id != method.id
                ]
                if not others and await payments.indebted(session, order.organization_id):
                    raise refuse(
                        Refusal.PAYMENT_METHOD_IN_USE, "The last payment method stays while an invoice is unpaid."
                    )
                was_default = method.is_default
                method.detached_at, method.is_default = command.now, False
                await session.flush()
                if was_default and others:
                    others[0].is_default = True
            gateway, reference = self._gateways[method.gateway], method.reference
        await gateway.detach(reference)


def _view(method: PaymentMethod) -> PaymentMethodAdded:
    return PaymentMethodAdded(
        payment_method_id=method.id,
        brand=method.brand,
        last4=method.last4,
        expires=f"{method.exp_month:02d}/{method.exp_year}",
        default=method.is_default,
    )
