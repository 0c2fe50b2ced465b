"""Which labels below the platform's domain customers can order."""

from __future__ import annotations

import pytest

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.host_labels import NUMBERED_LABELS, RESERVED_LABELS, choose_host_label, require_available_label

INSTANCE = "ins_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    "label",
    [
        "www", "WWW", "login", "mail", "autodiscover", "autoconfig", "admin", "api", "status", "ns", "ns1", "ns02",
        "smtp", "imap", "mx-10", "www2", "mta-sts", "wpad", "postmaster", "acme", "xn--pple-43d", "XN--80ak6aa92e",
        "ab--cd",
    ],
)  # fmt: skip
def test_a_name_of_the_platform_is_refused(label: str) -> None:
    with pytest.raises(RuleViolation) as refused:
        require_available_label(label)
    assert refused.value.code is ErrorCode.VALIDATION_ERROR
    assert refused.value.details == {
        "field": "parameters.subdomain", "reason": "This name is reserved. Choose another one.",
    }  # fmt: skip


@pytest.mark.parametrize("label", ["_dmarc", "a.b", "-a", "a-", "a b", "é", "a" * 64, "shop\n", "www."])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(RuleViolation) as refused:
        choose_host_label(label, "n8n", INSTANCE)
    assert refused.value.details["reason"] == "Not a DNS label: use letters, digits and hyphens."


@pytest.mark.parametrize("label", ["shop", "Shop", "mailing", "admin-tools", "my-www", "ns1a", "api2", "a", "1", "n8n"])
def test_other_labels_are_free(label: str) -> None:
    assert choose_host_label(label, "n8n", INSTANCE) == label.lower()


@pytest.mark.parametrize("requested", [None, ""])
@pytest.mark.parametrize(
    "name", [*sorted(RESERVED_LABELS), *(f"{label}1" for label in sorted(NUMBERED_LABELS)), "xn--a"]
)
def test_the_platform_chooses_no_reserved_label(requested: str | None, name: str) -> None:
    label = choose_host_label(requested, name, INSTANCE)
    require_available_label(label)
    assert label.endswith("-qrstuvwx")


def test_reserved_labels_are_in_lower_case() -> None:
    assert {label.lower() for label in RESERVED_LABELS} == RESERVED_LABELS
