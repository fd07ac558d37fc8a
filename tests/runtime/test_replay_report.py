"""`smartspec replay`: a recording under other settings, for people and for machines."""

import json
from pathlib import Path

import pytest

from smartspec.__main__ import main
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicySettings
from smartspec.policy.simulate import Replica, run_closed
from smartspec.policy.worlds import Device, Shape, Texts
from smartspec.recorder import RecordedPolicy, Recorder


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated seconds with one to twenty clients."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    recorder = Recorder(path, max_bytes=1 << 30)
    policy = RecordedPolicy(SpeculationPolicy(PolicySettings(), key="k"), "k", recorder)
    replica = Replica(policy, Device(), Texts(), seed=1)  # type: ignore[arg-type]
    run_closed(replica, lambda now: 1 if now < 1 else 20, 2.0, Shape(8, 60), seed=1)
    recorder.close()
    return path


def test_the_table_compares_then_and_now(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both settings, a line for each size of batch, and the whole."""
    assert main(["replay", str(trace), "--policy", "off"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["then: policy request, at most 8 tokens", "now:  policy off, at most 8 tokens"]
    assert [line.split()[0] for line in lines if "%" in line][:1] == ["1"]
    whole = next(line.split() for line in lines if line.startswith("     all"))
    assert float(whole[2]) > 0.0
    assert float(whole[3]) == 0.0


def test_json_has_the_same_for_machines(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unchanged settings, sums that agree."""
    assert main(["replay", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["same_choice"] > 0.9  # the simulation ends requests before it tells of their last step
    assert found["total"]["recorded_k"] > 0.5
    assert found["recorded"] == found["replayed"]
    assert sum(part["steps"] for part in found["by_requests"].values()) == found["total"]["steps"]


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["{trace}", "--num-speculative-tokens", "33"], "num_speculative_tokens"),
        (["{trace}", "--tpot-target", "0"], "tpot_target"),
    ],
)
def test_nonsense_is_one_line_and_status_2(
    trace: Path, argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there and settings out of bounds."""
    assert main(["replay", *(part.format(trace=trace) for part in argv)]) == 2
    assert capsys.readouterr().err.startswith("smartspec: ")


def test_a_recording_without_steps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody came while it was made."""
    recorder = Recorder(tmp_path / "trace", max_bytes=1 << 30)
    recorder.start("k", PolicySettings())
    recorder.close()
    assert main(["replay", str(tmp_path / "trace")]) == 2
    assert "nobody decoded" in capsys.readouterr().err
