"""The migrations that made the schema."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class SchemaMigration(Base):
    """An applied migration and the checksum of its script: an edited script does not pass for the one that ran."""

    __tablename__ = "schema_migrations"

    revision: Mapped[str] = mapped_column(primary_key=True)
    checksum: Mapped[str]
    applied_at: Mapped[datetime] = mapped_column(server_default=func.now())
