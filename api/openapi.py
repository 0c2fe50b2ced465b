"""The schema as a file: ``python -m api.openapi > openapi.json``; ``--check`` only says whether that is current."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.app import create_app
from api.settings import ApiSettings

COMMITTED = Path(__file__).resolve().parents[1] / "openapi.json"


def build_schema() -> dict[str, Any]:
    """As production shows it: the sandbox's routes are absent."""
    url = "postgresql+psycopg://berth_api@/berth"
    settings = ApiSettings(
        environment="test",
        api_database_url=SecretStr(url),
        jwt_secret=SecretStr("0" * 32),
        temporal_address="127.0.0.1:7233",
    )
    return create_app(settings).openapi()


def render_schema() -> str:
    return json.dumps(build_schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    text = render_schema()
    if arguments != ["--check"]:
        sys.stdout.write(text)
        return 0
    if COMMITTED.exists() and COMMITTED.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write("openapi.json is not what the routes say: python -m api.openapi > openapi.json\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
