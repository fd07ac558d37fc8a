"""Other people's load generators against SmartSpec: `vllm bench serve` and guidellm, each in an environment of its own.

Starts a server on the bundled pair, or takes the one at URL, runs both with a few requests of each kind they know, and
shows what they print. What counts is that they find nothing amiss: the exit status is 1 if a request failed or was cut
short, tokens are missing, or the speculation counters were not found. Their figures are not kept: see `smartspec bench`
and the benchmarks for those.

    python benchmarks/clients.py                                       # both
    python benchmarks/clients.py --clients guidellm
    python benchmarks/clients.py --url http://127.0.0.1:8000 --model NAME --target FOLDER-WITH-ITS-TOKENIZER
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smartspec_bench import vllm_peer
from smartspec_bench.foreign import CLIENTS, Task, environment, make_guidellm, make_vllm
from smartspec_bench.load import MODEL
from smartspec_bench.prompts import ROOT
from smartspec_bench.servers import StartError, fleet, smartspec

OUT = ROOT / "benchmarks/out/clients"


async def serve_and_run(options: argparse.Namespace) -> list[str]:
    """What was amiss, on a server of our own."""
    with fleet(OUT) as servers:
        await servers.start([smartspec("smartspec", options.target, "--draft", str(options.draft))])
        return run(options, str(servers.wake("smartspec").url), MODEL)


def run(options: argparse.Namespace, url: str, model: str) -> list[str]:
    """What was amiss, task by task; their output goes where ours goes."""
    OUT.mkdir(parents=True, exist_ok=True)
    amiss = []
    for client in options.clients:
        venv = getattr(options, f"{client}_venv")
        for task in CLIENTS[client](venv, url, model, options.target, OUT):
            print(f"\n== {task.name}", flush=True)
            found = _take(task, venv)
            amiss += [f"{task.name}: {text}" for text in found]
    return amiss


def _take(task: Task, venv: Path) -> list[str]:
    task.result.unlink(missing_ok=True)
    try:
        ended = subprocess.run(task.command, env=environment(venv), check=False, timeout=task.seconds).returncode
    except subprocess.TimeoutExpired:
        return [f"did not end in {task.seconds:.0f} s"]
    if ended or not task.result.exists():
        return [f"ended with status {ended}" + ("" if task.result.exists() else " and wrote no result")]
    return task.judge(task.result)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--model", help="its name there; needed with --url")
    parser.add_argument("--target", type=Path, default=ROOT / "examples/models/stdlib-target")
    parser.add_argument("--draft", type=Path, default=ROOT / "examples/models/stdlib-draft")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="only these")
    parser.add_argument("--vllm-venv", type=Path, default=ROOT / ".cache/vllm-venv", help="made if it is not there")
    parser.add_argument("--guidellm-venv", type=Path, default=ROOT / ".cache/guidellm-venv", help="likewise")
    parser.add_argument("--torch-index", help=f"where the CPU build of torch is ({vllm_peer.TORCH_INDEX})")
    options = parser.parse_args(arguments)
    if (options.url is None) != (options.model is None):
        parser.error("--url and --model go together")
    for name in ("target", "draft", "vllm_venv", "guidellm_venv"):
        setattr(options, name, getattr(options, name).absolute())
    return options


def main() -> None:
    """Install, run, judge."""
    options = parse()

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    if "vllm" in options.clients:
        make_vllm(options.vllm_venv, say, options.torch_index)
    if "guidellm" in options.clients:
        make_guidellm(options.guidellm_venv, say)
    try:
        amiss = run(options, options.url, options.model) if options.url else asyncio.run(serve_and_run(options))
    except StartError as error:
        raise SystemExit(str(error)) from None
    except ExceptionGroup as group:
        raise SystemExit("\n".join(str(error) for error in group.exceptions)) from None
    print("\n" + ("\n".join(amiss) or "every request of every client was answered in full"))
    raise SystemExit(bool(amiss))


if __name__ == "__main__":
    main()
