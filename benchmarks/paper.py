"""The paper's experiment on this machine: latency against load for adaptive and fixed speculation.

One server, kept warm, whose policy is swapped over the admin port: nothing is forgotten between modes, so `request`
and `batch` have seen what the fixed lengths did. Every mode meets the same prompts and arrivals; rounds go A B B A. A
second server, started without a draft, shows what a draft that is not used costs.

    python benchmarks/paper.py --minutes 15          # goes on where it was stopped
    python benchmarks/paper.py --rates 1 2 4 8 --minutes 90
    python benchmarks/paper.py --quick --minutes 4   # a few requests of everything
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from smartspec.loadgen.arrivals import turns
from smartspec_bench import paper_report
from smartspec_bench.load import Job, LoadError, open_loop
from smartspec_bench.prompts import ROOT, code
from smartspec_bench.record import Record, RecordError, versions_of
from smartspec_bench.scenarios import ALONE, Scenario, batch, grid, shift, step
from smartspec_bench.servers import Fleet, StartError, cores, fleet, smartspec
from smartspec_bench.session import Budget, Session, add_options, key, output_path

MODES = {
    "off": ("off", 0),
    "fixed 1": ("fixed", 1),
    "fixed 3": ("fixed", 3),
    "fixed 5": ("fixed", 5),
    "fixed 7": ("fixed", 7),
    "batch": ("batch", 8),
    "request": ("request", 8),
}
WITH_DRAFT, WITHOUT_DRAFT = "smartspec", "smartspec-without-draft"
TAX = "held at k = 0"
TAX_MODES = {"with a draft": WITH_DRAFT, "without a draft": WITHOUT_DRAFT}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tokens: int = 48
    seconds: float = 4.0
    alone: int = 4
    at_once: int = 32
    step_seconds: float = 5.0
    shift_seconds: float = 4.0
    moving_rounds: int = 4
    tax_rounds: int = 10


QUICK = Sizes(
    tokens=16, seconds=1.0, alone=1, at_once=4, step_seconds=1.0, shift_seconds=1.0, moving_rounds=1, tax_rounds=2
)


async def measure(options: argparse.Namespace, record: Record) -> None:
    """All that the budget allows: a few rounds of everything, then more of the steady loads."""
    sizes = QUICK if options.quick else Sizes()
    cells = grid(options.rates, sizes.seconds, sizes.alone, sizes.at_once)
    moving = [step(1, 16, sizes.step_seconds), shift(4, sizes.shift_seconds)]
    moving_rounds = min(options.rounds, sizes.moving_rounds)
    total = (len(cells) * options.rounds + len(moving) * moving_rounds) * len(MODES) + 2 * sizes.tax_rounds
    session = Session(record, Budget(options.minutes), total)
    with fleet(ROOT / "benchmarks/out/logs") as servers:
        for name, arguments in ((WITH_DRAFT, ["--draft", str(options.draft)]), (WITHOUT_DRAFT, ["--policy", "off"])):
            session.say(f"starting {name}")  # one by one: each measures the machine while it starts
            await servers.start([smartspec(name, options.target, *arguments)])
        for turn in range(options.rounds):
            for cell in cells:
                await _block(session, servers, cell, turn, sizes)
            if turn == 0:
                await _tax(session, servers, sizes)
            for cell in moving if turn < moving_rounds else ():
                await _block(session, servers, cell, turn, sizes)
    record.note("minutes", round(session.budget.elapsed / 60, 1))


async def _block(session: Session, servers: Fleet, cell: Scenario, turn: int, sizes: Sizes) -> None:
    """Every mode through one cell, in turn, after a burst of the same kind that is no one's measurement."""
    kind = f"{cell.workload} {cell.load}"
    labels: list[dict[str, str | int]] = [
        {"mode": mode, "workload": cell.workload, "load": cell.load, "round": turn + 1}
        for mode in turns(list(MODES), turn)
    ]
    labels = [each for each in labels if not session.record.has(key(each))]
    if not labels:
        return
    if not session.budget.allows(kind, len(MODES) * cell.guess_seconds + 2):
        session.say(f"no time left for round {turn + 1} of {kind}")
        return
    started = time.monotonic()
    server = servers.wake(WITH_DRAFT)
    await server.set_policy(*MODES["request"])
    warm = cell.jobs(turn + 1, sizes.tokens)[: 1 if cell.load == ALONE else 8]
    await open_loop(server.url, [Job(0.0, job.prompt, job.tokens, job.temperature) for job in warm])
    for each in labels:
        await server.set_policy(*MODES[str(each["mode"])])
        await session.take(server, partial(cell.run, server, turn, sizes.tokens), labels=each, parts=cell.bounds)
    session.budget.took(kind, time.monotonic() - started)


async def _tax(session: Session, servers: Fleet, sizes: Sizes) -> None:
    """Saturated batches on a server with a draft that must not be used, and on one that never had any."""
    cell = batch(code(), sizes.at_once)
    for turn in range(sizes.tax_rounds):
        if not session.budget.allows(TAX, 2 * (cell.guess_seconds + 1)):
            session.say(f"no time left for round {turn + 1} of {TAX}")
            return
        started = time.monotonic()
        for name in turns(list(TAX_MODES), turn):
            labels: dict[str, str | int] = {"mode": name, "workload": TAX, "load": cell.load, "round": turn + 1}
            if session.record.has(key(labels)):
                continue
            server = servers.wake(TAX_MODES[name])
            await server.set_policy(*MODES["off"])
            # After its rest, memory and caches have gone cold: warmed before it counts.
            await open_loop(server.url, [Job(0.0, prompt, 8) for prompt in code().take(8, turn)])
            send = partial(cell.run, server, turn, sizes.tokens)
            await session.take(server, send, labels=labels)
        session.budget.took(TAX, time.monotonic() - started)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, minutes=15)
    rates = "requests per second, beside alone and at once (4)"
    parser.add_argument("--rates", type=float, nargs="+", default=[4.0], metavar="R", help=rates)
    options = parser.parse_args(arguments)
    if any(rate <= 0 for rate in options.rates):
        parser.error("--rates: must be above 0")
    return options


def main() -> None:
    """Measure, then report."""
    options = parse()
    settings = {
        "target": options.target.name,
        "draft": options.draft.name,
        "tokens_per_request": (QUICK if options.quick else Sizes()).tokens,
        "threads": len(cores()),
        "quick": options.quick,
    }
    versions = versions_of(["smartspec", "torch", "transformers", "numba"])
    try:
        record = Record.open(output_path(options, "paper"), "paper", settings, versions, fresh=options.fresh)
        if not options.report:
            asyncio.run(measure(options, record))
    except (StartError, LoadError, RecordError) as error:
        raise SystemExit(str(error)) from None
    except ExceptionGroup as group:
        raise SystemExit("\n".join(str(error) for error in group.exceptions)) from None
    paper_report.write(record)


if __name__ == "__main__":
    main()
