"""Mail addresses as servers and applications take them that know no others than those in ASCII."""

from __future__ import annotations

import idna


def with_ascii_domain(address: str) -> str:
    """Return the address with its domain in ASCII (``info@müller.de``: ``info@xn--mller-kva.de``), as DNS has it.

    What stands before the @ has no such form and stays as it is; so does a domain that is none.
    """
    name, separator, domain = address.rpartition("@")
    if not separator or domain.isascii():
        return address
    try:
        return f"{name}@{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return address
