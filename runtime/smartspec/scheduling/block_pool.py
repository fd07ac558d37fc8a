"""Who holds which KV block. Integers only: the tensors behind the ids are the execution layer's."""

from collections import deque
from collections.abc import Iterable


class BlockPool:
    """`num_blocks` KV blocks of `block_size` tokens with reference counts; taking and giving back one block is O(1).

    Target and draft keep their own tensors under the same ids. A block may have several holders (a shared prefix); it
    is free when the last one lets go. Blocks return to the far end of the queue, so that what was freed longest ago is
    overwritten first.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """Tokens all blocks together can hold."""
        return self.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        """Share of blocks in use, from 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks *num_tokens* tokens need."""
        return -(-num_tokens // self.block_size)

    def grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Append blocks until *block_table* holds *num_tokens*; False, with nothing taken, when too few are free."""
        missing = self.blocks_for(num_tokens) - len(block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.popleft()
            self._holders[block] = 1
            block_table.append(block)
        return True

    def shrink(self, block_table: list[int], num_tokens: int) -> None:
        """Give back what *block_table* holds beyond *num_tokens*."""
        keep = self.blocks_for(num_tokens)
        while len(block_table) > keep:
            self._release(block_table.pop())

    def share(self, blocks: Iterable[int]) -> None:
        """Add one holder to each of *blocks*, which must be held already."""
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"block {block} is free and cannot be shared")
            self._holders[block] += 1

    def check_idle(self) -> None:
        """Raise RuntimeError naming the leak when any block is still held. O(1) when none is."""
        if len(self._free) != self.num_blocks:
            held = [block for block, holders in enumerate(self._holders) if holders]
            raise RuntimeError(
                f"KV blocks leaked: {len(self._free)} of {self.num_blocks} are free while nothing runs; "
                f"held: {held[:8]}{' ...' if len(held) > 8 else ''}"
            )

    def _release(self, block: int) -> None:
        if not self._holders[block]:
            raise RuntimeError(f"block {block} was given back twice")
        self._holders[block] -= 1
        if not self._holders[block]:
            self._free.append(block)
