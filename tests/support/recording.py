"""Keeps histories of real runs: a plugin of the tests that `python -m tests.checks.histories record` runs them with.

Each history that is to be kept names the test in whose run it comes about; of the workflows of its type that the test
ran, the one with the longest history is taken.
"""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

FOLDER = "BERTH_RECORD_HISTORIES"

_LIFE = {
    "paid-and-renewed": "test_subscription.py::test_a_paid_order_becomes_active_and_is_billed_every_period",
    "refused": "test_subscription.py::test_an_order_that_nothing_secures_leaves_nothing_behind",
    "cancelled-now": "test_subscription.py::test_cancel_now_stops_the_instance_keeps_the_data_and_ends_after_retention",
    "cancelled-at-period-end": "test_subscription.py::test_cancel_at_period_end_lets_the_paid_period_run_out",
    "not-provisioned": "test_order.py::test_a_failed_provisioning_releases_what_was_held_once_and_burns_no_number",
    "cancelled-early": "test_order.py::test_cancelling_while_provisioning_undoes_everything_once",
    "card-declined": "test_order.py::test_a_declined_card_expires_the_order_and_restores_coupon_and_wallet_once",
    "card-captured": "test_order.py::test_a_card_is_authorised_for_the_rest_and_captured_at_readiness",
    "capture-failed": "test_order.py::test_a_capture_that_fails_leaves_the_invoice_open_and_the_subscription_past_due",
    "trial-paused": "test_order.py::test_a_trial_that_nothing_pays_for_is_paused_never_free",
    "trial-paid": "test_order.py::test_a_trial_that_is_paid_for_begins_its_first_period_at_its_end",
    "paused-and-resumed": "test_order.py::test_resuming_from_a_pause_starts_and_charges_a_new_period_now",
    "recovered": "test_dunning.py::test_retries_then_suspension_on_day_seven_and_payment_brings_it_back",
    "unpaid-to-the-end": (
        "test_dunning.py::test_an_unpaid_subscription_is_cancelled_on_day_thirty_and_deleted_thirty_days_later"
    ),
    "retried-by-hand": "test_dunning.py::test_a_customers_failed_retry_consumes_no_scheduled_attempt",
    "operated": "test_dunning.py::test_operations_are_one_at_a_time_and_a_customers_stop_survives_a_renewal",
    "upgraded": "test_plan_change.py::test_an_upgrade_charges_the_rest_of_the_period_now_and_resizes",
    "downgraded-later": "test_plan_change.py::test_a_downgrade_waits_for_the_period_end_and_costs_nothing",
    "upgrade-unpaid": "test_plan_change.py::test_an_upgrade_that_is_not_paid_leaves_the_old_plan_untouched",
    "resize-failed": "test_plan_change.py::test_a_failed_resize_brings_the_old_plan_and_the_money_back",
}
_PAYMENT = {
    "top-up": "test_payment.py::test_a_top_up_answers_and_tells_every_debtor",
    "declined": "test_payment.py::test_a_declined_top_up_is_refused_with_its_code_and_ends_in_order",
    "silent": "test_payment.py::test_silence_is_unknown_and_nothing_new_is_charged_until_it_is_resolved",
    "authenticated": "test_payment.py::test_a_customer_authenticates_in_time",
    "expired": "test_payment.py::test_a_customer_who_does_not_come_back_lets_it_expire",
    "captured": "test_payment.py::test_an_authorisation_waits_and_is_captured",
    "released": "test_payment.py::test_an_authorisation_is_released",
    "late-money": "test_payment.py::test_money_after_the_end_resumes_the_payment_without_charging",
}
_PROVISIONING = {
    "ready": "test_provisioning.py::test_the_good_path_takes_three_activities",
    "gave-up": "test_provisioning.py::test_one_and_the_same_trouble_ends_the_order_and_leaves_nothing",
    "cancelled": "test_provisioning.py::test_cancelled_in_the_middle_it_undoes_everything_before_it_says_cancelled",
}
_OPERATION = {
    "operated": "test_provisioning.py::test_the_customers_operations",
    "resize-undone": "test_provisioning.py::test_a_resize_that_does_not_come_up_goes_back",
    "deletion-blocked": "test_provisioning.py::test_what_cannot_be_removed_is_reported_and_never_forgotten",
}
_OTHERS = {
    "Refund-followed": "test_payment_refund.py::test_a_refund_is_followed_through_silence_until_it_is_certain",
    "Refund-refused": "test_payment_refund.py::test_a_refused_refund_fails_with_the_rules_code",
    "PaymentMethodSetup-added": "test_payment_refund.py::test_a_new_card_lets_a_debt_try_it_at_once",
    "PaymentMethodRemoval-refused": "test_payment_refund.py::test_a_card_in_use_is_not_removed",
    "Adjustment-posted": "test_small.py::test_a_correction_is_posted_once",
    "InvoiceDocument-rendered": "test_small.py::test_a_document_is_rendered_and_the_same_again",
    "NotificationDispatch-draining": "test_notification.py::test_a_drain_that_fails_is_started_again",
    "NotificationDispatch-away": "test_notification.py::test_while_the_server_is_away_it_waits_longer_each_time",
    "OrphanCollection-swept": "test_reconciliation.py::test_the_sweep_removes_what_no_instance_owns",
    "Reconciliation-told": "test_reconciliation.py::test_a_webhook_that_never_reached_its_payment_is_handed_on",
    "Reconciliation-alerted": (
        "test_reconciliation.py::test_books_that_do_not_add_up_are_told_once_a_day_and_left_as_they_are"
    ),
}

