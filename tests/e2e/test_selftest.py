"""`smartspec selftest` on real pairs: sound code passes, planted faults do not, and the exit status says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig

from smartspec.__main__ import main
from smartspec.execution import verifier
from smartspec.execution.noise import Purpose, sample, stream_keys
from tiny import TinyPair, byte_tokenizer, write_pair

MODELS = Path(__file__).parents[2] / "examples/models"
QUICK = ["--quick", "--json", "--threads", "1", "--device", "cpu", "--compile", "off"]


def selftest(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    """The exit status and what was printed."""
    status = main(["selftest", *argv, *QUICK])
    return status, json.loads(capsys.readouterr().out)


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    """How each check went."""
    return {check["name"]: check["outcome"] for check in report["checks"]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny pair whose draft is right about as often as not."""
    return write_pair(tmp_path_factory.mktemp("pair"))


def test_the_bundled_pair_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """Every check, curves that rise, acceptance between none and all, and a choice for every batch."""
    status, report = selftest(capsys, str(MODELS / "stdlib-target"), "--draft", str(MODELS / "stdlib-draft"))
    assert status == 0, report["verdict"]
    assert report["verdict"].startswith("ok: 10 checks passed")
    assert set(outcomes(report).values()) == {"ok"}
    assert (report["attention"], report["invariant"], report["proposers"]) == ("paged", True, ["draft", "lookup"])
    assert [point["tokens"] for point in report["curve"]] == [1, 2, 4, 8, 16]
    assert all(point["target_seconds"] > point["draft_seconds"] > 0 for point in report["curve"])
    drafted = [row for row in report["acceptance"] if row["proposer"] == "draft"]
    assert {row["verifier"] for row in drafted} == {"greedy", "rejection"}
    assert all(0.2 < row["rates"][0] < 1.0 and row["trials"][0] >= 20 for row in drafted)
    assert [choice["requests"] for choice in report["choices"][::2]] == [1, 2, 4, 8, 16]
    assert report["choices"][0]["mean_k"] > 0
    assert report["choices"][0]["gain"] > 0.1


def test_a_table_ends_with_the_verdict(pair: TinyPair, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, with progress on stderr; prompt lookup alone when there is no draft."""
    assert main(["selftest", str(pair.target), *(flag for flag in QUICK if flag != "--json")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("ok: 7 checks passed")
    assert "rejection sampling" in printed.err
    assert "  ok      chi-square, rejection, lookup: " in printed.out
    assert "draft" not in printed.out.split("what the policy would choose")[1]


def plain_target(target_log_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The bug: recovery forgets what the draft took already."""
    return target_log_probs


def credulous(batch: Any, chosen: list[int]) -> list[tuple[int, ...]]:
    """The bug: the first proposed token is kept whatever the target says."""
    found = []
    for row, offset in zip(batch.rows, batch.offsets, strict=True):
        if row.proposal is None:
            found.append((chosen[offset],))
        else:
            found.append((row.proposal.token_ids[0], chosen[offset + 1]))
    return found


def stale_noise(batch: Any) -> list[tuple[int, ...]]:
    """The bug: every token of a step is chosen by the noise of its first position."""
    seeds = torch.tensor([row.noise_seed for row in batch.rows for _ in range(row.num_proposed + 1)])
    positions = torch.tensor([row.position for row in batch.rows for _ in range(row.num_proposed + 1)])
    keys = stream_keys(seeds, positions, Purpose.TOKEN)
    return verifier._accept_while_equal(batch, sample(batch.log_probs(), keys).tolist())


@pytest.mark.parametrize(
    ("name", "bug", "caught"),
    [
        ("residual_log_probs", plain_target, "chi-square, rejection, draft"),
        ("_accept_while_equal", credulous, "greedy, draft k=4 = plain"),
        ("_verify_coupled", stale_noise, "same seed, draft k=4 = plain"),
    ],
)
def test_a_planted_fault_fails_it(
    pair: TinyPair,
    name: str,
    bug: Any,
    caught: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 1, and the verdict names the check that the fault breaks."""
    monkeypatch.setattr(verifier, name, bug)
    status, report = selftest(capsys, str(pair.target), "--draft", str(pair.draft), "--dtype", "float32")
    assert (status, report["ok"]) == (1, False)
    assert outcomes(report)[caught] == "failed"
    assert outcomes(report)["greedy = generate()"] == "ok"
    assert report["verdict"].startswith("FAILED: ")


def test_a_model_that_cannot_speculate_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """State outside attention: served plainly, right, and the reason is said."""
    config = MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, state_size=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer(384).save_pretrained(tmp_path)
    status, report = selftest(capsys, str(tmp_path), "--draft", str(tmp_path))
    assert (status, report["attention"], report["choices"]) == (0, "stateful", [])
    assert "can only be served without speculation" in report["verdict"]
    assert "state outside attention" in report["checks"][0]["detail"]
    assert outcomes(report) == {"self-check": "ok", "greedy = generate()": "ok"}


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["./nope"], "no such folder"),
        (["{target}", "--draft", "./nope"], "draft"),
        (["{target}", "--prompts", "nope.txt"], "prompts"),
        (["{target}", "--num-speculative-tokens", "33"], "num_speculative_tokens"),
        (["{target}", "--max-model-len", "0"], "max_model_len"),
    ],
)
def test_bad_input_is_status_2(
    pair: TinyPair, argv: Sequence[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line."""
    assert main(["selftest", *(part.format(target=pair.target) for part in argv), *QUICK]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("smartspec: ")]
    assert len(complaint) == 1
    assert word in complaint[0]
