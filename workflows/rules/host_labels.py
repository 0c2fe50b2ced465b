"""Labels below the platform's domain: which ones customers may order, and the one that an instance gets."""

from __future__ import annotations

import re

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import to_dns_label

FIELD = "parameters.subdomain"

RESERVED_LABELS = frozenset(
    {
        "abuse", "account", "accounts", "acme", "admin", "administrator", "api", "apps", "auth", "autoconfig",
        "autodiscover", "berth", "billing", "broadcasthost", "console", "dashboard", "dns", "email", "ftp",
        "grafana", "help", "helpdesk", "hostmaster", "http", "https", "id", "identity", "imap", "imaps",
        "ingress", "internal", "invoice", "invoices", "isatap", "kubernetes", "localdomain", "localhost",
        "login", "logout", "mail", "mailbox", "mailer-daemon", "metrics", "mta-sts", "mx", "no-reply", "noc",
        "noreply", "ns", "ntp", "oauth", "openid", "payment", "payments", "pki", "platform", "pop", "pop3",
        "pop3s", "portal", "postmaster", "prometheus", "register", "registry", "root", "s3", "secure",
        "security", "signin", "signup", "sip", "smtp", "smtps", "ssh", "ssl", "sso", "status", "stripe",
        "support", "sysadmin", "system", "temporal", "tls", "traefik", "usenet", "uucp", "webhook", "webhooks",
        "webmail", "webmaster", "well-known", "wildcard", "wpad", "www", "xmpp",
    }
)  # fmt: skip
"""Names that a visitor, a mail program or a certificate authority takes for the platform's (RFC 2142, RFC 6761, RFC
6762, RFC 8461, the autodiscovery of mail programs and proxies), and names of its services."""

NUMBERED_LABELS = frozenset({"imap", "mail", "mx", "ns", "pop", "smtp", "www"})
"""Names that are reserved with a number behind them as well: ``ns1``, ``mx02``, ``www-3``."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBERED = re.compile(r"([a-z]+)-?\d+")


def is_reserved(label: str) -> bool:
    """Return whether ``label``, in lower case, is not for customers.

    Labels with hyphens in the third and fourth place are encodings (RFC 5891, 4.2.3.1): ``xn--pple-43d`` is displayed
    as a name that looks like another one.
    """
    numbered = _NUMBERED.fullmatch(label)
    return label in RESERVED_LABELS or label[2:4] == "--" or (numbered is not None and numbered[1] in NUMBERED_LABELS)


def require_available_label(requested: str | None) -> None:
    """Refuse a label that is reserved, or no label. None and an empty one leave the choice to the platform.

    Raises:
        RuleViolation: ``VALIDATION_ERROR`` with the field ``parameters.subdomain``.
    """
    if not requested:
        return
    label = requested.lower()
    reason = None
    if not _LABEL.fullmatch(label):
        reason = "Not a DNS label: use letters, digits and hyphens."
    elif is_reserved(label):
        reason = "This name is reserved. Choose another one."
    if reason is not None:
        raise RuleViolation(
            ErrorCode.VALIDATION_ERROR, f"Invalid subdomain: {reason}", {"field": FIELD, "reason": reason}
        )


def choose_host_label(requested: str | None, name: str, instance_id: str) -> str:
    """Return an instance's label under the platform's domain: the requested one, or a unique one.

    Raises:
        RuleViolation: As `require_available_label`.
    """
    require_available_label(requested)
    if requested:
        return requested.lower()
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].strip("-")
    return f"{words or 'app'}-{to_dns_label(instance_id)[-8:]}"
