"""Paged attention: the compiled kernel against plain torch operations, and its promise about bits."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartspec.execution.attention import LayerGeometry
from smartspec.execution.batch import Segment
from smartspec.execution.compiled_attention import ITEMS_PER_THREAD, MOST_QUERIES, CompiledAttention, heads_together
from smartspec.execution.kv_cache import allocate
from smartspec.execution.ragged import pack
from smartspec.execution.torch_attention import TorchAttention

CPU = torch.device("cpu")
NUM_BLOCKS = 192
PLAIN = LayerGeometry(4, 2, 32, 32, torch.float32, 0.2)


class Attention:
    """One layer over its own cache, fed with rows of known requests."""

    def __init__(self, backend: type, geometry: LayerGeometry, block_size: int) -> None:
        self.geometry, self.block_size = geometry, block_size
        caches = allocate([geometry], num_blocks=NUM_BLOCKS, block_size=block_size, device=CPU)
        self.backend = backend([geometry], caches)

    def __call__(self, pieces: list[tuple[int, int, int]], tables: list[list[int]]) -> torch.Tensor:
        """Output rows [T, heads, Dv] of (request, first position, rows) pieces."""
        segments = [Segment([0] * count, start, tables[request]) for request, start, count in pieces]
        rows = [rows_of(self.geometry, request, start, count) for request, start, count in pieces]
        query, key, value = (torch.cat(parts, dim=2) for parts in zip(*rows, strict=True))
        self.backend.begin(pack(segments, self.block_size))
        return self.backend.attend(0, query, key, value)[0]


def rows_of(geometry: LayerGeometry, request: int, start: int, count: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of a request's rows: the same numbers whenever they are asked for."""
    generator = torch.Generator().manual_seed(request)
    shapes = (
        (geometry.num_heads, geometry.key_dim),
        (geometry.num_kv_heads, geometry.key_dim),
        (geometry.num_kv_heads, geometry.value_dim),
    )
    whole = [torch.randn((1, heads, 512, dim), generator=generator).to(geometry.dtype) for heads, dim in shapes]
    return tuple(x[:, :, start : start + count] for x in whole)


