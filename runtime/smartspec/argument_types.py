"""What a flag's text means: sizes, ports, seconds, keys. Each says in its error what would be accepted."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from smartspec.config import ConfigError

BYTE_UNITS: Mapping[str, int] = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip


def num_bytes(text: str) -> int:
    """A size, with a unit or without."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.upper())
    if match is None or match[2] not in BYTE_UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or such as 512MiB or 1GiB")
    return int(float(match[1]) * BYTE_UNITS[match[2]])


def port(text: str) -> int:
    """A TCP port; 0 means any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """A time from 0 up."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return value


def some_seconds(text: str) -> float:
    """A time above 0: a limit of 0 would let nothing through."""
    if (value := seconds(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def key(name: str, file: Path | None, variable: str | None) -> str | None:
    """A key from *file*, else from the environment; an empty one is a mistake, not an open door."""
    try:
        text = variable if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_file {file}: {error}") from None
    if text is not None and not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(f"{name} must be printable ASCII without spaces, and not empty")
    return text
