"""The engine benchmark's report: targets as they stand, tables, and what is said of the time model and the limit."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import engine
from engine_bench import controller, forward, idle_draft, mixed, step_parts, time_model
from engine_bench.bench import segments
from engine_bench.limit import work
from engine_bench.report import Check, Part, table
from smartspec.execution.paged_model import PagedModel
from smartspec.loadgen.estimates import Ratio
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Decision
from smartspec.scheduling.output import ScheduledRequest, SchedulerOutput
from smartspec.scheduling.request import SamplingParams


@pytest.mark.parametrize(
    ("value", "nearness", "met"),
    [(0.9, False, True), (1.0, False, True), (1.01, False, False), (-2.0, False, True), (-2.0, True, False)],
)
def test_check_says_whether_it_is_met(value: float, nearness: bool, met: bool) -> None:
    """A bound from above, or around zero; the bound itself is met, and a miss cannot be overlooked."""
    check = Check("steps", value, 1.0, nearness=nearness)
    assert check.is_met is met
    assert ("NOT REACHED" in str(check)) is not met


def test_check_of_a_ratio_goes_by_its_middle() -> None:
    """The middle decides, the interval is shown."""
    check = Check.of_ratio("step", Ratio(1.1, 1.0, 1.3, 1, 10), 1.15)
    assert check.is_met
    assert "1.100 (1.000 to 1.300)" in str(check)


def test_columns_stand_in_line() -> None:
    """All lines of a table are equally long, first column to the left and the others to the right."""
    lines = table(("name", "n"), [("a", "1"), ("longer", "12345")])
    assert {len(line) for line in lines} == {len("| longer | 12345 |")}
    assert lines[2] == "| a      |     1 |"


def test_a_step_is_taken_apart_beside_what_the_machine_allows() -> None:
    """What is neither products nor attention is the rest; without the machine's rates there is nothing beside them."""
    run = {
        "section": "step-parts", "key": "step-parts decoding", "batch": 64, "rows": 1, "context": 130, "flops": 24e9,
        "cache_bytes": 26e7, "seconds": {"step": 0.046, "products": 0.033, "attention": 0.009},
    }  # fmt: skip
    machine = {
        "section": "limit", "key": "limit machine", "bytes_per_second": 52e9, "flops_per_second": 800e9,
    }  # fmt: skip
    assert step_parts.part([machine, run]).rows == [["64 x 1", "130", "46", "33", "30", "9", "5", "4"]]
    assert step_parts.part([run]).rows == [["64 x 1", "130", "46", "33", "-", "9", "-", "4"]]


def _forward_run(batch: int, ratio: float) -> dict[str, Any]:
    found = {"middle": ratio, "low": ratio, "high": ratio, "rounds": 1, "pairs": 6}
    medians = {"compiled": 0.02 * ratio, "eager": 0.03, "bare eager": 0.02}
    return {
        "section": "forward", "key": f"forward {batch}", "batch": batch, "rows": 1, "context": 128,
        "medians": medians, "ratios": {"compiled": found, "eager": found}, "reference": "bare eager",
    }  # fmt: skip


def test_forward_has_targets_at_batch_1_and_32_alone() -> None:
    """Other batches are shown, not judged; a reference that was not measured is a dash."""
    part = forward.part([_forward_run(1, 1.1), _forward_run(2, 2.0), _forward_run(32, 1.2)])
    assert [check.is_met for check in part.checks] == [True, False]
    assert part.rows[0][2:6] == ["22", "30", "20", "-"]


def test_mixed_batches_have_the_same_tokens() -> None:
    """One long context among short ones, and the same sum spread evenly, within rounding."""
    one, two = mixed.contexts()
    assert len(one) == len(two) == 32
    assert max(one) == 2048
    assert len(set(two)) == 1
    assert abs(sum(one) - sum(two)) < 32


def test_segments_do_not_share_blocks() -> None:
    """Each request has blocks of its own for all of its context, and its rows are its last tokens."""
    found = segments([33, 16, 1], 1, 16, 100)
    assert [list(s.block_table) for s in found] == [[0, 1, 2], [3], [4]]
    assert [(s.start, len(s.token_ids), s.num_logits) for s in found] == [(32, 1, 1), (15, 1, 1), (0, 1, 1)]


def test_work_counts_weights_once_and_contexts_for_each() -> None:
    """Bytes: matrix weights once, keys and values of every context; operations: all of it for every row."""
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=2, tie_word_embeddings=True,
    )  # fmt: skip
    paged = PagedModel(LlamaForCausalLM(config).to(torch.float32), num_blocks=2, block_size=4)
    weights = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12) + 8 * 11
    moved, computed = work(paged, batch=3, rows=5, context=7)
    assert moved == 4 * weights + 3 * 7 * 2 * (2 * 2 * 2 * 4)
    assert computed == 2 * 15 * (weights + 7 * 2 * 4 * 4)


