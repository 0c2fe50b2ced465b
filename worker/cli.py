"""``berth``: the command line. Each subcommand is a module with ``arguments(parser)`` and ``run(arguments) -> int``."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from api.redaction import mask_text
from api.startup_errors import describe_startup_error
from worker.exit import exit_process
from workflows.time_zones import use_packaged_time_zones


@dataclass(frozen=True, slots=True, kw_only=True)
class Subcommand:
    """``module`` is imported only when the subcommand is the one that was asked for."""

    module: str
    help: str


SUBCOMMANDS = {
    "migrate": Subcommand(module="worker.migrate", help="upgrade the database schema to the latest revision"),
    "simulate": Subcommand(module="worker.simulate", help="simulate a subscription's lifecycle on a virtual clock"),
    "seed": Subcommand(module="worker.seed", help="write the catalogue and the demonstration users; safe to repeat"),
}


def parse_arguments(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Return the subcommand's name and its arguments; ends the process with 2 and a usage line when they are wrong."""
    parser = argparse.ArgumentParser(prog="berth", description="Administration commands of Berth.")
    choices = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, subcommand in SUBCOMMANDS.items():
        chosen = choices.add_parser(name, help=subcommand.help, description=subcommand.help)
        if name == next((word for word in argv if not word.startswith("-")), None):
            import_module(subcommand.module).arguments(chosen)
    arguments = parser.parse_args(argv)
    return arguments.subcommand, arguments


def main() -> None:
    use_packaged_time_zones()
    name = ""
    try:
        name, arguments = parse_arguments(sys.argv[1:])
        code: int = import_module(SUBCOMMANDS[name].module).run(arguments)
    except SystemExit as left:
        if left.code is not None and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
        exit_process(left.code if isinstance(left.code, int) else 0 if left.code is None else 1)
    except KeyboardInterrupt:
        exit_process(130)
    except Exception as error:  # noqa: BLE001 - the process ends here
        line = describe_startup_error(error)
        # A traceback only for an error of the program. It may quote an address with its password.
        sys.stderr.write(f"berth {name}: {line}\n" if line else mask_text(traceback.format_exc()))
        exit_process(1)
    exit_process(code)


if __name__ == "__main__":
    main()
