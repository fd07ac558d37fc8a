"""Packing segments into one line of rows."""

import numpy as np
import pytest

from smartspec.execution.batch import Segment
from smartspec.execution.ragged import TILE_ROWS, pack


def test_rows_stand_in_segment_order_with_their_positions() -> None:
    """Ids and positions follow the segments, then zeros up to the multiple."""
    batch = pack([Segment([7, 8, 9], 4, [0]), Segment([5], 0, [1])], 16, row_multiple=8)
    assert batch.input_ids.tolist() == [7, 8, 9, 5, 0, 0, 0, 0]
    assert batch.positions.tolist() == [4, 5, 6, 0, 0, 0, 0, 0]
    assert batch.num_rows == 4


def test_logits_are_those_of_each_segments_last_rows() -> None:
    """`num_logits` counts from the end of a segment; none is allowed."""
    segments = [Segment([1] * 5, 0, [0], 2), Segment([2] * 3, 0, [1], 0), Segment([3] * 4, 0, [2], 4)]
    assert pack(segments, 16).logit_rows.tolist() == [3, 4, 8, 9, 10, 11]


def test_tiles_cover_every_row_once_and_point_to_its_blocks() -> None:
    """Long segments are cut; each tile names its rows, its first position and its request's table."""
    long = TILE_ROWS * 2 + 3
    batch = pack([Segment([1, 1], 30, [4, 5]), Segment([2] * long, 10, [9, 8, 7])], 16)
    assert batch.block_tables.tolist() == [4, 5, 9, 8, 7]
    assert batch.tiles.tolist() == [
        [0, 2, 30, 0],
        [2, TILE_ROWS, 10, 2],
        [2 + TILE_ROWS, TILE_ROWS, 10 + TILE_ROWS, 2],
        [2 + 2 * TILE_ROWS, 3, 10 + 2 * TILE_ROWS, 2],
    ]
    assert batch.tiles.dtype == np.int64
    assert batch.tiles.flags.c_contiguous


@pytest.mark.parametrize(
    "segments",
    [[], [Segment([], 0, [0])], [Segment([1], 0, [0], 2)], [Segment([1], 16, [0])]],
    ids=["nothing", "no rows", "more logits than rows", "too few blocks"],
)
def test_what_cannot_be_packed_is_refused(segments: list[Segment]) -> None:
    """A forward that would read or write elsewhere never starts."""
    with pytest.raises(ValueError, match=r"segment"):
        pack(segments, 16)
