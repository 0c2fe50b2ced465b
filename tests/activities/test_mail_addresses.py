"""Addresses at international domains."""

from __future__ import annotations

import pytest

from activities.adapters.mail_addresses import with_ascii_domain


@pytest.mark.parametrize(
    ("address", "ascii_address"),
    [
        ("info@müller.de", "info@xn--mller-kva.de"),
        ("info@Maßanfertigung.de", "info@xn--maanfertigung-cdb.de"),
        ("用户@例え.jp", "用户@xn--r8jz45g.jp"),
        ("ada@example.com", "ada@example.com"),
        ("ada", "ada"),
        ("ada@ü..de", "ada@ü..de"),
    ],
)
def test_the_domain_is_in_ascii(address: str, ascii_address: str) -> None:
    assert with_ascii_domain(address) == ascii_address
