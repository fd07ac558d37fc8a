"""`smartspec bench URL`: look at the server, send it what was planned, mode by mode in turns, say what came of it."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smartspec import __version__
from smartspec.loadgen import picture, report
from smartspec.loadgen.arguments import KEY_VARIABLES, BenchOptions
from smartspec.loadgen.arrivals import turns
from smartspec.loadgen.client import Client, Job, error_message
from smartspec.loadgen.counters import counters, difference
from smartspec.loadgen.plan import Mode
from smartspec.loadgen.run import Run, carry_out
from smartspec.loadgen.summary import Summary

PROBE_SECONDS = 60.0
SETTLE_SECONDS = 0.4
"""Before counters are read: a server may show ones that are a moment old, so that scrapes cost it little."""
INTERRUPTED = 128 + signal.SIGINT


class BenchError(RuntimeError):
    """The server cannot be loaded as asked; the message says why, and what would help."""


@dataclass
class Bench:
    """What was measured by mode, in the order named; *is_interrupted*: there would have been more."""

    modes: tuple[Mode, ...]
    runs: dict[str, list[Run]] = field(default_factory=dict)
    is_interrupted: bool = False

    @property
    def summaries(self) -> list[Summary]:
        """One for each mode that was tried."""
        return [Summary(mode.name, tuple(self.runs[mode.name])) for mode in self.modes if mode.name in self.runs]


def bench(options: BenchOptions) -> int:
    """Do it, and print what came of it; returns 0, 1 when requests failed, or 130 when it was interrupted.

    Raises BenchError, and ConfigError for a picture that cannot be drawn.
    """
    if options.picture_file is not None:
        picture.check_drawable(options.picture_file)
    began = time.time()
    progress_console = Console(stderr=True)
    try:
        found = asyncio.run(_measure(options, progress_console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("smartspec: interrupted before anything was measured", file=sys.stderr)
        return INTERRUPTED
    summaries = found.summaries
    report.show(Console(width=None if sys.stdout.isatty() else 160), summaries, options.plan.described)
    if options.json_file is not None:
        header = {
            "format": "smartspec-bench/1",
            "version": __version__,
            "time": began,
            "url": str(options.base),
            "load": options.plan.described,
            "fields": dict(options.fields),
            "interrupted": found.is_interrupted,
        }
        modes = [summary.as_json() for summary in summaries]
        options.json_file.write_text(json.dumps(header | {"modes": modes}, indent=1) + "\n")
    if options.picture_file is not None and any(summary.answered for summary in summaries):
        picture.draw(summaries, options.plan.described, options.picture_file)
    if found.is_interrupted:
        return INTERRUPTED
    return 0 if all(summary.samples and not summary.errors for summary in summaries) else 1


async def _measure(options: BenchOptions, console: Console) -> Bench:
    """Everything that is sent. Ctrl-C and SIGTERM end it early, with what there is by then."""
    bench = Bench(options.modes)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with _client(options) as client:
            with _progress(console) as progress:
                by_name = {mode.name: mode for mode in options.modes}
                for turn in range(options.rounds):
                    for name in turns(list(by_name), turn):
                        label = name if options.compares else client.model
                        if options.rounds > 1:
                            label += f", round {turn + 1} of {options.rounds}"
                        await _run_once(options, client, by_name[name], bench, _Bar(progress, label, options))
    except asyncio.CancelledError:
        if not bench.runs:
            raise
        bench.is_interrupted = True
    return bench


async def _run_once(options: BenchOptions, client: Client, mode: Mode, bench: Bench, bar: "_Bar") -> None:
    run = Run()
    before = await _scrape(client)
    bench.runs.setdefault(mode.name, []).append(run)
    try:
        await carry_out(options.plan, client, run, speculation=mode.field, tell=bar.show)
    finally:
        bar.end(run)
        after = None if before is None else await asyncio.shield(_scrape(client))
        run.counted = None if before is None or after is None else difference(before, after)


@asynccontextmanager
async def _client(options: BenchOptions) -> AsyncIterator[Client]:
    """A client of a server that has answered one request as it will be asked to; raises BenchError."""
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    timeout = ClientTimeout(total=options.timeout_seconds)
    async with ClientSession(connector=TCPConnector(limit=0), timeout=timeout, headers=headers) as session:
        listed = await _models(session, options)
        named = options.model or next(iter(listed), None)
        if named is None:
            raise BenchError(f"{options.base} lists no model: name one with --model")
        is_ours = "proposers" in listed.get(named, {})
        if options.compares and not is_ours:
            raise BenchError(f"--compare: {options.base} is no SmartSpec server: it would not heed how to speculate")
        client = Client(session, options.base, named, options.chat, options.fields, isolates=is_ours)
        await _try(client, options)
        yield client


async def _models(session: ClientSession, options: BenchOptions) -> dict[str, Mapping[str, Any]]:
    """The models that the server lists, by id, or none where it has no such list."""
    try:
        async with session.get(options.base / "v1/models", timeout=ClientTimeout(total=PROBE_SECONDS)) as answer:
            text = await answer.text()
            if answer.status == 401:
                raise _unauthorised(options)
            if answer.status == 503:
                raise BenchError(f"{options.base} is not ready: {error_message(text)}")
            if answer.status != 200:
                return {}
    except (ClientError, TimeoutError, UnicodeDecodeError) as error:
        why = str(error) or type(error).__name__
        raise BenchError(f"{options.base} cannot be reached: {why}") from None
    try:
        return {str(model["id"]): model for model in json.loads(text)["data"]}
    except (ValueError, KeyError, TypeError):
        return {}


async def _try(client: Client, options: BenchOptions) -> None:
    """One short request, before hundreds fail in the same way; raises BenchError."""
    job = Job(-1, 0.0, options.plan.jobs[0].prompt, 1)
    sample = await client.send(job, started=client.clock(), speculation=options.modes[0].field)
    if not sample.error or sample.error == "cut short":  # one token may be no text at all
        return
    detail = f": {sample.detail}" if sample.detail else ""
    if sample.error == "HTTP 401":
        raise _unauthorised(options)
    if sample.error == "HTTP 404":
        raise BenchError(f"{options.base} has no model {client.model!r}, or no such endpoint{detail}")
    if sample.error != "HTTP 429":  # a full queue is what a load test may well meet
        raise BenchError(f"{options.base} refused the first request ({sample.error}){detail}")


def _unauthorised(options: BenchOptions) -> BenchError:
    what = "refused the key" if options.api_key else "wants a key"
    return BenchError(f"{options.base} {what}: give it with --api-key-file or in {' or '.join(KEY_VARIABLES)}")


async def _scrape(client: Client) -> dict[str, float] | None:
    """The server's counters, or None where it shows none."""
    await asyncio.sleep(SETTLE_SECONDS)
    try:
        async with client.session.get(client.base / "metrics", timeout=ClientTimeout(total=10)) as answer:
            return counters(await answer.text()) or None if answer.status == 200 else None
    except (ClientError, TimeoutError, ValueError):
        return None


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


