"""Text while it comes: whole characters, stop strings cut exactly, whatever a step brings at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartspec.async_engine.detokenizer import Detokenizer, joined
from smartspec.scheduling.request import FinishReason


class ByteTokenizer:
    """One token per byte; 256 is a special token without text; tokens from 1000 are pairs of letters."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Bytes."""
        return list(text.encode())

    def decode(self, token_ids: "list[int] | tuple[int, ...]", *, skip_special_tokens: bool = True) -> str:
        """Text, with a replacement character for what is none."""
        return b"".join(self._bytes(t) for t in token_ids).decode(errors="replace")

    def apply_chat_template(self, messages: object) -> str:
        """Not needed here."""
        raise NotImplementedError

    @staticmethod
    def _bytes(token_id: int) -> bytes:
        return b"" if token_id == 256 else bytes([token_id]) if token_id < 256 else b"xy"


def spell(
    tokens: list[int], cuts: list[int], *, stop: tuple[str, ...] = (), finish: FinishReason = "length", **options: int
) -> tuple[list[str], int, str | None]:
    """Push *tokens* in pieces of the lengths *cuts*; the texts, the number of tokens kept, and what it stopped at."""
    detokenizer = Detokenizer(ByteTokenizer(), [104, 105], stop=stop, **options)
    texts, kept, rest, lengths = [], 0, list(tokens), list(cuts)
    while rest:
        piece, rest = rest[: (length := lengths.pop(0) if lengths else 1)], rest[length:]
        result = detokenizer.push(piece, None if rest else finish)
        texts.append(result.text)
        kept += result.num_tokens
        if result.stop is not None:
            return texts, kept, result.stop
    return texts, kept, None


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aé漢🙂\u0301 \n", min_size=1, max_size=30), cuts=st.lists(st.integers(1, 6), max_size=30))
def test_characters_come_out_whole(text: str, cuts: list[int]) -> None:
    """Pieces of several bytes at a time never show half a character, and joined they are the text."""
    texts, _, _ = spell(ByteTokenizer().encode(text), cuts)
    assert "".join(texts) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in texts)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 256), min_size=1, max_size=60), cuts=st.lists(st.integers(1, 6), max_size=60))
def test_bytes_that_are_no_text_come_out_too(tokens: list[int], cuts: list[int]) -> None:
    """Joined pieces equal the text decoded at once, for any bytes, and the wait for the end of a character is short."""
    texts, _, _ = spell(tokens, cuts)
    assert "".join(texts) == ByteTokenizer().decode(tokens)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", min_size=1, max_size=40),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 8), max_size=40),
    min_tokens=st.integers(0, 8),
)
def test_stop_strings_cut_where_the_first_is_complete(
    text: str, stop: list[str], cuts: list[int], min_tokens: int
) -> None:
    """Text ends before the stop string completed first, tokens end with it, and no prefix of one shows early."""
    texts, kept, stopped_at = spell(ByteTokenizer().encode(text), cuts, stop=tuple(stop), min_tokens=min_tokens)
    ends = [(end, end - len(s)) for end in range(min_tokens + 1, len(text) + 1) for s in stop if text[:end].endswith(s)]
    end, cut = min(ends) if ends else (len(text), len(text))
    assert stopped_at == (text[cut:end] if ends else None)
    assert "".join(texts) == text[:cut]
    assert kept == end


def test_a_possible_stop_string_is_held_back_until_it_is_none() -> None:
    """The beginning of a stop string is shown only when the next character rules it out."""
    detokenizer = Detokenizer(ByteTokenizer(), [], stop=("END",))
    texts = [detokenizer.push(ByteTokenizer().encode(c)).text for c in "aENEND"]
    assert texts == ["a", "", "", "EN", "", ""]


def test_the_token_that_ends_a_text_is_counted_but_not_shown() -> None:
    """A stop token's own text is no part of the answer."""
    piece = Detokenizer(ByteTokenizer(), []).push([104, 105, 33], "stop")
    assert (piece.text, piece.num_tokens) == ("hi", 3)


def test_a_stop_inside_a_token_counts_the_whole_token() -> None:
    """A token whose text goes on past the stop string is the last one counted; its text is cut."""
    piece = Detokenizer(ByteTokenizer(), [], stop=("x",)).push([97, 1000, 98])
    assert (piece.text, piece.num_tokens, piece.stop) == ("a", 2, "x")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="aé漢🙂bx", min_size=1, max_size=20),
    stop=st.lists(st.sampled_from(["a", "xa", "é漢", "bb"]), max_size=2),
    finish=st.sampled_from([None, "length", "stop"]),
)
def test_pieces_by_token_join_to_the_piece_of_all(text: str, stop: list[str], finish: FinishReason | None) -> None:
    """One piece for each token of the output; together they are what one push of all tokens gives."""
    tokens = ByteTokenizer().encode(text)
    whole = Detokenizer(ByteTokenizer(), [104], stop=tuple(stop)).push(tokens, finish)
    pieces = Detokenizer(ByteTokenizer(), [104], stop=tuple(stop)).push_each(tokens, finish)
    assert joined(pieces) == whole
    assert len(pieces) == whole.num_tokens


@pytest.mark.parametrize("length", [10, 1000])
def test_the_work_per_token_does_not_grow(length: int) -> None:
    """However long the text is, at most a short tail of it is decoded again."""
    longest = 0

    class Counting(ByteTokenizer):
        def decode(self, token_ids: "list[int] | tuple[int, ...]", *, skip_special_tokens: bool = True) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return super().decode(token_ids)

    detokenizer = Detokenizer(Counting(), [97] * length)
    for _ in range(length):
        detokenizer.push([97])
    assert longest <= 20
