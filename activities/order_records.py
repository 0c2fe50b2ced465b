"""The rows that an order creates: the subscription and its instance."""

from __future__ import annotations

from typing import Any

from db.driver import DriverStatement
from db.queries.locked_subscriptions import AvailableFunds, LockedSubscription, PlanWithPrice
from db.queries.orders import order_insert
from workflows.ports.subscription import RecordOrder
from workflows.rules.host_labels import choose_host_label
from workflows.rules.ids import to_dns_label
from workflows.rules.instance import InstanceStatus
from workflows.rules.pricing import Discount
from workflows.rules.subscription import SubscriptionStatus


def build_subscription(
    command: RecordOrder,
    plan: PlanWithPrice,
    timezone: str,
    status: SubscriptionStatus,
    discount: Discount | None,
    funds: AvailableFunds,
    *,
    base_domain: str,
) -> LockedSubscription:
    """Return the subscription that an order creates; its host name is a label below ``base_domain``."""
    order = command.order
    requested_subdomain = order.parameters.get("subdomain")
    label = choose_host_label(requested_subdomain, order.name or plan.service_slug, order.instance_id)
    return LockedSubscription(
        id=order.subscription_id,
        organization_id=order.organization_id,
        user_id=order.user_id,
        name=order.name,
        status=status,
        collection_method=order.collection_method,
        plan_id=plan.plan_id,
        plan_code=plan.code,
        plan_name=plan.name,
        interval=plan.interval,
        price_id=plan.price_id,
        price=plan.price,
        service_id=plan.service_id,
        service_name=plan.service_name,
        discount=discount,
        timezone=timezone,
        billing_anchor=None,
        period_start=None,
        period_end=None,
        trial_end=None,
        cancel_at_period_end=False,
        pending_plan_id=None,
        past_due_since=None,
        cancelled_at=None,
        data_deletion_at=None,
        created_at=command.now,
        instance_id=order.instance_id,
        hostname=f"{label}.{base_domain}",
        url=None,
        funds=funds,
    )


def build_order_insert(command: RecordOrder, plan: PlanWithPrice, subscription: LockedSubscription) -> DriverStatement:
    """Return the statement that inserts both rows of an order."""
    discount = subscription.discount
    subscription_row = {
        "id": subscription.id,
        "organization_id": subscription.organization_id,
        "user_id": subscription.user_id,
        "plan_id": subscription.plan_id,
        "price_id": subscription.price_id,
        "service_id": subscription.service_id,
        "name": subscription.name,
        "status": subscription.status.value,
        "collection_method": subscription.collection_method.value,
        "is_trial": plan.trial_days > 0,
        "currency": subscription.currency,
        "price_minor": subscription.price.amount_minor,
        "coupon_code": discount.code if discount else None,
        "coupon_remaining_periods": discount.remaining_periods if discount else None,
        "timezone": subscription.timezone,
        "workflow_id": command.workflow_id,
        "created_at": command.now,
        "updated_at": command.now,
    }
    instance_row: dict[str, Any] = {
        "id": command.order.instance_id,
        "organization_id": subscription.organization_id,
        "subscription_id": subscription.id,
        "service_slug": plan.service_slug,
        "version": plan.service_version,
        "hostname": subscription.hostname,
        "namespace": f"berth-{to_dns_label(command.order.instance_id)}",
        "status": InstanceStatus.REQUESTED.value,
        "cpu_millicores": plan.cpu_millicores,
        "memory_mib": plan.memory_mib,
        "storage_gib": plan.storage_gib,
        "replicas": plan.replicas,
        "parameters": dict(command.order.parameters),
        "created_at": command.now,
    }
    return order_insert(subscription_row, instance_row)
