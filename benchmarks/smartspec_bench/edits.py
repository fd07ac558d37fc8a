"""The prompts of the editing workload, chosen by what the target does with them.

A prompt holds a piece of a held-out file, and then begins it again. A large model asked to edit code would go on
copying; the bundled one is too small to copy on demand, so of many candidates those are kept whose greedy continuation
repeats the text before it: at least `REPEATED` of its tokens are what a lookup of the last two tokens finds.

    python -m smartspec_bench.edits TARGET HELDOUT LIBRARY > benchmarks/edits.jsonl
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

WANTED = 96
REPEATED = 0.75
NEW_TOKENS = 64
SIZES = (120, 200, 300)
"""Characters of a piece."""


def candidates(files: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (name, prompt): a piece of one of *files* (name, text), short ones twice, and its first line again."""
    while True:
        name, text = rng.choice(files)
        lines = [line for line in text.splitlines() if line.strip()]
        size, start = rng.choice(SIZES), rng.randrange(len(lines))
        piece: list[str] = []
        for line in lines[start:]:
            piece.append(line)
            if sum(map(len, piece)) + len(piece) > size:
                break
        whole = "\n".join(piece)
        if size < len(whole) < 2 * size and len(piece) > 1:
            times = 2 if size == min(SIZES) else 1
            yield name, "\n\n".join([whole] * times + [piece[0]])


def repeated_share(tokens: Sequence[int], num_prompt_tokens: int) -> float:
    """The share of the tokens after the prompt that follow the latest earlier occurrence of the two before them."""
    latest: dict[tuple[int, int], int] = {}
    hits = 0
    for position in range(2, len(tokens)):
        pair = (tokens[position - 2], tokens[position - 1])
        hits += position >= num_prompt_tokens and latest.get(pair) == tokens[position]
        latest[pair] = tokens[position]
    return hits / (len(tokens) - num_prompt_tokens)


def main(target: str, heldout: Path, library: Path) -> None:
    """Write `WANTED` prompts as JSON Lines to standard output."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(target)
    files = [(name, (library / name).read_text()) for name in json.loads(heldout.read_text())["files"]]
    kept = 0
    for tried, (name, prompt) in enumerate(candidates(files, random.Random(7)), start=1):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            tokens = model.generate(
                ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )[0].tolist()
        share = repeated_share(tokens, ids.shape[1])
        if share >= REPEATED:
            kept += 1
            print(json.dumps({"file": name, "prompt": prompt, "repeated": round(share, 2)}), flush=True)
            print(f"{kept} of {tried}", file=sys.stderr)
        if kept == WANTED:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
