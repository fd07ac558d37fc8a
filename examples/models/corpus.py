"""The Python standard library as a training corpus: files, split, tokenizer, prompts and batches."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Separates two files in the training stream; token 0, and the token that ends a generation."""

CHAT_TEMPLATE = (
    "{% for message in messages %}# {{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant:\n{% endif %}"
)
"""A conversation rendered as Python comments, which the models have seen, rather than tokens they have not."""

# Whole trees that are not hand-written library code: tests have a style of their own and would be two thirds of the
# corpus, encodings are generated tables (a model continues them perfectly, so they would flatter the acceptance),
# and pydoc_data is one file of reStructuredText inside string literals.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__", "__phello__"}
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # written by the build of one interpreter, full of its paths


@dataclass(frozen=True)
class SourceFile:
    """One library file: its path relative to Lib/ with forward slashes, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """Files to train on and files never trained on (neither the models nor the tokenizer)."""

    train: list[SourceFile]
    heldout: list[SourceFile]


def library_files(library: Path | None = None) -> list[SourceFile]:
    """Reads the standard library's own modules, sorted by name so that every machine sees one order."""
    root = library if library is not None else Path(os.__file__).parent
    files: list[SourceFile] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]) or any(part.startswith(_SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # A few files declare another encoding; they are not worth a codec each.
        if text.strip():
            files.append(SourceFile("/".join(parts), text))
    if not files:
        raise FileNotFoundError(f"no standard library sources under {root}")
    return files


def split_files(files: list[SourceFile], *, seed: int, fraction: float, smallest: int = 4000) -> Split:
    """Holds out `fraction` of the files of at least `smallest` characters: shorter ones give few prompts."""
    eligible = [file.name for file in files if len(file.text) >= smallest]
    count = max(1, round(len(eligible) * fraction))
    chosen = set(random.Random(seed).sample(eligible, count))
    return Split(
        train=[file for file in files if file.name not in chosen],
        heldout=[file for file in files if file.name in chosen],
    )


def train_tokenizer(files: list[SourceFile], *, vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE that both models share. `vocabulary` counts tokens, `longest` is a length in tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],  # first, so that it is token 0
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in files), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=longest,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_stream(files: list[SourceFile], tokenizer: PreTrainedTokenizerFast, *, seed: int) -> torch.Tensor:
    """All files in a shuffled order as one tensor of token ids, int64 [tokens], an end of text before each file."""
    order = list(files)
    random.Random(seed).shuffle(order)
    encoded = tokenizer.backend_tokenizer.encode_batch([file.text for file in order])
    end = tokenizer.backend_tokenizer.token_to_id(END_OF_TEXT)
    ids: list[int] = []
    for encoding in encoded:
        ids.append(end)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.long)


def windows(stream: torch.Tensor, *, length: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of int64 [batch, length + 1] cut from the stream: epochs of shuffled, non-overlapping windows.

    Each epoch starts the grid at another offset, so that no token is always at the start of a window.
    """
    generator = torch.Generator().manual_seed(seed)
    pending: list[torch.Tensor] = []
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (stream.numel() - offset - 1) // length
        for index in torch.randperm(count, generator=generator).tolist():
            start = offset + index * length
            pending.append(stream[start : start + length + 1])
            if len(pending) == batch:
                yield torch.stack(pending)
                pending = []


def cut_prompts(files: list[SourceFile], *, count: int, shortest: int, longest: int, seed: int) -> list[dict[str, str]]:
    """Cuts prompts of about `shortest` to `longest` characters, each from a line start to the end of a line.

    Files take turns, so that one large file does not crowd out the others. A prompt stops before its last line break:
    the tokenizer joins a break and the indentation behind it, so a break on its own says that no indentation follows.
    """
    rng = random.Random(seed)
    prompts: list[dict[str, str]] = []
    seen: set[str] = set()
    attempts = 0
    while len(prompts) < count:
        attempts += 1
        if attempts > 200 * count:
            raise ValueError(f"the held-out files yield {len(prompts)} prompts of {shortest} characters, not {count}")
        file = files[attempts % len(files)]
        lines = file.text.splitlines(keepends=True)
        first = rng.randrange(len(lines))
        wanted = rng.uniform(shortest, (shortest + longest) / 2)
        text = ""
        for line in lines[first:]:
            if len(text) >= wanted:
                break
            text += line
        text = text.rstrip()
        # A blank first line says nothing about where in the file we are.
        if not shortest <= len(text) <= longest or text in seen or not lines[first].strip():
            continue
        seen.add(text)
        prompts.append({"file": file.name, "prompt": text})
    return prompts


def write_heldout(split: Split, folder: Path, *, seed: int) -> None:
    """Writes heldout.json (the file names) and prompts.jsonl (256 short prompts and 32 long ones)."""
    names = {"corpus": "Python 3.11 standard library (Lib/)", "seed": seed, "files": [f.name for f in split.heldout]}
    (folder / "heldout.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    prompts = cut_prompts(split.heldout, count=256, shortest=170, longest=260, seed=seed)
    prompts += cut_prompts(split.heldout, count=32, shortest=1000, longest=2000, seed=seed + 1)
    lines = "".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
