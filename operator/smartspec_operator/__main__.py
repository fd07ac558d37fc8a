"""The command line of `smartspec-operator`; each subcommand's module brings its own flags."""

import argparse
import sys
from collections.abc import Sequence

from smartspec_operator import local


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status is returned. argparse ends the process with 2 when the command is nonsense."""
    parser = argparse.ArgumentParser(
        prog="smartspec-operator", description="Serves SmartSpec resources: tunes their policy and scales them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    here = commands.add_parser("local", help="serve one SmartSpec on this machine, with processes instead of pods")
    local.add_arguments(here)
    here.set_defaults(main=local.main)
    arguments = parser.parse_args(argv)
    status: int = arguments.main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
