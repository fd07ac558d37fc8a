"""Compiled code is made for processors at large, and taken from where somebody else has made it."""

from pathlib import Path

import pytest

from smartspec.native import KERNELS, LEVELS, level_of, settle, unpack

BOTH = LEVELS["x86-64-v3"] | LEVELS["x86-64-v4"]


@pytest.mark.parametrize(
    ("features", "level"),
    [
        (BOTH | {"avx512_bf16"}, "x86-64-v4"),
        (BOTH - {"avx512vl"}, "x86-64-v3"),
        (LEVELS["x86-64-v3"], "x86-64-v3"),
        (LEVELS["x86-64-v4"], None),
        (set(), None),
    ],
)
def test_the_level_is_the_highest_whole_one(features: set[str], level: str | None) -> None:
    """Of which a processor has every feature, and those of the level below; on others numba chooses by itself."""
    assert level_of(features) == level
    environment: dict[str, str] = {}
    settle(environment, features)
    assert environment.get("NUMBA_CPU_NAME") == level
    assert environment.get("NUMBA_CPU_FEATURES") == ("" if level else None)


def test_a_choice_that_was_made_stands() -> None:
    """Of a level, whose features are then its own; of a processor by name, whose features are numba's business."""
    environment = {"NUMBA_CPU_NAME": "x86-64-v3"}
    settle(environment, BOTH)
    assert environment == {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    settle(environment := {"NUMBA_CPU_NAME": "znver4"}, BOTH)
    assert environment == {"NUMBA_CPU_NAME": "znver4"}


def test_kernels_are_unpacked_once(tmp_path: Path) -> None:
    """Wholly, in the place of nothing; what is there already stays as it is, and nothing else is left."""
    kernels, cache = tmp_path / "kernels", tmp_path / "writable" / "numba"
    (kernels / "policy").mkdir(parents=True)
    (kernels / "policy" / "scan.nbi").write_text("ours")
    settle({KERNELS: str(kernels), "NUMBA_CACHE_DIR": str(cache)}, set())
    assert (cache / "policy" / "scan.nbi").read_text() == "ours"
    assert list(cache.parent.iterdir()) == [cache]
    (cache / "policy" / "scan.nbi").write_text("theirs")
    unpack(kernels, cache)
    assert (cache / "policy" / "scan.nbi").read_text() == "theirs"


def test_kernels_that_cannot_be_had_are_done_without(tmp_path: Path) -> None:
    """numba then compiles for itself: a start takes longer, and nothing fails."""
    unpack(tmp_path / "none", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []

