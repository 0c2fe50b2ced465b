"""Record workflow histories: a pytest plugin of `python -m tests.checks.histories record`.

Each recorded history names the test that produces it. Of the workflows of its type that the test ran, the one with
the longest history is recorded.
"""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.wait import wait_until

HISTORIES_DIRECTORY_VARIABLE = "BERTH_RECORD_HISTORIES"

SUBSCRIPTION_RECIPES = {
    "paid-and-renewed": "test_subscription.py::test_a_paid_order_becomes_active_and_is_billed_every_period",
    "refused": "test_subscription.py::test_an_order_without_funding_leaves_no_rows",
    "cancelled-now": "test_subscription.py::test_cancel_now_stops_the_instance_keeps_the_data_and_ends_after_retention",
    "cancelled-at-period-end": "test_subscription.py::test_cancel_at_period_end_lets_the_paid_period_run_out",
    "not-provisioned": "test_order.py::test_a_failed_provisioning_releases_the_hold_once_and_uses_no_invoice_number",
    "cancelled-early": "test_order.py::test_a_cancellation_during_provisioning_is_compensated_once",
    "card-declined": "test_order.py::test_a_declined_card_expires_the_order_and_restores_coupon_and_wallet_once",
    "card-captured": "test_order.py::test_a_card_is_authorized_for_the_remainder_and_captured_at_readiness",
    "capture-failed": "test_order.py::test_a_capture_that_fails_leaves_the_invoice_open_and_the_subscription_past_due",
    "trial-paused": "test_order.py::test_a_trial_that_is_not_funded_is_paused_at_its_end",
    "trial-paid": "test_order.py::test_a_funded_trial_starts_its_first_period_at_its_end",
    "paused-and-resumed": "test_order.py::test_a_resumption_starts_and_charges_a_new_period",
    "recovered": "test_dunning.py::test_retries_then_suspension_on_day_seven_and_recovery_by_a_payment",
    "unpaid-to-the-end": (
        "test_dunning.py::test_an_unpaid_subscription_is_cancelled_on_day_thirty_and_deleted_thirty_days_later"
    ),
    "retried-by-hand": "test_dunning.py::test_a_customers_failed_retry_consumes_no_scheduled_attempt",
    "operated": "test_dunning.py::test_a_customers_stop_survives_a_renewal",
    "upgraded": "test_plan_change.py::test_an_upgrade_charges_the_rest_of_the_period_now_and_resizes",
    "downgraded-later": "test_plan_change.py::test_a_downgrade_waits_for_the_period_end_and_costs_nothing",
    "upgrade-unpaid": "test_plan_change.py::test_an_upgrade_that_is_not_paid_leaves_the_old_plan_untouched",
    "restarted": "test_lost_workflows.py::test_a_past_due_subscription_makes_the_retries_that_are_left",
    "resize-failed": "test_plan_change.py::test_a_failed_resize_brings_the_old_plan_and_the_money_back",
}
PAYMENT_RECIPES = {
    "top-up": "test_payment.py::test_a_top_up_returns_its_outcome_and_signals_every_past_due_subscription",
    "declined": "test_payment.py::test_a_declined_top_up_fails_with_its_decline_code_and_completes",
    "silent": "test_payment.py::test_a_lost_response_is_unknown_and_is_polled_without_another_charge",
    "authenticated": "test_payment.py::test_a_customer_authenticates_in_time",
    "expired": "test_payment.py::test_a_payment_expires_when_the_customer_does_not_return",
    "captured": "test_payment.py::test_an_authorization_waits_and_is_captured",
    "released": "test_payment.py::test_an_authorization_is_released",
    "late-money": "test_payment.py::test_money_after_the_close_resumes_the_payment_without_a_charge",
}
PROVISIONING_RECIPES = {
    "ready": "test_provisioning.py::test_a_successful_provisioning_takes_three_activities",
    "gave-up": "test_provisioning.py::test_a_lasting_failure_reason_fails_the_order_and_leaves_no_namespace",
    "cancelled": "test_provisioning.py::test_a_cancellation_is_compensated_before_the_workflow_closes",
}
OPERATION_RECIPES = {
    "operated": "test_provisioning.py::test_the_customers_operations",
    "resize-undone": "test_resize_without_capacity.py::test_a_resize_that_does_not_become_ready_is_rolled_back",
    "deletion-blocked": "test_provisioning.py::test_a_blocked_deletion_is_reported_and_completed_later",
}
OTHER_RECIPES = {
    "Refund-followed": "test_payment_refund.py::test_a_refund_is_polled_after_a_lost_response_until_it_is_final",
    "Refund-rejected": (
        "test_payment_refund.py::test_a_refund_that_its_bank_rejects_while_the_gateway_answers_that_it_was_sent_is_rechecked"
    ),
    "Refund-refused": "test_payment_refund.py::test_a_rejected_refund_fails_with_the_error_code_of_the_rule",
    "PaymentMethodSetup-added": "test_payment_refund.py::test_a_new_card_is_tried_at_once",
    "PaymentMethodDefault-changed": "test_payment_refund.py::test_another_default_card_is_tried_at_once",
    "PaymentMethodRemoval-refused": "test_payment_refund.py::test_a_card_in_use_is_not_removed",
    "WalletAdjustment-posted": "test_small.py::test_an_adjustment_is_posted_once",
    "InvoiceRendering-rendered": "test_small.py::test_a_document_is_rendered_once",
    "NotificationDispatch-draining": "test_notification.py::test_a_drain_that_fails_is_started_again",
    "NotificationDispatch-away": "test_notification.py::test_the_pause_grows_while_the_mail_server_is_unavailable",
    "OrphanCleanup-swept": "test_reconciliation.py::test_the_cleanup_deletes_failed_instances_and_reports_unknown_ones",
    "Reconciliation-told": "test_reconciliation.py::test_an_undelivered_webhook_is_delivered_to_its_payment",
    "Reconciliation-restarted": ("test_lost_workflows.py::test_the_scheduled_reconciliation_restarts_a_lost_workflow"),
    "Reconciliation-alerted": (
        "test_reconciliation.py::test_a_balance_mismatch_is_alerted_once_a_day_and_not_corrected"
    ),
}

