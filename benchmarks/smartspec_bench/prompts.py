"""The prompts: cut from files that neither model has seen, each used once per round for every mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smartspec.loadgen.prompts import texts

ROOT = Path(__file__).parents[2]
SHORT_CHARACTERS = 400


@dataclass(frozen=True)
class Workload:
    """Prompts of one kind, and how to continue them; they differ in how much of a draft is accepted."""

    name: str
    prompts: tuple[str, ...]
    temperature: float = 0.0

    def take(self, count: int, turn: int) -> list[str]:
        """The next *count* prompts of round *turn*, wrapping around: every mode gets the same ones."""
        start = turn * count
        return [self.prompts[(start + index) % len(self.prompts)] for index in range(count)]


def read(path: Path) -> tuple[str, ...]:
    """The short prompts of a JSON Lines file with a field `prompt`: long ones would make requests unequal work."""
    return tuple(prompt for prompt in texts(path) if len(prompt) <= SHORT_CHARACTERS)


def code() -> Workload:
    """Continue Python, greedily: about 200 characters of a held-out file."""
    return Workload("code", _shuffled(read(ROOT / "examples/models/prompts.jsonl")))


def sampled() -> Workload:
    """The same at temperature 1, where less of a draft is accepted."""
    return Workload("sampled", code().prompts, temperature=1.0)


def edit() -> Workload:
    """Go on with code that repeats what stands before it (`edits.py`): prompt lookup finds most of it."""
    return Workload("edit", texts(ROOT / "benchmarks/edits.jsonl"))


def _shuffled(prompts: Sequence[str]) -> tuple[str, ...]:
    """In a fixed order that does not go by file: neighbours in the list are neighbours in a file."""
    stride = next(n for n in (61, 59, 53) if len(prompts) % n)
    return tuple(prompts[index * stride % len(prompts)] for index in range(len(prompts)))
