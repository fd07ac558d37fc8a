"""The command line of `smartspec-operator`: `run` in a cluster, `local` on this machine, `replay` of a recording."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from smartspec_operator import local, replay
from smartspec_operator.world import Timing

DEFAULT_IMAGE = "smartspec/runtime:latest"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status is returned. argparse ends the process with 2 when the command is nonsense."""
    parser = argparse.ArgumentParser(
        prog="smartspec-operator", description="Serves SmartSpec resources: tunes their policy and scales them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    there = commands.add_parser("run", help="serve the SmartSpecs of a Kubernetes cluster")
    _add_run_arguments(there)
    there.set_defaults(main=_run)
    here = commands.add_parser("local", help="serve one SmartSpec on this machine, with processes instead of pods")
    local.add_arguments(here)
    here.set_defaults(main=local.main)
    again = commands.add_parser("replay", help="what would have been decided from the load that replicas recorded")
    replay.add_arguments(again)
    again.set_defaults(main=replay.main)
    arguments = parser.parse_args(argv)
    status: int = arguments.main(arguments)
    return status


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--namespace", default="default", help="serve this namespace only (default: %(default)s)")
    scope.add_argument("--all-namespaces", action="store_true", help="serve every namespace")
    parser.add_argument(
        "--runtime-image", default=DEFAULT_IMAGE, help="image of replicas whose spec names none (default: %(default)s)"
    )
    parser.add_argument("--probe-port", type=_port, help="answer /healthz, /readyz and /metrics on this port")
    parser.add_argument(
        "--lease-name",
        default="smartspec-operator",
        help="the Lease that makes one of several operators the one that acts (default: %(default)s)",
    )
    parser.add_argument("--lease-namespace", help="where it is (default: the pod's own namespace)")
    parser.add_argument(
        "--lease-seconds",
        type=_seconds,
        default=15.0,
        help="after so long without a sign another takes over (default: %(default)g)",
    )
    parser.add_argument("--verbose", action="store_true", help="log every detail")
    timing = Timing()
    for name, default, text in (
        ("tick", timing.tick_seconds, "read every replica"),
        ("tuning", timing.tuning_seconds, "decide on the policy"),
        ("scaling", timing.scaling_seconds, "decide on the number of replicas"),
    ):
        parser.add_argument(
            f"--{name}-seconds", type=_seconds, default=default, help=f"how often to {text} (default: %(default)g)"
        )


def _run(arguments: argparse.Namespace) -> int:
    # Imported here: kopf takes a while to import, and `local` has no use for it.
    from smartspec_operator import connection, handlers, lease

    level = logging.DEBUG if arguments.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.DEBUG if arguments.verbose else logging.WARNING)
    running = handlers.run(
        namespace=None if arguments.all_namespaces else arguments.namespace,
        image=arguments.runtime_image,
        probe_port=arguments.probe_port,
        lease_name=handlers.LeaseName(
            arguments.lease_namespace or handlers.own_namespace(), arguments.lease_name, arguments.lease_seconds
        ),
        timing=Timing(
            tick_seconds=arguments.tick_seconds,
            tuning_seconds=arguments.tuning_seconds,
            scaling_seconds=arguments.scaling_seconds,
        ),
    )
    try:
        asyncio.run(running)
    except (connection.NoClusterError, OSError) as error:  # OSError: the probe's port is taken
        print(f"error: {error}", file=sys.stderr)
        return 2
    except lease.LeaseLostError as error:
        print(f"error: the lease {error}", file=sys.stderr)
        return 1
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to 3600")
    return value


if __name__ == "__main__":
    sys.exit(main())
