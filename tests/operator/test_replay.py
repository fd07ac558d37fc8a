"""Tuning and scaling over recorded load reports: the same decisions, offline."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fleets import histogram, later, linear_priors, load, smartspec
from smartspec.policy.recording import FORMAT, Event, Loaded, RecordingError, Start, encode
from smartspec.policy.settings import PolicySettings
from smartspec_operator.__main__ import main
from smartspec_operator.replay import Decided, Recorded, recorded, replay
from smartspec_operator.world import Timing

AUTO = {"autoscaling": {"minReplicas": 1, "maxReplicas": 4, "scaleUpStabilizationSeconds": 0}}
PRIORS = linear_priors()


def events(seconds: int, **busy: Any) -> list[Event]:
    """A replica that idles for a minute and then reports *busy*, every two seconds."""
    start = Start(FORMAT, "1", later(0).timestamp(), "k", PolicySettings())
    quiet = load(priors=PRIORS)
    hot = load(**{"tokens_per_second": 900.0, "priors": PRIORS, **busy})
    return [start, *(Loaded(float(at), hot if at >= 60 else quiet) for at in range(0, seconds, 2))]


def decisions(*replicas: Recorded, **spec: Any) -> list[Decided]:
    """Of both stages, at their usual times."""
    return list(replay(smartspec(**spec), replicas, Timing()))


def at(found: list[Decided], time: datetime) -> Decided:
    """The decision in force at *time*."""
    return [decided for decided in found if decided.time <= time][-1]


def test_a_recorded_flood_asks_for_replicas() -> None:
    """One while it idles, more when requests queue, as often as scaling runs."""
    hot = recorded("a", events(180, num_requests_running=64, num_requests_waiting=200, longest_wait_seconds=9.0))
    found = decisions(hot, **AUTO)
    assert [decided.time - later(0) for decided in found[:3]] == [timedelta(seconds=5 * i) for i in range(3)]
    assert at(found, later(50)).scale.desired == 1
    assert at(found, later(100)).scale.desired == 2
    assert at(found, later(100)).scale.reason in ("Demand", "Queue")
    # It was one replica all the time: each decision starts from what was, and none builds on the last.
    assert {decided.replicas for decided in found} == {1}
    assert at(found, later(170)).scale.desired == 2


def test_a_recorded_miss_tightens_the_policy() -> None:
    """Stage one aims lower once the objective was missed under the settings that it had decided."""
    slow = recorded("a", events(240, num_requests_running=20, tpot=histogram(*[0.09] * 50)))
    found = decisions(slow, slo={"tpotSeconds": 0.05})
    before, after = at(found, later(50)).policy, at(found, later(230)).policy
    assert before.settings.tpot_target_seconds == 0.05
    assert after.settings.tpot_target_seconds is not None
    assert after.settings.tpot_target_seconds < 0.05
    assert after.settings.generation > before.settings.generation


def test_a_replica_is_there_while_it_reports() -> None:
    """Two recordings of different lengths are a fleet of two, then of one."""
    long, short = recorded("a", events(120)), recorded("b", events(40))
    found = decisions(long, short)
    assert at(found, later(30)).replicas == 2
    assert at(found, later(100)).replicas == 1


def test_a_recording_without_reports_is_refused() -> None:
    """There is nothing to decide from."""
    with pytest.raises(RecordingError, match="a holds no load report"):
        recorded("a", events(0))


def test_the_command_prints_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a manifest and a file as `serve --trace` writes it."""
    manifest, trace = tmp_path / "m.yaml", tmp_path / "trace.jsonl"
    manifest.write_text(
        "apiVersion: smartspec.io/v1alpha1\nkind: SmartSpec\nmetadata: {name: demo}\n"
        "spec: {model: {source: org/model}, autoscaling: {minReplicas: 1, maxReplicas: 4}}\n"
    )
    trace.write_bytes(
        b"".join(map(encode, events(180, num_requests_running=64, num_requests_waiting=200, longest_wait_seconds=9.0)))
    )
    assert main(["replay", str(manifest), str(trace)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12:00:00  replicas 1 -> 1")
    assert any("replicas 1 -> 2" in line for line in lines)
    assert len(lines) < 12


@pytest.mark.parametrize("missing", ["manifest", "trace"])
def test_nonsense_is_status_2(tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever file is not there is named."""
    (tmp_path / "manifest").write_text(
        "apiVersion: smartspec.io/v1alpha1\nkind: SmartSpec\nmetadata: {name: demo}\nspec: {model: {source: m}}\n"
    )
    (tmp_path / "trace").write_bytes(b"".join(map(encode, events(10))))
    (tmp_path / missing).unlink()
    assert main(["replay", str(tmp_path / "manifest"), str(tmp_path / "trace")]) == 2
    assert missing in capsys.readouterr().err
