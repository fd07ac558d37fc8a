"""One step's rows as index arrays: what a ragged forward over a paged cache needs to know, once for all layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from smartspec.execution.batch import Segment

TILE_ROWS = 16
"""Rows of one request that share the loads of a pass over their context. No part of any result."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Rows of all segments, packed in order, then padded to `len(input_ids)` with rows that belong to no one.

    `tiles` [num_tiles, 4] holds (first row, number of rows, position of the first, offset of the request's table in
    `block_tables`); padding rows stand in no tile. `logit_rows` [num_logits] are the rows whose logits are wanted.
    """

    input_ids: Ints
    positions: Ints
    tiles: Ints
    block_tables: Ints
    logit_rows: Ints
    num_rows: int

    @property
    def context_tokens(self) -> int:
        """Positions that all rows attend to, in sum, within a tile's rows: a measure of attention's work."""
        return int((self.tiles[:, 1] * (self.tiles[:, 2] + self.tiles[:, 1])).sum())


def pack(segments: Sequence[Segment], block_size: int, *, row_multiple: int = 1, least_rows: int = 1) -> RaggedBatch:
    """Pack *segments*, padding the rows to a multiple of *row_multiple*, at least *least_rows*. Raises ValueError for a
    segment without rows, with more logits than rows, or whose block table is too short for its last position."""
    counts = np.array([len(s.token_ids) for s in segments], dtype=np.int64)
    starts = np.array([s.start for s in segments], dtype=np.int64)
    logits = np.array([s.num_logits for s in segments], dtype=np.int64)
    lengths = np.array([len(s.block_table) for s in segments], dtype=np.int64)
    if not len(counts) or counts.min() < 1:
        raise ValueError("a forward needs at least one segment, and every segment at least one row")
    if (logits > counts).any():
        raise ValueError("a segment wants more logits than it has rows")
    if (lengths * block_size < starts + counts).any():
        raise ValueError("a segment's block table is too short for its last position")
    num_rows = int(counts.sum())
    padded = -(-max(num_rows, least_rows) // row_multiple) * row_multiple
    input_ids = np.zeros(padded, dtype=np.int64)
    input_ids[:num_rows] = np.fromiter(chain.from_iterable(s.token_ids for s in segments), np.int64, num_rows)
    block_tables = np.fromiter(chain.from_iterable(s.block_table for s in segments), np.int64, int(lengths.sum()))
    ends = np.cumsum(counts)
    positions = np.zeros(padded, dtype=np.int64)
    positions[:num_rows] = np.arange(num_rows) + np.repeat(starts - (ends - counts), counts)
    return RaggedBatch(
        input_ids=input_ids,
        positions=positions,
        tiles=_tiles(counts, starts, ends - counts, np.cumsum(lengths) - lengths),
        block_tables=block_tables,
        logit_rows=np.arange(int(logits.sum())) + np.repeat(ends - np.cumsum(logits), logits),
        num_rows=num_rows,
    )


def _tiles(counts: Ints, starts: Ints, rows: Ints, tables: Ints) -> Ints:
    if counts.max() <= TILE_ROWS:
        return np.stack((rows, counts, starts, tables), axis=1)
    pieces = -(-counts // TILE_ROWS)
    owner = np.repeat(np.arange(len(counts)), pieces)
    skipped = TILE_ROWS * (np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return np.stack(
        (
            rows[owner] + skipped,
            np.minimum(counts[owner] - skipped, TILE_ROWS),
            starts[owner] + skipped,
            tables[owner],
        ),
        axis=1,
    )
