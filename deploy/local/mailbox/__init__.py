"""The mailbox of the one-machine stack: keeps every mail that the platform sends."""

from deploy.local.mailbox.mailbox import Mailbox

__all__ = ["Mailbox"]
