"""The settings of the API and the worker, checked before the stack starts any process."""

from __future__ import annotations

from api.environment import check_environment
from api.settings import ApiSettings
from deploy.local.stack import ConfigurationError, Stack
from worker.settings import WorkerSettings


def require_valid_settings(stack: Stack) -> None:
    """Raise `ConfigurationError` with every setting that the API or the worker would refuse, one a line."""
    faults = [
        fault for settings in (ApiSettings, WorkerSettings) for fault in check_environment(settings, stack.environment)
    ]
    if faults:
        raise ConfigurationError("\n".join(dict.fromkeys(faults)))
