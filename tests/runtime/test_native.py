"""Compiled code is made for processors at large, and taken from where somebody else has made it."""

import runpy
from pathlib import Path
from typing import Any

import numba
import pytest

from smartspec.native import BFLOAT16, FEATURES, KERNELS, LEVELS, PROCESSOR, Level, level_of, njit, settle, unpack

_, AVX512, AVX2 = LEVELS


@pytest.mark.parametrize(
    ("features", "level"),
    [
        (BFLOAT16.needed | {"sse2"}, BFLOAT16),
        (BFLOAT16.needed - {"avx512_bf16"}, AVX512),
        (BFLOAT16.needed - {"avx512vl"}, AVX2),
        (AVX2.needed, AVX2),
        (AVX512.needed - AVX2.needed, None),
        (frozenset(), None),
    ],
)
def test_the_level_is_the_highest_whole_one(features: frozenset[str], level: Level | None) -> None:
    """Of which a processor has every feature, and those of the levels below; on others numba chooses by itself."""
    assert level_of(features) is level
    environment: dict[str, str] = {}
    settle(environment, features)
    assert environment == ({PROCESSOR: level.processor, FEATURES: level.features} if level else {})


def test_a_choice_that_was_made_stands() -> None:
    """A processor that is named is compiled for, with the features that are named beside it."""
    environment = {PROCESSOR: "znver4"}
    settle(environment, BFLOAT16.needed)
    assert environment == {PROCESSOR: "znver4"}


def test_kernels_are_unpacked_once(tmp_path: Path) -> None:
    """Those of the level, wholly; what is there already stays as it is, and nothing else is left."""
    kernels, cache = tmp_path / "kernels", tmp_path / "writable" / "numba"
    for level in LEVELS:
        (kernels / (level.processor + level.features) / "policy").mkdir(parents=True)
        (kernels / (level.processor + level.features) / "policy" / "scan.nbi").write_text(level.features or "plain")
    settle({KERNELS: str(kernels), "NUMBA_CACHE_DIR": str(cache)}, BFLOAT16.needed)
    assert (cache / "policy" / "scan.nbi").read_text() == "+avx512bf16"
    assert list(cache.parent.iterdir()) == [cache]
    (cache / "policy" / "scan.nbi").write_text("theirs")
    unpack(kernels / "x86-64-v3", cache)
    assert (cache / "policy" / "scan.nbi").read_text() == "theirs"


def test_kernels_that_cannot_be_had_are_done_without(tmp_path: Path) -> None:
    """numba then compiles for itself: a start takes longer, and nothing fails."""
    unpack(tmp_path / "none", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_to_keep_it_code_is_compiled_all_the_same() -> None:
    """For this process alone: what comes from no file has no folder beside it."""
    made: dict[str, Any] = {}
    exec("def double(x): return 2 * x", made)
    assert njit("int64(int64)", cache=True)(made["double"])(21) == 42


def test_a_damaged_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a full disk cut short stops the start with what to do about it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    module = tmp_path / "doubling.py"
    module.write_text(
        "from smartspec.native import njit\n@njit('int64(int64)', cache=True)\ndef double(x): return 2 * x\n"
    )
    assert runpy.run_path(str(module))["double"](21) == 42
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:10])
    with pytest.raises(RuntimeError, match=r"damaged .* delete the folders __pycache__ beside the source"):
        runpy.run_path(str(module))