RECIPES = {
    **{f"Subscription-{shape}": test for shape, test in SUBSCRIPTION_RECIPES.items()},
    **{f"Payment-{shape}": test for shape, test in PAYMENT_RECIPES.items()},
    **{f"Provisioning-{shape}": test for shape, test in PROVISIONING_RECIPES.items()},
    **{f"InstanceOperation-{shape}": test for shape, test in OPERATION_RECIPES.items()},
    **OTHER_RECIPES,
}
"""The test in `tests/workflows` by the name of the history's file without its suffix."""

SDK_IDENTITY_PATTERN = re.compile(r"\b\d+@[\w.-]+")
"""Process id and host, which the SDK writes into its events as the identity."""


def redact_history(node: Any) -> Any:
    """Return a history without the identities of the recording machine and without stack traces."""
    if isinstance(node, dict):
        return {key: redact_history(value) for key, value in node.items() if key != "stackTrace"}
    if isinstance(node, list):
        return [redact_history(value) for value in node]
    return SDK_IDENTITY_PATTERN.sub("recorder", node) if isinstance(node, str) else node


def _recipes_for(item: pytest.Item) -> list[str]:
    node = item.nodeid.rpartition("tests/workflows/")[2].partition("[")[0]
    return [name for name, test in RECIPES.items() if test == node]


async def _histories(address: str, namespace: str, kind: str, recorded_run_ids: set[str]) -> list[Any]:
    """Return the histories of the runs that are not recorded yet, at least one: visibility lags behind the runs."""
    from temporalio.client import Client

    client = await Client.connect(address, namespace=namespace)

    async def list_new() -> list[Any]:
        return [
            (
                execution.run_id,
                await client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history(),
            )
            async for execution in client.list_workflows(f"WorkflowType = '{kind}'")
            if execution.run_id not in recorded_run_ids
        ]

    return await wait_until(list_new, description=f"a {kind} is visible")


@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Run after the test's body, while its workflows are still on the server."""
    temporal = getattr(item, "funcargs", {}).get("temporal")
    if temporal is None:
        return
    folder, recorded_run_ids = (
        Path(os.environ[HISTORIES_DIRECTORY_VARIABLE]),
        item.config.stash.setdefault(RECORDED_RUNS, set()),
    )
    for name in _recipes_for(item):
        kind = name.partition("-")[0]
        with ThreadPoolExecutor(1) as pool:
            histories = pool.submit(
                asyncio.run, _histories(temporal.address, temporal.namespace, kind, recorded_run_ids)
            ).result()
        recorded_run_ids.update(run_id for run_id, _ in histories)
        _, longest = max(histories, key=lambda pair: len(pair[1].events))
        (folder / f"{name}.json").write_text(longest.to_json())


RECORDED_RUNS: pytest.StashKey[set[str]] = pytest.StashKey()
