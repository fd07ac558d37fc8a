"""What a selftest says: a table whose last line is the verdict, and the same as JSON."""

import json

import msgspec

from smartspec.selftest.report import Acceptance, Check, Choice, CurvePoint, Report

REPORT = Report(
    target="t",
    draft="d",
    version="1",
    key="device=x",
    attention="paged",
    invariant=True,
    proposers=("draft",),
    seconds=61.2,
    checks=(Check("greedy = generate()", "ok", "8 texts"),),
    acceptance=(Acceptance("draft", "greedy", (0.8, 0.5), (10, 8), 1.0),),
    curve=(CurvePoint(1, 0.02, 0.001), CurvePoint(2, 0.021, 0.001)),
    time_error=0.04,
    choices=(
        Choice(1, "greedy", 4.0, 0.03, 100.0, 50.0, 1.0, measured=True),
        Choice(256, "greedy", 0.0, 0.9, 284.0, 284.0, 0.0, measured=False),
    ),
)


def test_the_last_line_is_the_verdict() -> None:
    """With the gain for the smallest and the largest batch."""
    lines = REPORT.as_table().splitlines()
    assert lines[-1] == (
        "ok: 1 checks passed; expected gain over plain decoding at temperature 0: +100% with 1, +0% with 256 requests "
        "at once (61 s)"
    )
    assert any(line.startswith("  ok      greedy = generate(): 8 texts") for line in lines)
    assert any("0.80  0.50" in line for line in lines)
    assert any("errs by 4%" in line for line in lines)
    assert [line.endswith("extrapolated") for line in lines if line.split()[:1] in (["1"], ["256"])] == [False, True]


def test_one_failed_check_is_the_verdict() -> None:
    """It is named, and nothing is promised beside it."""
    failed = msgspec.structs.replace(REPORT, checks=(*REPORT.checks, Check("chi-square", "failed", "p = 0")))
    assert REPORT.is_ok
    assert not failed.is_ok
    assert failed.verdict == "FAILED: chi-square"


def test_json_has_it_all() -> None:
    """Fields as they are, and the verdict."""
    found = json.loads(REPORT.as_json())
    assert (found["ok"], found["verdict"]) == (True, REPORT.verdict)
    assert found["choices"][0]["gain"] == 1.0
    assert found["acceptance"][0]["rates"] == [0.8, 0.5]
    assert found["curve"][1] == {"tokens": 2, "target_seconds": 0.021, "draft_seconds": 0.001}


def test_without_proposers_it_says_that_speculation_is_impossible() -> None:
    """A verdict of its own: nothing is wrong, and nothing to be had."""
    stateful = msgspec.structs.replace(REPORT, proposers=(), choices=(), acceptance=(), curve=())
    assert stateful.is_ok
    assert "can only be served without speculation" in stateful.verdict
    assert stateful.as_table().count("\n\n") == 2
