"""What `vllm bench serve` and guidellm are asked to do, and what their results must say."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartspec_bench import vllm_peer
from smartspec_bench.prompts import ROOT

GUIDELLM_VERSION = "0.8.1"
REQUESTS = 8
TOKENS = 24
SECONDS = 300.0
PROMPTS = ROOT / "examples/models/prompts.jsonl"


@dataclass(frozen=True)
class Task:
    """One run of a client that writes its *result* as JSON; *judge* says what is amiss in it."""

    name: str
    command: Sequence[str]
    result: Path
    judge: Callable[[Path], list[str]]
    seconds: float = SECONDS


def vllm(venv: Path, url: str, model: str, tokenizer: Path, out: Path) -> list[Task]:
    """`vllm bench serve`: random tokens at a rate, with goodput; a file of prompts, closed loop; the same as a chat."""
    load = [
        str(venv / "bin/vllm"),
        "bench",
        "serve",
        "--base-url",
        url,
        "--model",
        model,
        "--tokenizer",
        str(tokenizer),
    ]
    load += [
        "--num-prompts",
        str(REQUESTS),
        "--ignore-eos",
        "--disable-tqdm",
        "--save-result",
        "--result-dir",
        str(out),
    ]
    file = ["--dataset-name", "custom", "--dataset-path", str(PROMPTS), "--custom-output-len", str(TOKENS)]
    kinds = {
        "random": [
            *("--dataset-name", "random", "--random-input-len", "64", "--random-output-len", str(TOKENS)),
            *(
                "--request-rate",
                "4",
                "--goodput",
                "ttft:2000",
                "tpot:200",
                "--percentile-metrics",
                "ttft,tpot,itl,e2el",
            ),
        ],
        "prompts": [*file, "--max-concurrency", "4", "--temperature", "0"],
        "chat": [
            *(*file, "--max-concurrency", "4", "--skip-chat-template"),
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        ],
    }
    return [
        Task(f"vllm-{kind}", [*load, *more, "--result-filename", file_name], out / file_name, judge_vllm)
        for kind, more in kinds.items()
        for file_name in [f"vllm-{kind}.json"]
    ]


def guidellm(venv: Path, url: str, model: str, tokenizer: Path, out: Path) -> list[Task]:
    """guidellm: one after the other, four at once, and at a rate; chats, and completions for the last."""
    kinds = {
        "synchronous": ("kind=synchronous", "/v1/chat/completions"),
        "concurrent": ("kind=concurrent,streams=4", "/v1/chat/completions"),
        "poisson": ("kind=poisson,rate=2", "/v1/completions"),
    }
    return [
        Task(
            f"guidellm-{kind}",
            [
                *(str(venv / "bin/guidellm"), "run", "--profile", profile, "--disable-progress"),
                *("--backend", f"kind=openai_http,target={url},model={model},request_format={endpoint}"),
                *("--tokenizer", f"kind=hf_auto,model={tokenizer}"),
                *("--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={TOKENS}"),
                *("--constraint", f"kind=max_requests,count={REQUESTS}"),
                *("--output", "kind=console", "--output", f"kind=json,path={out / f'guidellm-{kind}.json'}"),
            ],
            out / f"guidellm-{kind}.json",
            judge_guidellm,
        )
        for kind, (profile, endpoint) in kinds.items()
    ]


CLIENTS: Mapping[str, Callable[[Path, str, str, Path, Path], list[Task]]] = {"vllm": vllm, "guidellm": guidellm}


def judge_vllm(path: Path) -> list[str]:
    """What is amiss in a result of `vllm bench serve`, whose exit status is 0 even if every request has failed."""
    result: dict[str, Any] = json.loads(path.read_text())
    amiss = _amiss(result["completed"], result["failed"], result["total_output_tokens"])
    return amiss if "spec_decode_num_drafts" in result else [*amiss, "no speculation counters were found at /metrics"]


def judge_guidellm(path: Path) -> list[str]:
    """What is amiss in a report of guidellm."""
    [result] = json.loads(path.read_text())["benchmarks"]
    totals = result["metrics"]["request_totals"]
    tokens = sum(request["output_metrics"]["text_tokens"] or 0 for request in result["requests"]["successful"])
    return _amiss(totals["successful"], totals["errored"] + totals["incomplete"], tokens)


def _amiss(completed: int, failed: int, tokens: int) -> list[str]:
    amiss = []
    if failed or completed != REQUESTS:
        amiss.append(f"{completed} of {REQUESTS} requests were answered, {failed} failed")
    if tokens != completed * TOKENS:
        amiss.append(f"{tokens} tokens were counted, not {completed * TOKENS}")
    return amiss


def make_vllm(venv: Path, say: Callable[[str], None], index: str | None) -> None:
    """vLLM as for `bench-peers`, and pandas, with which it reads a file of prompts."""
    vllm_peer.make_venv(venv, say, index)
    if vllm_peer.site(venv, "pandas") is None:
        _install(venv, "pandas")


def make_guidellm(venv: Path, say: Callable[[str], None]) -> None:
    """guidellm in *venv*, unless it is there."""
    if vllm_peer.site(venv, "guidellm") is None:
        say(f"making {venv}, installing guidellm {GUIDELLM_VERSION} into it")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        # Older resolvers go back through every release of its dependencies.
        _install(venv, "--upgrade", "pip")
        _install(venv, f"guidellm=={GUIDELLM_VERSION}")


def _install(venv: Path, *what: str) -> None:
    command = [str(venv / "bin/python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


def environment(venv: Path) -> dict[str, str]:
    """Of a client: nothing from any hub, and the libraries that vLLM wants loaded first."""
    preloads = ":".join(map(str, vllm_peer.preloads(venv)))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
    return os.environ | quiet | ({"LD_PRELOAD": preloads} if preloads else {})
