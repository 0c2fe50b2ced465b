"""What a process would log, as text."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from api.logs import LogHandler


@contextmanager
def capture_log(configure_logging: Callable[..., None], *, level: str) -> Iterator[io.StringIO]:
    """Configure logging as a process does, and collect its lines until the block ends."""
    root_logger = logging.getLogger()
    handlers, previous_level = root_logger.handlers[:], root_logger.level
    configure_logging(level=level)
    (log_handler,) = root_logger.handlers
    assert isinstance(log_handler, logging.StreamHandler)
    written = io.StringIO()
    log_handler.setStream(written)
    try:
        yield written
    finally:
        root_logger.handlers, root_logger.level = handlers, previous_level
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@contextmanager
def only_configured_handler() -> Iterator[None]:
    """Take pytest's handlers, which render and raise in their own way, off the root logger until the block ends."""
    root_logger = logging.getLogger()
    handlers = root_logger.handlers[:]
    root_logger.handlers = [handler for handler in handlers if isinstance(handler, LogHandler)]
    try:
        yield
    finally:
        root_logger.handlers = handlers
