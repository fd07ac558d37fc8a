"""What one ragged forward computes: rows of many requests packed into one line, over a paged KV cache."""

from collections.abc import Sequence

from msgspec import Struct


class Segment(Struct, frozen=True, gc=False):
    """Consecutive rows of one request: `token_ids` at absolute positions `start`, `start + 1`, ...

    Their keys and values are written to the slots of those positions in `block_table`; row i attends to positions
    0 .. start + i. `num_logits` of the last rows are returned as logits (0: none).
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    num_logits: int = 0
