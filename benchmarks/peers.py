"""Against the servers people would use otherwise: the same prompts and arrivals for vLLM, `transformers` and SmartSpec.

All run on the same cores with as many threads as there are cores, on the same bf16 weights, one at a time: those that
wait are stopped. A round takes every mode through a load; rounds go A B B A. In the first round of a load every mode is
measured; later ones leave out who took twice as long as the fastest of its maker, for it cannot be the best.

    python benchmarks/peers.py --minutes 12           # goes on where it was stopped
    python benchmarks/peers.py --prepare              # before: make vLLM's environment, let it compile
    python benchmarks/peers.py --quick --minutes 6    # a few requests of everything
"""

import argparse
import asyncio
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smartspec.loadgen.arrivals import Phase, poisson, turns
from smartspec_bench import peers_report, vllm_peer
from smartspec_bench.load import Job, LoadError, open_loop
from smartspec_bench.prompts import ROOT, code
from smartspec_bench.record import Record, RecordError, versions_of
from smartspec_bench.servers import Fleet, Server, StartError, assisted, available_gib, cores, fleet, smartspec
from smartspec_bench.session import Budget, Session, add_options, key, output_path

SEED = 20240614
TOKENS = 96
HOPELESS = 2.0
OURS = {"smartspec-off": ("off", 0), "smartspec-request": ("request", 8), "smartspec-fixed-4": ("fixed", 4)}
TRANSFORMERS = "transformers"
SERVER_MEMORY_GIB = 3.5
"""Of a vLLM process with a cache of 1 GiB; ours takes less."""


@dataclass(frozen=True)
class Load:
    """Requests per second for so many requests, or (rate 0) all at once.

    *calm*: slow enough for a server that takes one request at a time; at any other its queue only grows.
    """

    name: str
    rate: float
    requests: int
    calm: bool = False

    def arrivals(self, turn: int) -> list[float]:
        """When they come, in round *turn*: others in every round, the same for every mode."""
        if not self.rate:
            return [0.0] * self.requests
        return poisson([Phase(self.rate, self.requests / self.rate)], SEED + turn)


FULL = (Load("64 at once", 0, 64), Load("2/s", 2, 20), Load("0.3/s", 0.3, 6, calm=True), Load("4/s", 4, 32))
QUICK = (Load("8 at once", 0, 8), Load("1/s", 1, 3, calm=True))


async def measure(options: argparse.Namespace, record: Record) -> None:
    """All that the budget allows."""
    loads = QUICK if options.quick else FULL
    names = [*vllm_peer.modes(options.draft), *OURS, TRANSFORMERS]
    modes = [name for name in names if not options.modes or name in options.modes]
    session = Session(record, Budget(options.minutes), sum(len(modes) for _ in loads) * options.rounds)
    with fleet(ROOT / "benchmarks/out/logs") as servers:
        await _start(servers, modes, options, session)
        for turn in range(options.rounds):
            for load in loads:
                order = [mode for mode in turns(modes, turn) if _worth_it(record, mode, load, turn)]
                guess = load.requests * (1 / load.rate if load.rate else 0.2) * len(order) + 10
                if not session.budget.allows(load.name, guess):
                    session.say(f"no time left for round {turn + 1} of {load.name}")
                    continue
                started = time.monotonic()
                for mode in order:
                    await _take(session, servers, mode, load, turn)
                session.budget.took(load.name, time.monotonic() - started)
    record.note("minutes", round(session.budget.elapsed / 60, 1))


async def _start(servers: Fleet, modes: Sequence[str], options: argparse.Namespace, session: Session) -> None:
    """Ours alone, for it measures the machine while it starts; vLLM's side by side, for most of their start is one
    thread's work."""
    peers = [mode for mode in modes if mode in vllm_peer.modes(options.draft)]
    if available_gib() < (needed := SERVER_MEMORY_GIB * (len(peers) + 1)):
        raise StartError(f"{needed:.0f} GiB of free memory are needed; choose fewer with --modes")
    arguments = (options.vllm_venv, options.target, options.draft, options.vllm_cache, 1)
    launches = [[vllm_peer.launch(mode, *arguments) for mode in peers]]
    if TRANSFORMERS in modes:
        launches.insert(0, [assisted(options.target, options.draft)])
    if OURS.keys() & set(modes):
        ours = smartspec("smartspec", options.target, "--draft", str(options.draft))
        environment = {**ours.environment, **_libraries(options.vllm_venv)}
        launches.insert(0, [dataclasses.replace(ours, environment=environment)])
    for together in launches:
        if together:
            session.say(f"starting {', '.join(launch.name for launch in together)}")
            await servers.start(together)
    warm = code().take(9, 1000)
    for mode in modes:
        server = await _wake(servers, mode)
        at_once = 8 if mode != TRANSFORMERS else 1
        await open_loop(server.url, [Job(0.0, warm[0], 32)])
        await open_loop(server.url, [Job(0.0, prompt, 32) for prompt in warm[1 : 1 + at_once]])
    session.say("all are ready and warm")


