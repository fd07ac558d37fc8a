"""`smartspec-operator local FILE`: the operator's own reconcile over processes on this machine instead of pods.

The same decisions, manifests and status as on Kubernetes; the file stands for the API server, processes for pods, a
small front for the Service.
"""

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from aiohttp import ClientSession, TCPConnector

from smartspec_operator import front as fronts
from smartspec_operator import status as statuses
from smartspec_operator.cluster import NotOursError
from smartspec_operator.front import Front
from smartspec_operator.local_cluster import RUNTIME, LocalCluster
from smartspec_operator.local_cores import available_cores
from smartspec_operator.local_file import Documents, FileError, ResourceFile
from smartspec_operator.local_report import Narrator, snapshot, write
from smartspec_operator.metrics import Metrics
from smartspec_operator.reconcile import reconcile
from smartspec_operator.replicas import AT_ONCE, HttpReplicas
from smartspec_operator.reported import Status
from smartspec_operator.resource import InvalidSpecError, SmartSpec, parse
from smartspec_operator.rules import violations
from smartspec_operator.world import Due, Timing

IMAGE = "this-machine"
DEBOUNCE_SECONDS = 0.1
MIN_TUNING_SECONDS, MIN_SCALING_SECONDS = 2.0, 4.0
"""Shorter than on Kubernetes: everything is near, and somebody is watching."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    file: Path
    host: str = "127.0.0.1"
    port: int = 8000
    tick_seconds: float = 1.0
    grace_seconds: float = 10.0
    status_file: Path | None = None
    folder: Path | None = None
    runtime: Sequence[str] = RUNTIME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `local`; their values become `Options`."""
    defaults = Options(Path())
    parser.add_argument("file", type=Path, metavar="FILE", help="a SmartSpec; edits are applied as they are saved")
    parser.add_argument("--host", default=defaults.host, help="where the front listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=defaults.port, help="its port, 0 for any (default: %(default)s)")
    parser.add_argument(
        "--tick", type=float, default=defaults.tick_seconds, metavar="SECONDS", dest="tick_seconds",
        help="time between two looks at the replicas (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=float, default=defaults.grace_seconds, metavar="SECONDS", dest="grace_seconds",
        help="how long requests may go on after Ctrl-C; again Ctrl-C ends them (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--status-file", type=Path, metavar="JSON", help="keep the state of everything in this file")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the replicas' logs and files here (default: a temporary one)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run until Ctrl-C or SIGTERM; 0 when stopped so, 2 when the file or the address is no good to begin with."""
    options = Options(
        **{field: getattr(arguments, field) for field in Options.__dataclass_fields__ if field in arguments}
    )
    try:
        with contextlib.ExitStack() as stack:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smartspec-")))
            folder.mkdir(parents=True, exist_ok=True)
            asyncio.run(serve(options, folder))
    except (FileError, InvalidSpecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(options: Options, folder: Path) -> None:
    """Serve *options.file* until a signal; raises `FileError` or `InvalidSpecError` only before anything runs."""
    file = ResourceFile(options.file)
    owner = _parsed(file.read(), Status())
    stopping = asyncio.Event()
    async with Front() as front, ClientSession(connector=TCPConnector(limit=0)) as session:
        runner = await fronts.serve(front, options.host, options.port)
        cluster = LocalCluster(
            folder, session, threads=_threads(owner), route=front.route, now=_now, runtime=options.runtime
        )
        _on_signals(stopping, cluster)
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        say(f"serving {owner.served_name} on {url}/v1; logs in {folder / 'logs'}")
        try:
            replicas = HttpReplicas(session, cluster, Metrics(), asyncio.Semaphore(AT_ONCE))
            await _Loop(options, file, owner, cluster, replicas, front, url).run(stopping)
        finally:
            say("stopping")
            await cluster.stop(options.grace_seconds)
            await runner.cleanup()


class _Loop:
    """Reconciles after every tick, every edit, and every change of a process."""

    def __init__(
        self,
        options: Options,
        file: ResourceFile,
        owner: SmartSpec,
        cluster: LocalCluster,
        replicas: HttpReplicas,
        front: Front,
        url: str,
    ) -> None:
        self._options = options
        self._file = file
        self._owner = owner
        self._cluster = cluster
        self._replicas = replicas
        self._front = front
        self._url = url
        self._narrator = Narrator(say)
        tick = options.tick_seconds
        self._timing = Timing(tick, max(tick, MIN_TUNING_SECONDS), max(tick, MIN_SCALING_SECONDS))
        self._tuned = self._scaled = float("-inf")

    async def run(self, stopping: asyncio.Event) -> None:
        """Until *stopping*."""
        while not stopping.is_set():
            self._cluster.changed.clear()
            status = msgspec.structs.replace(await self._status(), url=f"{self._url}/v1")
            self._owner = msgspec.structs.replace(self._owner, status=status)
            self._narrator.tell(status, self._cluster.pods)
            if self._options.status_file is not None:
                state = snapshot(self._owner, self._url, self._cluster.pods, self._front)
                write(self._options.status_file, state)
            await _first(stopping, self._cluster.changed, seconds=self._timing.tick_seconds)
            # A start changes the state of a process several times in a moment: look once, afterwards.
            await _first(stopping, seconds=DEBOUNCE_SECONDS)

    async def _status(self) -> Status:
        """Reconcile what the file says now; what is wrong with it is a status, and the last good file is carried on."""
        generation = self._owner.generation
        try:
            documents = self._file.read()
            generation = documents.resource["metadata"]["generation"]
            owner = _parsed(documents, self._owner.status)
            for companion in documents.companions:
                await self._cluster.apply(companion)
            self._cluster.threads = _threads(owner)
            status = await self._reconcile(owner)
        except (FileError, InvalidSpecError, NotOursError) as error:
            reason, old = "NameTaken" if isinstance(error, NotOursError) else "InvalidSpec", self._owner.status
            with contextlib.suppress(InvalidSpecError, NotOursError):
                seen = statuses.observed(old, await self._reconcile(self._owner))
                return statuses.refused(old, reason, str(error), seen=seen, generation=generation, now=_now())
            return statuses.refused(old, reason, str(error), generation=generation, now=_now())
        self._owner = owner
        return status

    async def _reconcile(self, owner: SmartSpec) -> Status:
        return await reconcile(
            owner,
            self._cluster,
            self._replicas,
            now=_now(),
            image=IMAGE,
            new_key=lambda: secrets.token_urlsafe(32),
            timing=self._timing,
            due=self._due(),
        )

    def _due(self) -> Due:
        clock = asyncio.get_running_loop().time()
        tuning = clock - self._tuned >= self._timing.tuning_seconds
        scaling = tuning and clock - self._scaled >= self._timing.scaling_seconds
        self._tuned = clock if tuning else self._tuned
        self._scaled = clock if scaling else self._scaled
        return Due(tuning, scaling)


def say(line: str) -> None:
    """One line for whoever watches."""
    print(f"{_now().astimezone():%H:%M:%S} {line}", flush=True)


def _parsed(documents: Documents, status: Status) -> SmartSpec:
    """The file's SmartSpec with the status it has; raises `InvalidSpecError`."""
    owner = msgspec.structs.replace(parse(documents.resource), status=status)
    if broken := violations(owner.name, owner.spec):
        raise InvalidSpecError("; ".join(broken))
    return owner


def _threads(owner: SmartSpec) -> int:
    """Each replica's share of the cores when there are as many as there may be.

    From its start, and not when a second one comes: two replicas that each believe to have all cores stand in each
    other's way many times over.
    """
    scale = owner.spec.autoscaling
    most = scale.max_replicas if scale is not None else owner.spec.replicas or 1
    return max(1, available_cores() // most)


def _on_signals(stopping: asyncio.Event, cluster: LocalCluster) -> None:
    """Stop at the first Ctrl-C or SIGTERM, and without grace at the second."""

    def stop() -> None:
        if stopping.is_set():
            cluster.kill()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _first(*events: asyncio.Event, seconds: float) -> None:
    """Return when one of *events* is set, or after *seconds*."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _now() -> datetime:
    return datetime.now(UTC)
