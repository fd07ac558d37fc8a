"""Distillation of the draft: first on the corpus, then mostly on what the target itself generates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from architecture import draft_config, fresh_model
from corpus import windows
from optim import MixedOptimizer, Rates, schedule
from parallel import add_up, meet, rank, say, share, world
from torch.nn import functional
from transformers import DynamicCache, LlamaForCausalLM


@dataclass(frozen=True)
class Generation:
    """One kind of generated text: `rows` sequences, `prompt` corpus tokens continued to `length` tokens."""

    rows: int
    prompt: int
    length: int
    batch: int


@dataclass(frozen=True)
class DraftPlan:
    """How the draft is distilled. Each step sees `tokens` tokens; lengths are in tokens."""

    steps: int
    tokens: int = 8192
    short: int = 256
    long: int = 1024
    corpus_steps: float = 0.3
    corpus_share: float = 0.25
    overlap: float = 1.0
    warmup: int = 20
    decay: float = 0.5
    rates: Rates = Rates(matrices=0.02, others=0.004)
    generations: tuple[Generation, ...] = (
        Generation(rows=3072, prompt=80, length=256, batch=128),
        Generation(rows=384, prompt=512, length=768, batch=64),
    )
    seed: int = 0


@torch.no_grad()
def continue_windows(
    target: LlamaForCausalLM, prompts: torch.Tensor, length: int, temperatures: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Continues int64 [rows, prompt] to int64 [rows, length], row by row at its own temperature (0: greedy)."""
    cache = DynamicCache(config=target.config)
    tokens = prompts
    step = prompts
    greedy = temperatures == 0
    while True:
        logits = target(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        sampled = torch.multinomial(
            torch.softmax(logits / temperatures.clamp_min(0.01)[:, None], -1), 1, generator=generator
        )
        step = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), sampled)
        tokens = torch.cat([tokens, step], 1)
        if tokens.shape[1] == length:
            return tokens


