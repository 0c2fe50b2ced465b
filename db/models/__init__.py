"""Every table. Importing this package makes ``Base.metadata`` complete; each area adds one line."""

from __future__ import annotations

from db.models import catalogue as catalogue
from db.models import identity as identity
from db.models import instances as instances
from db.models import invoices as invoices
from db.models import ledger as ledger
from db.models import notifications as notifications
from db.models import payments as payments
from db.models import schema as schema
from db.models import subscriptions as subscriptions
