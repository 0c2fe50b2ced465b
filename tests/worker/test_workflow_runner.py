"""What the workers' sandbox relies on: no part of the data converter uses a serialization context."""

from __future__ import annotations

from temporalio.converter import WorkflowSerializationContext

from tests.support.api import ENCRYPTION_KEY
from workflows.connection import data_converter
from workflows.settings import TemporalSettings, parse_encryption_keys


def test_the_data_converter_is_the_same_in_every_serialization_context() -> None:
    keys = parse_encryption_keys(ENCRYPTION_KEY)
    converter = data_converter(TemporalSettings(address="127.0.0.1:1", encryption_keys=keys))
    context = WorkflowSerializationContext(namespace="default", workflow_id="subscription/sub_1")
    assert converter.with_context(context) is converter
    assert converter.external_storage is None
