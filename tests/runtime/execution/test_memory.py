"""The size of the KV cache: told or measured, and refusals that say what fits."""

import pytest
import torch

from smartspec.config import ConfigError, SchedulerConfig
from smartspec.execution import memory
from smartspec.execution.memory import CacheSize, size_cache

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000 * MIB)


def size(config: SchedulerConfig, **options: int | None) -> CacheSize:
    """Blocks of 16 tokens and 1 MiB, for a model of 2048 positions."""
    known = {"bytes_per_block": MIB, "model_len": 2048, "requested_len": None} | options
    return size_cache(config, device=CPU, **known)  # type: ignore[arg-type]


def test_a_number_of_blocks_is_taken_as_given() -> None:
    """And so is memory, in whole blocks."""
    assert size(SchedulerConfig(num_blocks=200)) == CacheSize(200, 2048)
    assert size(SchedulerConfig(kv_cache_memory_bytes=150 * MIB + 7)) == CacheSize(150, 2048)


def test_half_of_the_free_memory_is_taken_at_most() -> None:
    """Others live on the machine."""
    assert size(SchedulerConfig(max_num_seqs=64)) == CacheSize(500, 2048)


def test_no_more_is_taken_than_a_full_batch_can_use() -> None:
    """Two requests of 2048 tokens need 256 blocks."""
    assert size(SchedulerConfig(max_num_seqs=2)) == CacheSize(256, 2048)


def test_requests_are_bounded_by_what_fits_unless_a_length_was_asked_for() -> None:
    """A small cache serves shorter requests; a length that was asked for is kept or refused."""
    assert size(SchedulerConfig(num_blocks=64)) == CacheSize(64, 1024)
    assert size(SchedulerConfig(num_blocks=64), requested_len=1024) == CacheSize(64, 1024)
    with pytest.raises(ConfigError, match=r"max_model_len 1025 needs 65 blocks .* at most 1024 tokens fit"):
        size(SchedulerConfig(num_blocks=64), requested_len=1025)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SchedulerConfig(num_blocks=1001), "at most 1000 blocks fit"),
        (SchedulerConfig(kv_cache_memory_bytes=1001 * MIB), "more than the 0.98 GiB free"),
        (SchedulerConfig(kv_cache_memory_bytes=MIB - 1), "no block of the KV cache fits"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(config: SchedulerConfig, message: str) -> None:
    """Before anything is allocated."""
    with pytest.raises(ConfigError, match=message):
        size(config)