def generate(target: LlamaForCausalLM, train: torch.Tensor, plan: DraftPlan, work: Path) -> list[torch.Tensor]:
    """This worker's part of the target's continuations of training text, int64 [rows, length] per kind.

    Kept in `work`.
    Half of the rows are greedy and the rest at temperatures from 0.6 to 1: the text that verification meets.
    """
    path = work / f"generated-{rank()}-of-{world()}.pt"
    if path.exists():
        loaded: list[torch.Tensor] = torch.load(path)
        return loaded
    generator = torch.Generator().manual_seed(plan.seed + 100 + rank())
    kinds: list[torch.Tensor] = []
    started = time.monotonic()
    for number, kind in enumerate(plan.generations):
        source = windows(train, length=kind.prompt, batch=kind.batch, seed=plan.seed + 11 + number)
        rows: list[torch.Tensor] = []
        for index in range(kind.rows // kind.batch):
            prompts = next(source)[:, : kind.prompt]
            if index % world() != rank():
                continue
            temperatures = 0.6 + 0.4 * torch.rand(kind.batch, generator=generator)
            temperatures[: kind.batch // 2] = 0.0
            rows.append(continue_windows(target, prompts, kind.length, temperatures, generator))
            done = (index + 1) * kind.batch
            say(f"generated {done}/{kind.rows} of {kind.length} tokens, {time.monotonic() - started:.0f} s")
        kinds.append(torch.cat(rows))
    torch.save(kinds, path)
    meet()
    return kinds


@torch.no_grad()
def target_logits(target: LlamaForCausalLM, rows: torch.Tensor, *, tokens: int = 16384) -> torch.Tensor:
    """The target's logits on every position, bf16 [rows, length, vocabulary]: computed once, used every epoch."""
    batch = max(1, tokens // rows.shape[1])
    parts = [target(input_ids=part, use_cache=False).logits for part in torch.split(rows, batch)]
    return torch.cat(parts)


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, *, overlap: float) -> torch.Tensor:
    """KL(teacher || student) plus `overlap` times the rejection probability; logits [..., vocabulary].

    A token drafted from q is accepted with probability sum(min(p, q)), so the second term is exactly what one
    verification at temperature 1 rejects. On its own it has no gradient to speak of where p and q are disjoint.
    """
    log_q = functional.log_softmax(student.float(), -1)
    log_p = functional.log_softmax(teacher.float(), -1)
    p = log_p.exp()
    loss = (p * (log_p - log_q)).sum(-1).mean()
    if overlap:
        loss = loss + overlap * (p - log_q.exp()).clamp_min(0.0).sum(-1).mean()
    return loss


def _shuffled(
    rows: torch.Tensor, logits: torch.Tensor, batch: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless shuffled epochs over generated rows and their cached logits."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.split(torch.randperm(rows.shape[0], generator=generator), batch):
            yield rows[index], logits[index]


def _batches(
    target: LlamaForCausalLM, train: torch.Tensor, generated: list[torch.Tensor], plan: DraftPlan
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Token batches with the target's logits where those are cached: corpus text first, then mostly generated text.

    What remains of the corpus in the second part comes in long windows, for the positions that generated rows,
    which are mostly short, do not reach.
    """
    short = windows(train, length=plan.short, batch=plan.tokens // plan.short, seed=plan.seed + 20)
    long = windows(train, length=plan.long, batch=plan.tokens // plan.long, seed=plan.seed + 21)
    for _ in range(int(plan.corpus_steps * plan.steps)):
        yield share(next(short)[:, :-1]), None
    own = [
        _shuffled(rows, target_logits(target, rows), plan.tokens // rows.shape[1] // world(), plan.seed + 22)
        for rows in generated
    ]
    weights = torch.tensor([float(rows.numel()) for rows in generated])
    chooser = torch.Generator().manual_seed(plan.seed + 23)
    while True:
        if float(torch.rand((), generator=chooser)) < plan.corpus_share:
            yield share(next(long)[:, :-1]), None
        else:
            yield next(own[int(torch.multinomial(weights, 1, generator=chooser))])


def train_draft(
    target: LlamaForCausalLM, train: torch.Tensor, generated: list[torch.Tensor], plan: DraftPlan, work: Path
) -> LlamaForCausalLM:
    """Distils a fresh draft, or goes on from the checkpoint in `work`. Returns the bf16 model."""
    model = fresh_model(draft_config(), seed=plan.seed + 1)
    optimizer = MixedOptimizer(model, plan.rates)
    checkpoint = work / "draft.pt"
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        optimizer.load(saved["optimizer"])
        step, spent = saved["step"], saved["seconds"]
    batches = _batches(target, train, generated, plan)
    for _ in range(step):
        next(batches)  # A resumed run sees what an uninterrupted one would have seen.
    started = time.monotonic() - spent
    average = 0.0
    while step < plan.steps:
        batch, teacher = next(batches)
        if teacher is None:
            with torch.no_grad():
                teacher = target(input_ids=batch, use_cache=False).logits
        student = model(input_ids=batch, use_cache=False).logits
        # Shares differ by a row at most, so the mean over workers is the mean over the batch, nearly.
        loss = distillation_loss(student, teacher, overlap=plan.overlap) / world()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(schedule(step, plan.steps, warmup=plan.warmup, decay=plan.decay))
        step += 1
        total = add_up(loss.detach().clone()).item()
        average = total if average == 0.0 else 0.95 * average + 0.05 * total
        seconds = time.monotonic() - started
        if step % 20 == 0:
            say(f"draft step {step}/{plan.steps} loss {average:.3f} {seconds:.0f} s")
        if step % 200 == 0 or step == plan.steps:
            if rank() == 0:
                torch.save({"optimizer": optimizer.state(), "step": step, "seconds": seconds}, checkpoint)
            meet()
    return model