RECIPES = {
    **{f"Subscription-{shape}": test for shape, test in _LIFE.items()},
    **{f"Payment-{shape}": test for shape, test in _PAYMENT.items()},
    **{f"Provisioning-{shape}": test for shape, test in _PROVISIONING.items()},
    **{f"InstanceOperation-{shape}": test for shape, test in _OPERATION.items()},
    **_OTHERS,
}
"""By the name of the file without its ending, the test in `tests/workflows`."""

WHOSE = re.compile(r"\b\d+@[\w.-]+")
"""Process and host, which the SDK writes into everything it polls."""


def scrubbed(node: Any) -> Any:
    """A history without what belongs to the machine that recorded it: who polled, and paths in stack traces."""
    if isinstance(node, dict):
        return {key: scrubbed(value) for key, value in node.items() if key != "stackTrace"}
    if isinstance(node, list):
        return [scrubbed(value) for value in node]
    return WHOSE.sub("recorder", node) if isinstance(node, str) else node


def _wanted(item: pytest.Item) -> list[str]:
    node = item.nodeid.rpartition("tests/workflows/")[2].partition("[")[0]
    return [name for name, test in RECIPES.items() if test == node]


async def _histories(address: str, namespace: str, kind: str, known: set[str]) -> list[Any]:
    from temporalio.client import Client

    client = await Client.connect(address, namespace=namespace)
    found = []
    async for execution in client.list_workflows(f"WorkflowType = '{kind}'"):
        if execution.run_id not in known:
            handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
            found.append((execution.run_id, await handle.fetch_history()))
    return found


@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Runs after the test's body: what it started is still on the server."""
    temporal = getattr(item, "funcargs", {}).get("temporal")
    if temporal is None:
        return
    folder, known = Path(os.environ[FOLDER]), item.config.stash.setdefault(KNOWN, set())
    for name in _wanted(item):
        kind = name.partition("-")[0]
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(asyncio.run, _histories(temporal.address, temporal.namespace, kind, known)).result()
        assert found, f"{item.nodeid} ran no {kind}"
        known.update(run_id for run_id, _ in found)
        _, longest = max(found, key=lambda pair: len(pair[1].events))
        (folder / f"{name}.json").write_text(longest.to_json())


KNOWN: pytest.StashKey[set[str]] = pytest.StashKey()
