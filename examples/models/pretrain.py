"""Training of the target on the corpus, by next-token cross-entropy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from architecture import fresh_model, target_config
from corpus import windows
from optim import MixedOptimizer, Rates, schedule
from parallel import add_up, meet, rank, say, share
from torch.nn import functional
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class TargetPlan:
    """How the target is trained. Lengths and batches in tokens; each step sees `tokens` of them."""

    steps: int
    tokens: int = 16384
    short: int = 256
    long: int = 1024
    long_from: float = 0.7
    warmup: int = 10
    decay: float = 0.45
    rates: Rates = Rates(matrices=0.02, others=0.003)
    seed: int = 0


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, stream: torch.Tensor, *, length: int = 1024, most: int = 96) -> float:
    """Mean next-token loss, nats per token, over up to `most` consecutive windows of the held-out stream."""
    count = min(most, (stream.numel() - 1) // length)
    apart = (stream.numel() - 1) // count
    batch = torch.stack([stream[index * apart : index * apart + length + 1] for index in range(count)])
    parts = [_loss(model, part).item() * part.shape[0] for part in torch.split(share(batch), 8)]
    return add_up(torch.tensor(sum(parts))).item() / count


def _loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def _batches(plan: TargetPlan, train: torch.Tensor) -> Iterator[torch.Tensor]:
    """Short windows for the first part of the plan, long ones from then on."""
    short = windows(train, length=plan.short, batch=plan.tokens // plan.short, seed=plan.seed)
    yield from itertools.islice(short, int(plan.long_from * plan.steps))
    yield from windows(train, length=plan.long, batch=plan.tokens // plan.long, seed=plan.seed + 1)


def train_target(plan: TargetPlan, train: torch.Tensor, heldout: torch.Tensor, work: Path) -> LlamaForCausalLM:
    """Trains the target, or goes on from the checkpoint in `work`. Returns the bf16 model.

    Short windows first: attention is a third of the cost at 512 tokens on this kind of machine, and most of what
    there is to learn is local. The last part runs at serving length so that the positions are all known.
    """
    model = fresh_model(target_config(), seed=plan.seed)
    optimizer = MixedOptimizer(model, plan.rates)
    checkpoint = work / "target.pt"
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        optimizer.load(saved["optimizer"])
        step, spent = saved["step"], saved["seconds"]
    batches = _batches(plan, train)
    for _ in range(step):
        next(batches)  # A resumed run sees what an uninterrupted one would have seen.
    started = time.monotonic() - spent
    average = 0.0
    while step < plan.steps:
        batch = next(batches)
        mine = share(batch)
        loss = _loss(model, mine) * (mine.shape[0] / batch.shape[0])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(schedule(step, plan.steps, warmup=plan.warmup, decay=plan.decay))
        step += 1
        total = add_up(loss.detach().clone()).item()
        average = total if average == 0.0 else 0.95 * average + 0.05 * total
        seconds = time.monotonic() - started
        if step % 5 == 0:
            say(f"target step {step}/{plan.steps} loss {average:.3f} {seconds:.0f} s")
        if step % 100 == 0 or step == plan.steps:
            say(f"target step {step} held-out loss {heldout_loss(model, heldout):.4f}")
            saved = {"optimizer": optimizer.state(), "step": step, "seconds": seconds}
            if rank() == 0:
                torch.save(saved, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            meet()
    return model
