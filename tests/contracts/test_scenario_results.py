"""The stored results of numbered scenarios drop deleted tests."""

from __future__ import annotations

import pytest

from tests.support.scenarios import is_defined

HERE = "tests/contracts/test_scenario_results.py"


@pytest.mark.parametrize(
    ("node", "defined"),
    [
        (f"{HERE}::test_a_result_is_kept_while_its_test_is_defined", True),
        (f"{HERE}::test_a_result_is_kept_while_its_test_is_defined[case]", True),
        (f"{HERE}::test_a_result_is_kept", False),
        ("tests/contracts/test_deleted.py::test_a_result_is_kept_while_its_test_is_defined", False),
    ],
)
def test_a_result_is_kept_while_its_test_is_defined(node: str, defined: bool) -> None:
    assert is_defined(node) is defined
