"""Trains the example model pair on the standard library and writes it beside this file.

    python examples/models/train.py --work /tmp/models-work

Each stage leaves its result in the work folder and is skipped, or continued, when it finds it there: the tokenizer,
the target, the text the target generates, the draft, and last the measurement. README.md says what came out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from architecture import LONGEST, VOCABULARY, export, parameter_count
from corpus import Split, library_files, split_files, token_stream, train_tokenizer, write_heldout
from distill import DraftPlan, generate, train_draft
from parallel import meet, rank, run, say, world
from pretrain import TargetPlan, heldout_loss, train_target
from speculate import measure
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent


def prepare(work: Path, *, seed: int) -> tuple[Split, PreTrainedTokenizerFast]:
    """Splits the files, and trains the tokenizer or loads it from the work folder."""
    split = split_files(library_files(), seed=seed, fraction=0.08)
    folder = work / "tokenizer"
    if not folder.exists():
        train_tokenizer(split.train, vocabulary=VOCABULARY, longest=LONGEST).save_pretrained(folder)
    return split, PreTrainedTokenizerFast.from_pretrained(folder)


def read_prompts(tokenizer: PreTrainedTokenizerFast, count: int) -> list[list[int]]:
    """Token ids of the first `count` short held-out prompts."""
    lines = (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines[:count]]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def report(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    temperatures: list[float],
) -> None:
    """Prints the acceptance by position at each temperature, and one continuation to look at."""
    prompts = read_prompts(tokenizer, count)[rank() :: world()]
    for temperature in temperatures:
        result, texts = measure(target, draft, prompts, temperature=temperature)
        survival = " ".join(f"{share:.3f}" for share in result.survival)
        say(
            f"acceptance {target.dtype} T={temperature} survival {survival} length {result.mean_length:.3f} "
            f"over {result.steps} steps"
        )
        say(tokenizer.decode(prompts[0]) + "<|>" + tokenizer.decode(texts[0]))


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--out", type=Path, default=HERE, help="where stdlib-target and stdlib-draft are written")
    parser.add_argument("--workers", type=int, default=3, help="processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target-steps", type=int, default=420)
    parser.add_argument("--draft-steps", type=int, default=1000)
    parser.add_argument("--evaluate", action="store_true", help="measure the pair in --out instead of training one")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts to measure acceptance on")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.8], help="to measure acceptance at")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Measures the exported pair: parameters, held-out loss, acceptance in both precisions."""
    split, tokenizer = prepare(args.work, seed=args.seed)
    heldout = token_stream(split.heldout, tokenizer, seed=args.seed)
    target = LlamaForCausalLM.from_pretrained(args.out / "stdlib-target", dtype=torch.bfloat16)
    draft = LlamaForCausalLM.from_pretrained(args.out / "stdlib-draft", dtype=torch.bfloat16)
    for name, model in (("target", target), ("draft", draft)):
        loss = heldout_loss(model, heldout)
        say(f"{name}: {parameter_count(model)} parameters, held-out loss {loss:.4f} nats per token")
    report(target, draft, tokenizer, count=args.prompts, temperatures=args.temperatures)
    report(target.float(), draft.float(), tokenizer, count=args.prompts, temperatures=args.temperatures)


def stages(args: argparse.Namespace) -> None:
    """What each worker runs."""
    if not args.evaluate:
        split, tokenizer = prepare(args.work, seed=args.seed)
        train = token_stream(split.train, tokenizer, seed=args.seed)
        heldout = token_stream(split.heldout, tokenizer, seed=args.seed)
        characters = sum(len(file.text) for file in split.train)
        say(f"{len(split.train)} files of {characters} characters, {train.numel()} tokens, to train on")
        say(f"{len(split.heldout)} files, {heldout.numel()} tokens, held out")
        target = train_target(TargetPlan(steps=args.target_steps, seed=args.seed), train, heldout, args.work)
        plan = DraftPlan(steps=args.draft_steps, seed=args.seed)
        generated = generate(target, train, plan, args.work)
        draft = train_draft(target, train, generated, plan, args.work)
        if rank() == 0:
            export(target, tokenizer, args.out / "stdlib-target")
            export(draft, tokenizer, args.out / "stdlib-draft")
        meet()
    evaluate(args)


def main() -> None:
    """Runs every stage that is not finished yet."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    split, _ = prepare(args.work, seed=args.seed)  # once here, so that the workers find the tokenizer trained
    write_heldout(split, HERE, seed=args.seed)
    run(args.workers, stages, args)


if __name__ == "__main__":
    main()
