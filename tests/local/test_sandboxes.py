"""The simulated world is there for any test that asks: each fixture's server answers and starts clean."""

from __future__ import annotations

import smtplib

import httpx

from tests.support.sandboxes import ClusterEndpoint, MailboxEndpoint, StripeEndpoint
from tests.support.wait import wait_until_sync


def test_a_sent_mail_is_listed_for_its_recipient(mailbox: MailboxEndpoint) -> None:
    with smtplib.SMTP(mailbox.smtp_host, mailbox.smtp_port) as smtp:
        smtp.sendmail("berth@berth.example", "ada@customer.example", "Subject: Hello\r\n\r\nThere you are.\r\n")
    mails = wait_until_sync(lambda: mailbox.messages(to="ada@customer.example"))
    assert [mail["subject"] for mail in mails] == ["Hello"]
    assert mailbox.messages(to="somebody.else@customer.example") == []


def test_the_mailbox_is_empty_for_the_next_test(mailbox: MailboxEndpoint) -> None:
    assert mailbox.messages() == []


def test_the_cluster_speaks_kubernetes_and_has_no_faults(cluster: ClusterEndpoint) -> None:
    version = httpx.get(f"{cluster.url}/version").json()
    assert version["major"] == "1"
    assert cluster.kubeconfig.exists()


def test_the_gateway_charges_and_sends_a_webhook(stripe: StripeEndpoint) -> None:
    response = httpx.post(
        f"{stripe.url}/v1/payment_intents",
        auth=(stripe.api_key, ""),
        data={
            "amount": "1500", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true",
            "automatic_payment_methods[enabled]": "true", "automatic_payment_methods[allow_redirects]": "never",
        },
    )  # fmt: skip
    assert response.json()["status"] == "succeeded", response.text
    wait_until_sync(lambda: stripe.deliveries, description="a webhook")