def test_controller_rounds_speculate_and_learn() -> None:
    """Invented batches are such that the policy speculates, and as many times come back as were asked for."""
    decide, observe, ks = controller.rounds(SpeculationPolicy(PolicySettings(), key="test"), num=3, count=12)
    assert len(decide) == len(observe) == len(ks) == 12
    assert min(decide) > 0
    assert max(ks) > 0


def test_calls_are_counted_the_same_each_time() -> None:
    """Every function called counts, Python's and built-in ones, and the profiler is put back."""

    def once() -> int:
        return len([max(1, 2), min(1, 2)])

    assert idle_draft.count_calls(once) == idle_draft.count_calls(once) >= 4
    assert idle_draft.count_calls(lambda: [once(), once()]) > 2 * 4


def test_moved_plan_uses_reserved_blocks_alone() -> None:
    """A plan to be repeated writes only to reserved blocks, each once, and keeps all else."""
    requests = tuple(
        ScheduledRequest(str(i), [1], 4, True, [i, i + 1], SamplingParams(), noise_seed=0, verifier="greedy")
        for i in range(3)
    )
    found = time_model.moved(SchedulerOutput(requests, Decision(), num_prefill_tokens=2), first_block=100)
    assert [list(r.block_table) for r in found.scheduled] == [[100, 101], [102, 103], [104, 105]]
    assert [r.request_id for r in found.scheduled] == ["0", "1", "2"]
    assert found.num_prefill_tokens == 2


def test_summary_tells_error_from_bias() -> None:
    """Errors that cancel are no bias; a bias is an error too; an interruption moves the sum, not the middle."""
    even = time_model.summary([1.1, 0.9] * 20, [1.0] * 40)
    assert even["error"] == pytest.approx(0.1)
    assert even["ratio"]["middle"] == pytest.approx(1.0)
    biased = time_model.summary([1.1] * 40, [1.0] * 40)
    assert biased["ratio"]["middle"] == pytest.approx(biased["median_ratio"]) == pytest.approx(1.1)
    interrupted = time_model.summary([1.0] * 40, [1.0] * 39 + [21.0])
    assert interrupted["median_ratio"] == 1.0
    assert interrupted["ratio"]["middle"] == pytest.approx(40 / 60)


def test_first_good_is_where_both_bounds_hold_for_a_window() -> None:
    """Steps before it were wrong; one that is wrong by a little too much for ever is never good."""
    measured = [1.0] * 90
    assert time_model.first_good([2.0] * 40 + [1.001] * 50, measured, floor=0.01) in range(38, 41)
    assert time_model.first_good([1.015] * 90, measured, floor=0.01) is None
    assert time_model.first_good([1.025] * 90, measured, floor=0.1) is None


def test_report_has_a_part_for_each_recorded_section(tmp_path: Path) -> None:
    """Sections that were not measured are left out; text and checks of the others are there."""
    options = engine.parser().parse_args(["--quick", "--threads", "2", "--output", str(tmp_path), "--machine", "m"])
    record = engine.open_record(options)
    record.add(_forward_run(1, 1.5))
    assert record.path == tmp_path / "engine-m.json"
    engine.write(record)
    text = (tmp_path / "engine-m.md").read_text()
    assert "## Step over the bare forward" in text
    assert "NOT REACHED" in text
    assert "k = 0" not in text
    assert (tmp_path / "engine-m.png").stat().st_size > 0


def test_bad_options_are_named(tmp_path: Path) -> None:
    """Threads, minutes and folders that cannot be are refused in one line that names them."""
    for arguments, name in (
        (["--threads", "0"], "--threads"),
        (["--minutes", "0"], "--minutes"),
        (["--target", str(tmp_path)], "--target"),
    ):
        with pytest.raises(SystemExit, match=name):
            engine.main([*arguments, "--output", str(tmp_path)])


def test_parts_render_without_checks() -> None:
    """A part without targets is a title, a text and a table."""
    assert (
        str(Part("T", "text", ("a", "b"), [("1", "2")]))
        == "## T\n\ntext\n\n| a   |   b |\n|-----|----:|\n| 1   |   2 |\n"
    )


def test_record_is_kept_apart_by_threads(tmp_path: Path) -> None:
    """Numbers taken with other threads are not mixed with these."""
    options = engine.parser().parse_args(["--quick", "--output", str(tmp_path), "--machine", "m"])
    engine.open_record(Namespace(**vars(options) | {"threads": 2})).add(_forward_run(1, 1.0))
    with pytest.raises(engine.RecordError, match="other options"):
        engine.open_record(Namespace(**vars(options) | {"threads": 3}))
