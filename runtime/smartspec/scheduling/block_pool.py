"""Who holds which KV block, and what lies in it. Integers only: the tensors behind the ids are execution's."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` KV blocks of `block_size` tokens with reference counts; taking and giving back one block is O(1).

    Target and draft keep their own tensors under the same ids. A block may have several holders (a shared prefix); it
    is free when the last one lets go. A full block may be *published* under a key that stands for its tokens and all
    before them: it can then be found again, also while it is free, until its memory is taken for something else.

    Free blocks are taken in this order: those without a key, then published ones, least recently used first. A table
    is given back from its end, so that of one text the last block is taken first: without its beginning the rest of a
    text cannot be found.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Ordered by who is taken next. A found block leaves from anywhere inside, in O(1).
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._is_draft_filled = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks nobody holds; published ones among them are as good as empty to whoever needs memory."""
        return len(self._free)

    @property
    def num_published(self) -> int:
        """Blocks that can be found by their key, held or free."""
        return len(self._block_of)

    @property
    def num_tokens(self) -> int:
        """Tokens all blocks together can hold."""
        return self.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        """Share of blocks that somebody holds, from 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks *num_tokens* tokens need."""
        return -(-num_tokens // self.block_size)

    def grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Append blocks until *block_table* holds *num_tokens*; False, with nothing taken, when too few are free."""
        missing = -(-num_tokens // self.block_size) - len(block_table)
        if missing <= 0:
            return True
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._empty(block)
            self._holders[block] = 1
            block_table.append(block)
        return True

    def shrink(self, block_table: list[int], num_tokens: int) -> None:
        """Give back what *block_table* holds beyond *num_tokens*."""
        keep = -(-num_tokens // self.block_size)
        while len(block_table) > keep:
            self._release(block_table.pop())

    # -- published blocks -----------------------------------------------------------------------------------------

    def publish(self, block: int, key: bytes) -> None:
        """Let *block*, which must be held, be found under *key*. Of two blocks with one content the first stays."""
        if not self._holders[block]:
            raise ValueError(f"block {block} is free and cannot be published")
        if self._key_of[block] is None and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks published under the first *keys*, up to the first key that none has."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_held(self, blocks: Iterable[int]) -> int:
        """How many of *blocks* have a holder: sharing those takes nothing from what is free."""
        holders = self._holders
        return sum(1 for block in blocks if holders[block])

    def share(self, blocks: Sequence[int]) -> None:
        """Add one holder to each of *blocks*, which must be held or published."""
        for block in blocks:
            if not self._holders[block]:
                if self._key_of[block] is None:
                    raise ValueError(f"block {block} is free and cannot be shared")
                del self._free[block]
            self._holders[block] += 1

    # -- the draft's keys and values ------------------------------------------------------------------------------

    def fill_draft(self, block: int) -> None:
        """Note that the draft's keys and values of *block*, which must be held, are complete too."""
        if not self._holders[block]:
            raise ValueError(f"block {block} is free and cannot be filled")
        self._is_draft_filled[block] = True

    def is_draft_filled(self, block: int) -> bool:
        """Whether the draft has seen all tokens of *block*."""
        return bool(self._is_draft_filled[block])

    # -- integrity ------------------------------------------------------------------------------------------------

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
            self._free[block] = None
            if self._key_of[block] is None:
                self._free.move_to_end(block, last=False)

    def _empty(self, block: int) -> None:
        """Forget what lies in *block*: its memory is about to be written."""
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
        self._is_draft_filled[block] = False