async def _wake(servers: Fleet, mode: str) -> Server:
    server = servers.wake("smartspec" if mode in OURS else mode)
    if mode in OURS:
        await server.set_policy(*OURS[mode])
    return server


def _libraries(venv: Path) -> dict[str, str]:
    """The environment that gives our server what vLLM's gets: the same allocator and OpenMP."""
    named = {"LD_PRELOAD": vllm_peer.tcmalloc(), "SMARTSPEC_OPENMP": vllm_peer.openmp(venv)}
    return {name: str(path) for name, path in named.items() if path is not None}


async def _take(session: Session, servers: Fleet, mode: str, load: Load, turn: int) -> None:
    labels: dict[str, str | int] = {"mode": mode, "load": load.name, "round": turn + 1}
    if session.record.has(key(labels)):
        return
    prompts = code().take(load.requests, turn)
    jobs = [Job(time_, prompt, TOKENS) for time_, prompt in zip(load.arrivals(turn), prompts, strict=True)]
    server = await _wake(servers, mode)
    # A stopped process has lost its place in the caches: the first request after its wake is no one's measurement.
    await open_loop(server.url, [Job(0.0, prompts[0], 8)])
    try:
        await session.take(server, lambda: open_loop(server.url, jobs), labels=labels)
    except LoadError as error:
        raise LoadError(f"{mode}, {load.name}: {error}\nthe end of {server.log}:\n{server.tail()}") from None


def _worth_it(record: Record, mode: str, load: Load, turn: int) -> bool:
    """Whether *mode* could be the best of its maker at *load*, or has not been tried."""
    if mode == TRANSFORMERS:
        return load.calm
    if turn == 0:
        return True
    first = {
        run["mode"]: run["mean_latency_seconds"]
        for run in record.runs
        if run["load"] == load.name and run["round"] == 1
    }
    maker = mode.partition("-")[0]
    best = min((latency for name, latency in first.items() if name.startswith(maker)), default=0.0)
    if mode in (f"{maker}-off", "smartspec-request"):
        return True
    return bool(first.get(mode, 0.0) <= HOPELESS * best)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, minutes=12)
    parser.add_argument("--vllm-venv", type=Path, default=ROOT / ".cache/vllm-venv", help="made if it is not there")
    parser.add_argument("--vllm-cache", type=Path, default=ROOT / ".cache/vllm-cache", help="what vLLM compiles")
    parser.add_argument("--torch-index", help=f"where the CPU build of torch is ({vllm_peer.TORCH_INDEX})")
    parser.add_argument("--modes", nargs="+", help="only these")
    parser.add_argument("--prepare", action="store_true", help="make vLLM's environment and start every mode once")
    options = parser.parse_args(arguments)
    known = [*vllm_peer.modes(options.draft), *OURS, TRANSFORMERS]
    if unknown := set(options.modes or ()) - set(known):
        parser.error(f"--modes: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    # vLLM's own processes start elsewhere: paths must not depend on where this was called.
    for name in ("vllm_venv", "vllm_cache", "target", "draft"):
        setattr(options, name, getattr(options, name).absolute())
    return options


def main() -> None:
    """Measure, then report."""
    options = parse()
    path = output_path(options, "peers")
    vllm_peer.make_venv(options.vllm_venv, lambda text: print(text, file=sys.stderr), options.torch_index)
    versions = versions_of(["smartspec", "torch", "transformers"]) | vllm_peer.versions(options.vllm_venv)
    settings = {
        "target": options.target.name,
        "draft": options.draft.name,
        "tokens_per_request": TOKENS,
        "threads": len(cores()),
        "libraries": [path.name for path in vllm_peer.preloads(options.vllm_venv)],
        "quick": options.quick,
    }
    try:
        record = Record.open(path, "peers", settings, versions, fresh=options.fresh)
        if options.prepare:
            with fleet(ROOT / "benchmarks/out/logs") as servers:
                session = Session(record, Budget(60), 0)
                asyncio.run(_start(servers, list(vllm_peer.modes(options.draft)), options, session))
            return
        if not options.report:
            asyncio.run(measure(options, record))
    except (StartError, LoadError, RecordError) as error:
        raise SystemExit(str(error)) from None
    except ExceptionGroup as group:
        raise SystemExit("\n".join(str(error) for error in group.exceptions)) from None
    peers_report.write(record)


if __name__ == "__main__":
    main()