class _Bar:
    """A run's line in the progress display; where there is no terminal, one line at its end."""

    def __init__(self, progress: Progress, label: str, options: BenchOptions) -> None:
        plan = options.plan
        # How many there will be is not known where only the time is.
        total = None if plan.clients is not None and plan.seconds is not None else len(plan)
        self._progress, self._label = progress, label
        self._task = progress.add_task(label, total=total, words="")
        self._tokens = self._errors = self._seen = 0

    def show(self, run: Run) -> None:
        """Take in what is new in *run*."""
        for sample in run.samples[self._seen :]:
            self._tokens += sample.tokens
            self._errors += bool(sample.error)
        self._seen = len(run.samples)
        self._progress.update(self._task, completed=self._seen, words=self._words(run))

    def end(self, run: Run) -> None:
        """The run is over."""
        self._progress.update(self._task, completed=self._seen, words=self._words(run), refresh=True)
        if self._progress.disable:
            print(f"{self._label}: {self._seen} requests, {self._words(run)}", file=sys.stderr, flush=True)

    def _words(self, run: Run) -> str:
        rate = f"{self._tokens / run.seconds:.1f} tokens/s" if run.seconds else "..."
        under_way = f", {run.num_in_flight} under way" if run.num_in_flight else ""
        failed = f", {self._errors} failed" if self._errors else ""
        return rate + under_way + failed
