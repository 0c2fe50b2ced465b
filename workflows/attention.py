"""The search attribute by which operators find workflows that need attention."""

from __future__ import annotations

from temporalio import workflow

from workflows import names


def set_needs_attention(value: bool) -> None:
    """Set or clear the attribute; writes no event when it has that value already."""
    current = workflow.info().typed_search_attributes.get(names.NEEDS_ATTENTION_KEY, False)
    if current is not value:
        workflow.upsert_search_attributes([names.NEEDS_ATTENTION_KEY.value_set(value)])