def tables_for(lengths: list[int], block_size: int) -> list[list[int]]:
    """Scattered blocks, enough for each length."""
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(0)).tolist()
    return [[blocks.pop() for _ in range(-(-length // block_size))] for length in lengths]


geometries = st.builds(
    lambda kv, group, dk, dv, window, softcap, sinks: LayerGeometry(
        kv * group,
        kv,
        dk,
        dv,
        torch.float32,
        dk**-0.5,
        window,
        softcap,
        torch.linspace(-1, 2, kv * group) if sinks else None,
    ),
    kv=st.sampled_from([1, 2, 3, 4]),
    group=st.sampled_from([1, 2, 5]),
    dk=st.sampled_from([8, 16, 20, 64, 80]),
    dv=st.sampled_from([7, 16, 48, 64]),
    window=st.sampled_from([None, None, 1, 8, 20, 130]),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
    sinks=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(
    geometry=geometries,
    block_size=st.sampled_from([1, 8, 16, 24, 64, 256]),
    bfloat16=st.booleans(),
    shape=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=3),
)
def test_the_kernel_computes_what_torch_computes(
    geometry: LayerGeometry, block_size: int, bfloat16: bool, shape: list[tuple[int, int]]
) -> None:
    """Any shape, window, cap, sinks and block size: prefixes first, then ragged rows of all requests at once."""
    if block_size == 1:
        shape = [(start % 8, count % 4 + 1) for start, count in shape]
    geometry = replace(geometry, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    tables = tables_for([start + count for start, count in shape], block_size)
    results = []
    for backend in (CompiledAttention, TorchAttention):
        attention = Attention(backend, geometry, block_size)
        for request, (start, _) in enumerate(shape):
            if start:
                attention([(request, 0, start)], tables)
        results.append(attention([(i, start, count) for i, (start, count) in enumerate(shape)], tables))
    tolerance = 2e-2 if bfloat16 else 2e-5
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    geometry=geometries,
    bfloat16=st.booleans(),
    block_size=st.sampled_from([5, 16, 24]),
    cuts=st.lists(st.integers(1, 159), max_size=6),
    threads=st.sampled_from([1, 2]),
)
def test_a_row_is_the_same_bits_in_any_company(
    geometry: LayerGeometry, bfloat16: bool, block_size: int, cuts: list[int], threads: int
) -> None:
    """One piece or many, alone or beside another request, on one thread or several."""
    geometry = replace(geometry, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    tables = tables_for([160, 40], block_size)
    whole = Attention(CompiledAttention, geometry, block_size)([(0, 0, 160)], tables)
    attention = Attention(CompiledAttention, geometry, block_size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for start, end in pairwise(sorted({0, 160, *cuts})):
            rows = attention([(1, 0, 40), (0, start, end - start)], tables)[40:]
            assert torch.equal(rows, whole[start:end])
    finally:
        torch.set_num_threads(before)


@given(
    shape=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 20)), min_size=1, max_size=40),
    kv=st.integers(1, 32),
    group=st.integers(1, 8),
    threads=st.integers(1, 16),
)
def test_heads_are_taken_together_as_far_as_work_stays_even(
    shape: list[tuple[int, int]], kv: int, group: int, threads: int
) -> None:
    """They divide the heads, fit the scratch memory, and leave each thread several items of the longest kind."""
    batch = pack([Segment([0] * count, start, [0] * (start + count)) for start, count in shape], 1)
    together = heads_together(batch, kv * group, kv, threads)
    assert kv % together == 0
    if together > 1:
        work = [rows * (rows + start) for _, rows, start, _ in batch.tiles.tolist()]
        assert together * group * int(batch.tiles[:, 1].max()) <= MOST_QUERIES
        assert threads == 1 or together * max(work) * ITEMS_PER_THREAD * threads <= sum(work) * kv


def test_a_decode_step_of_many_requests_takes_all_heads_at_once() -> None:
    """One long context among short ones does not: the thread that got it would work alone."""
    short = [Segment([0], 127, [0] * 8) for _ in range(63)]
    assert heads_together(pack(short, 16), 16, 8, 4) == 8
    assert heads_together(pack([*short[:31], Segment([0], 2047, [0] * 128)], 16), 16, 8, 4) == 1


@pytest.mark.parametrize("window", [None, 19, 150])
def test_decoding_row_by_row_gives_the_bits_of_one_prefill(window: int | None) -> None:
    """Where a window begins, and where sums are cut, depends on the row and not on the tile that it shares."""
    geometry = replace(PLAIN, window=window)
    tables = tables_for([290], 16)
    whole = Attention(CompiledAttention, geometry, 16)([(0, 0, 290)], tables)
    attention = Attention(CompiledAttention, geometry, 16)
    rows = [attention([(0, position, 1)], tables) for position in range(290)]
    assert torch.equal(torch.cat(rows), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_rows_are_zero_and_touch_no_block(dtype: torch.dtype) -> None:
    """Rows past the segments belong to no one: nothing is written for them."""
    geometry = replace(PLAIN, dtype=dtype)
    caches = allocate([geometry], num_blocks=4, block_size=16, device=CPU)
    attention = CompiledAttention([geometry], caches)
    attention.begin(pack([Segment([0], 3, [2])], 16, row_multiple=4))
    query, key, value = rows_of(geometry, 0, 0, 4)
    out = attention.attend(0, query, key, value)
    assert out.shape == (1, 4, 4, 32)
    assert out[0, 0].abs().sum() > 0
    assert not out[0, 1:].any()
    assert caches[0].keys.count_nonzero() == key[0, :, 0].numel()
    assert torch.equal(caches[0].keys[2, :, :, 3], key[0, :, 0])
    assert torch.equal(caches[0].values[2, :, 3], value[0, :, 0])


def test_scores_too_far_apart_for_float32_stay_finite() -> None:
    """Differences of thousands between scores weigh nothing instead of overflowing."""
    geometry = replace(PLAIN, scale=1000.0)
    out = Attention(CompiledAttention, geometry, 16)([(0, 0, 200)], tables_for([200], 16))
    expected = Attention(TorchAttention, geometry, 16)([(0, 0, 200)], tables_for([200], 16))
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=1e-2)
