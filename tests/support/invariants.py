"""What must hold after any fault: nothing charged twice, nothing lost, nothing left over."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.config import load_kube_config

from tests.support.stack import RunningStack

PREFIX = "berth-"


def ledger_is_sound(stack: RunningStack) -> None:
    """Every transaction sums to zero, and what accounts are said to hold is what was posted."""
    assert not stack.rows(
        "SELECT transaction_id FROM ledger_entries GROUP BY transaction_id, currency HAVING sum(amount_minor) <> 0"
    )
    assert not stack.rows(
        """
        SELECT a.id FROM ledger_accounts a
        LEFT JOIN (SELECT organization_id, account, currency, sum(amount_minor) AS total FROM ledger_entries
            GROUP BY 1, 2, 3) e USING (organization_id, account, currency)
        WHERE a.balance_minor <> COALESCE(e.total, 0)
        """
    )


def nobody_is_charged_twice(stack: RunningStack) -> None:
    """The gateway took exactly what the books say, once per payment."""
    taken = [charge for charge in stack.charges() if charge["captured"] and charge["status"] == "succeeded"]
    keys = Counter(charge["idempotency_key"] for charge in taken)
    assert not [key for key, times in keys.items() if times > 1], keys
    received = stack.rows(
        "SELECT count(*) AS payments, COALESCE(sum(captured_minor), 0) AS amount FROM payments WHERE captured_minor > 0"
    )[0]
    assert len(taken) == received["payments"]
    assert sum(charge["amount"] for charge in taken) == received["amount"]
    clearing = stack.rows(
        "SELECT COALESCE(-sum(amount_minor), 0) AS amount FROM ledger_entries WHERE account = 'clearing:stripe'"
    )[0]
    given_back = sum(charge["refunded"] for charge in taken)
    assert clearing["amount"] == received["amount"] - given_back


def one_invoice_per_period_without_gaps(stack: RunningStack) -> None:
    assert not stack.rows(
        "SELECT subscription_id FROM invoices WHERE kind = 'period' AND status <> 'void'"
        " GROUP BY subscription_id, period_start HAVING count(*) > 1"
    )
    numbers = [row["number"] for row in stack.rows("SELECT number FROM invoices WHERE number IS NOT NULL")]
    by_year: dict[str, list[int]] = {}
    for number in numbers:
        _, year, sequence = number.split("-")
        by_year.setdefault(year, []).append(int(sequence))
    for sequences in by_year.values():
        assert sorted(sequences) == list(range(1, len(sequences) + 1))


def cluster_holds_exactly_the_instances(stack: RunningStack) -> None:
    """No subscription without its instance, no instance without its subscription, no orphan on the cluster."""
    rows = stack.rows(
        "SELECT s.status, i.namespace, i.status AS instance FROM subscriptions s"
        " LEFT JOIN instances i ON i.subscription_id = s.id"
    )
    assert all(row["namespace"] for row in rows)
    live = {
        row["namespace"] for row in rows if row["status"] in ("trialing", "active", "past_due", "suspended", "paused")
    }
    kept = {row["namespace"] for row in rows if row["status"] == "cancelled" and row["instance"] == "suspended"}
    assert namespaces(stack) == live | kept


def namespaces(stack: RunningStack) -> set[str]:
    settings = Configuration()
    load: Any = load_kube_config
    load(stack.card["cluster"]["kubeconfig"], client_configuration=settings)
    with ApiClient(settings) as client:
        listed = CoreV1Api(client).list_namespace(label_selector="app.kubernetes.io/managed-by=berth")
    names = (item.metadata.name for item in listed.items if item.metadata is not None)
    return {name for name in names if name is not None and name.startswith(PREFIX)}


def no_workflow_is_stuck(stack: RunningStack) -> list[str]:
    """Return the short-lived workflows that still run."""
    query = (
        "ExecutionStatus='Running' AND WorkflowType IN ('Payment','Provisioning','InstanceOperation','Refund',"
        "'Adjustment','PaymentMethodSetup')"
    )
    return [found["execution"]["workflowId"] for found in workflows(stack, query)]


def workflows(stack: RunningStack, query: str) -> list[dict[str, Any]]:
    """What the Temporal UI would find."""
    from deploy.local.programs import program

    temporal = stack.card["temporal"]
    done = subprocess.run(
        [
            program("temporal"),
            "workflow",
            "list",
            "--address",
            temporal["address"],
            "--namespace",
            temporal["namespace"],
            "--query",
            query,
            "--output",
            "json",
            "--limit",
            "1000",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def each_fact_is_mailed_once(stack: RunningStack) -> None:
    """Every delivered notice is in the mailbox exactly once."""
    delivered = Counter((mail["to"], mail["subject"], mail["text"]) for mail in stack.mails())
    assert not [mail for mail, times in delivered.items() if times > 1]


def everything_holds(stack: RunningStack) -> None:
    ledger_is_sound(stack)
    nobody_is_charged_twice(stack)
    one_invoice_per_period_without_gaps(stack)
    cluster_holds_exactly_the_instances(stack)
    each_fact_is_mailed_once(stack)
    assert no_workflow_is_stuck(stack) == []


def logs(stack: RunningStack) -> str:
    return "\n".join(path.read_text(errors="replace") for path in Path(stack.home / "logs").glob("*.log"))
