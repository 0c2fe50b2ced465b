"""Invariants that hold after any fault: no duplicate charge, no lost payment, no orphan."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.config import load_kube_config

from tests.support.running_stack import RunningStack

PREFIX = "berth-"


def assert_ledger_balanced(stack: RunningStack) -> None:
    """Assert that every transaction sums to zero and every stored balance equals the sum of its entries."""
    assert not stack.query_as_superuser(
        "SELECT transaction_id FROM ledger_entries GROUP BY transaction_id, currency HAVING sum(amount_minor) <> 0"
    )
    assert not stack.query_as_superuser(
        """
        SELECT a.id FROM ledger_accounts a
        LEFT JOIN (SELECT organization_id, account, currency, sum(amount_minor) AS total FROM ledger_entries
            GROUP BY 1, 2, 3) e USING (organization_id, account, currency)
        WHERE a.balance_minor <> COALESCE(e.total, 0)
        """
    )


def assert_no_duplicate_charges(stack: RunningStack) -> None:
    """Assert that the gateway's charges equal the captured payments and the ledger's clearing account."""
    taken = [charge for charge in stack.charges() if charge["captured"] and charge["status"] == "succeeded"]
    keys = Counter(charge["idempotency_key"] for charge in taken)
    assert not [key for key, times in keys.items() if times > 1], keys
    received = stack.query_as_superuser(
        "SELECT count(*) AS payments, COALESCE(sum(captured_minor), 0) AS amount FROM payments WHERE captured_minor > 0"
    )[0]
    assert len(taken) == received["payments"]
    assert sum(charge["amount"] for charge in taken) == received["amount"]
    clearing = stack.query_as_superuser(
        "SELECT COALESCE(-sum(amount_minor), 0) AS amount FROM ledger_entries WHERE account = 'clearing:stripe'"
    )[0]
    refunded = sum(charge["refunded"] for charge in taken)
    assert clearing["amount"] == received["amount"] - refunded


def assert_invoice_numbers_gapless(stack: RunningStack) -> None:
    assert not stack.query_as_superuser(
        "SELECT subscription_id FROM invoices WHERE billing_reason <> 'plan_change' AND status <> 'void'"
        " GROUP BY subscription_id, period_start HAVING count(*) > 1"
    )
    numbers = [
        row["number"] for row in stack.query_as_superuser("SELECT number FROM invoices WHERE number IS NOT NULL")
    ]
    by_year: dict[str, list[int]] = {}
    for number in numbers:
        _, year, sequence = number.split("-")
        by_year.setdefault(year, []).append(int(sequence))
    for sequences in by_year.values():
        assert sorted(sequences) == list(range(1, len(sequences) + 1))


def assert_cluster_matches_instances(stack: RunningStack) -> None:
    """Assert that the namespaces of the cluster are exactly those of the provisioned instances."""
    rows = stack.query_as_superuser(
        "SELECT s.status, i.namespace, i.status AS instance FROM subscriptions s"
        " LEFT JOIN instances i ON i.subscription_id = s.id"
    )
    assert all(row["namespace"] for row in rows)
    live = {
        row["namespace"] for row in rows if row["status"] in ("trialing", "active", "past_due", "suspended", "paused")
    }
    retained = {row["namespace"] for row in rows if row["status"] == "cancelled" and row["instance"] == "suspended"}
    assert namespaces(stack) == live | retained


def namespaces(stack: RunningStack) -> set[str]:
    settings = Configuration()
    load: Any = load_kube_config
    load(stack.card["cluster"]["kubeconfig"], client_configuration=settings)
    with ApiClient(settings) as client:
        listed = CoreV1Api(client).list_namespace(label_selector="app.kubernetes.io/managed-by=berth")
    names = (item.metadata.name for item in listed.items if item.metadata is not None)
    return {name for name in names if name is not None and name.startswith(PREFIX)}


def list_stuck_workflows(stack: RunningStack) -> list[str]:
    """Return the short-lived workflows that still run."""
    query = (
        "ExecutionStatus='Running' AND WorkflowType IN ('Payment','Provisioning','InstanceOperation','Refund',"
        "'Adjustment','PaymentMethodSetup')"
    )
    return [workflow["execution"]["workflowId"] for workflow in workflows(stack, query)]


def workflows(stack: RunningStack, query: str) -> list[dict[str, Any]]:
    """Return the workflows that match a visibility query."""
    from deploy.local.binaries import find_program

    temporal = stack.card["temporal"]
    completed = subprocess.run(
        [
            find_program("temporal"),
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
    listed: list[dict[str, Any]] = json.loads(completed.stdout or "[]")
    return listed


def assert_no_duplicate_mails(stack: RunningStack) -> None:
    """Assert that the mailbox holds no mail twice."""
    delivered = Counter((mail["to"], mail["subject"], mail["text"]) for mail in stack.mails())
    assert not [mail for mail, times in delivered.items() if times > 1]


def assert_all_invariants(stack: RunningStack) -> None:
    assert_ledger_balanced(stack)
    assert_no_duplicate_charges(stack)
    assert_invoice_numbers_gapless(stack)
    assert_cluster_matches_instances(stack)
    assert_no_duplicate_mails(stack)
    assert list_stuck_workflows(stack) == []


def logs(stack: RunningStack) -> str:
    return "\n".join(path.read_text(errors="replace") for path in Path(stack.home / "logs").glob("*.log"))
