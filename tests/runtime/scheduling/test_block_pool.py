"""Blocks are taken, shared and given back exactly once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec.scheduling.block_pool import BlockPool


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=60))
def test_no_block_has_two_owners(resizes: list[tuple[int, int]]) -> None:
    """Whatever tables grow and shrink to, each block is in one table or free, and tables have just what they need."""
    pool = BlockPool(num_blocks=20, block_size=4)
    tables: list[list[int]] = [[] for _ in range(5)]
    for index, num_tokens in resizes:
        before = list(tables[index])
        if num_tokens > len(before) * 4:
            fits = pool.blocks_for(num_tokens) - len(before) <= pool.num_free
            assert pool.grow(tables[index], num_tokens) == fits
            assert tables[index][: len(before)] == before
            assert fits or tables[index] == before
        else:
            pool.shrink(tables[index], num_tokens)
            assert tables[index] == before[: pool.blocks_for(num_tokens)]
        held = [block for table in tables for block in table]
        assert len(held) == len(set(held)) == 20 - pool.num_free
    for table in tables:
        pool.shrink(table, 0)
    pool.check_idle()


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    """A prefix held twice outlives its first holder."""
    pool = BlockPool(num_blocks=4, block_size=2)
    first: list[int] = []
    pool.grow(first, 4)
    second = list(first)
    pool.share(second)
    pool.shrink(first, 0)
    assert pool.num_free == 2
    with pytest.raises(RuntimeError, match="2 of 4"):
        pool.check_idle()
    pool.shrink(second, 0)
    pool.check_idle()
    with pytest.raises(ValueError, match="free"):
        pool.share([0])


def test_a_block_given_back_twice_is_an_error() -> None:
    """The pool refuses what would give one block to two requests."""
    pool = BlockPool(num_blocks=2, block_size=2)
    table: list[int] = []
    pool.grow(table, 2)
    copy = list(table)
    pool.shrink(table, 0)
    with pytest.raises(RuntimeError, match="twice"):
        pool.shrink(copy, 0)
