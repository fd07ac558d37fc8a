"""What the selftest and the bench ask of a model."""

from pathlib import Path

import pytest

from smartspec.config import ConfigError
from smartspec.loadgen.prompts import BUILT_IN, texts


def test_a_file_takes_the_place_of_the_built_in_texts(tmp_path: Path) -> None:
    """One text a line; empty lines are none."""
    (tmp_path / "p.txt").write_text("first\n\n  \nsecond line\n")
    assert texts(None) == BUILT_IN
    assert texts(tmp_path / "p.txt") == ("first", "second line")


def test_a_line_ends_where_a_line_ends(tmp_path: Path) -> None:
    """JSON Lines may have U+2028 and its like within a text as they are; carriage returns are part of the end."""
    text = "a\u2028b\x85c"
    (tmp_path / "p.jsonl").write_bytes(f'{{"prompt": "{text}"}}\r\n{{"prompt": "d"}}\r\n'.encode())
    assert texts(tmp_path / "p.jsonl") == (text, "d")


@pytest.mark.parametrize("content", [None, b"\n\n", b"\xff\xfe"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, or no UTF-8: the file is named."""
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"prompts .*p\.txt"):
        texts(tmp_path / "p.txt")
