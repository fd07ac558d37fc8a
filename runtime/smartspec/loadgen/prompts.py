"""What to ask: short texts of several kinds, some of which repeat themselves, or the user's own."""

from pathlib import Path

import msgspec

from smartspec.config import ConfigError

BUILT_IN = (
    "def parse(self, text):\n    ",
    "The history of the steam engine begins with",
    "import os\nimport sys\n\n\ndef main(argv):\n    ",
    "List of countries and capitals:\n1. France: Paris\n2. Italy: Rome\n3. Spain:",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def pop(self):\n        return",
    "Rewrite without changes. Text: The quick brown fox jumps over the lazy dog. Answer: The quick brown fox",
    '{"name": "alpha", "size": 1}\n{"name": "beta", "size": 2}\n{"name": "gamma",',
    "To make bread, first mix flour, water, salt and yeast. Then",
)


class _Line(msgspec.Struct):
    """A line of JSON Lines."""

    prompt: str


def lines_of(file: Path) -> list[str]:
    """The lines of *file* that are not empty. Not `splitlines`: what it also takes for ends of lines (U+2028, say) may
    stand in a prompt. Raises OSError or UnicodeDecodeError."""
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def texts(file: Path | None) -> tuple[str, ...]:
    """The texts of *file*, or the built-in ones: a line each that is not empty, or (`.jsonl`) its field `prompt`.

    Raises ConfigError when there are none, or when the file cannot be read.
    """
    if file is None:
        return BUILT_IN
    try:
        lines = tuple(lines_of(file))
        if file.suffix == ".jsonl":
            lines = tuple(prompt for line in lines if (prompt := msgspec.json.decode(line, type=_Line).prompt))
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"prompts {file}: {error}") from None
    if not lines:
        raise ConfigError(f"prompts {file}: there is no text in it")
    return lines
