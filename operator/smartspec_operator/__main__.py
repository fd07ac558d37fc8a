"""The command line of `smartspec-operator`: `run` and `try` in a cluster, `local` here, `replay` of a recording."""

import argparse
import asyncio
import json
import logging
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from smartspec import __version__
from smartspec_operator import local, replay
from smartspec_operator.resource import InvalidSpecError
from smartspec_operator.world import Timing

DEFAULT_IMAGE = f"smartspec/runtime:{__version__}"
"""The runtime of the same release, as the chart says it: `latest` may be any, and speak another version's flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status is returned. argparse ends the process with 2 when the command is nonsense."""
    arguments = parser().parse_args(argv)
    status: int = arguments.main(arguments)
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line; what it parses has the subcommand's function as `main`."""
    found = argparse.ArgumentParser(
        prog="smartspec-operator", description="Serves SmartSpec resources: tunes their policy and scales them."
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    there = commands.add_parser("run", help="serve the SmartSpecs of a Kubernetes cluster")
    _add_run_arguments(there)
    there.set_defaults(main=_run)
    trial = commands.add_parser("try", help="serve the runtime image's own models in a cluster, and prompt them")
    _add_try_arguments(trial)
    trial.set_defaults(main=_try)
    here = commands.add_parser("local", help="serve one SmartSpec on this machine, with processes instead of pods")
    local.add_arguments(here)
    here.set_defaults(main=local.main)
    again = commands.add_parser("replay", help="what would have been decided from the load that replicas recorded")
    replay.add_arguments(again)
    again.set_defaults(main=replay.main)
    return found


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


def _add_try_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", default="default", help="where to serve it (default: %(default)s)")
    parser.add_argument(
        "--timeout-seconds",
        type=_seconds,
        default=600.0,
        help="how long it may take until it answers, the image's download included (default: %(default)g)",
    )
    parser.add_argument(
        "--resources", type=_resources, default={}, metavar="JSON", help="the replica's resources, as in a pod"
    )
    parser.add_argument(
        "--image-pull-secret", action="append", default=[], metavar="NAME", help="a Secret to pull the image with"
    )


def _try(arguments: argparse.Namespace) -> int:
    from smartspec_operator import connection, kube, trial  # the generated client takes a while to import

    try:
        name = f"try-{secrets.token_hex(3)}"
        body = trial.wish(arguments.namespace, name, arguments.resources, arguments.image_pull_secret)
        asyncio.run(trial.run(body, timeout_seconds=arguments.timeout_seconds))
    except (InvalidSpecError, connection.NoClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (trial.TrialError, kube.ApiError, asyncio.CancelledError) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
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


def _resources(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())
