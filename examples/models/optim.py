"""Muon for the matrices and AdamW for the rest, over bf16 weights with float32 masters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from parallel import add_up, rank, world
from torch import nn


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@dataclass(frozen=True)
class Rates:
    """Peak learning rates: of the hidden matrices (Muon) and of embeddings and norms (AdamW)."""

    matrices: float
    others: float


def _orthogonalise(update: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, in bf16. [rows, columns] in and out."""
    a, b, c = 3.4445, -4.7750, 2.0315  # The quintic of Keller Jordan's Muon: steep at 0, near 1 on [0.7, 1.2].
    x: torch.Tensor = update.bfloat16()
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def schedule(step: int, steps: int, *, warmup: int, decay: float) -> float:
    """Warm-up, stable, linear decay over the last `decay` of the run: a factor in [0, 1] for the learning rates."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1.0, decay * steps)
    return min(1.0, left)


class MixedOptimizer:
    """Updates float32 masters and rounds them into the model's bf16 weights after each step.

    The forward and backward passes run on bf16 weights outright rather than under autocast: on a CPU with
    avx512_bf16 that is three to four times as fast, and the weights that are published are the ones that were run.
    """

    def __init__(self, model: nn.Module, rates: Rates, *, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self._rates = rates
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._step = 0
        self._matrices: list[nn.Parameter] = []
        self._others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (self._matrices if hidden else self._others).append(parameter)
        self._state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        for parameter in self._matrices:
            master = parameter.detach().float().clone()
            self._state[parameter] = {"master": master, "momentum": torch.zeros_like(master)}
        for parameter in self._others:
            master = parameter.detach().float().clone()
            self._state[parameter] = {
                "master": master,
                "first": torch.zeros_like(master),
                "second": torch.zeros_like(master),
            }

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Applies the workers' summed gradients at `factor` times the peak rates, then clears them."""
        self._step += 1
        order = [*self._matrices, *self._others]
        total = add_up(torch.cat([_gradient(parameter).float().flatten() for parameter in order]))
        gradients = torch.split(total, [parameter.numel() for parameter in order])
        updates: list[torch.Tensor] = []
        for index, (parameter, gradient) in enumerate(zip(self._matrices, gradients, strict=False)):
            momentum = self._state[parameter]["momentum"]
            momentum.lerp_(gradient.view_as(momentum), 1 - self._momentum)
            if index % world() == rank():  # The costly part is shared out, and summed with the others' zeros.
                updates.append(_orthogonalise(gradient.view_as(momentum).lerp(momentum, self._momentum)).float())
            else:
                updates.append(torch.zeros_like(momentum))
        together = add_up(torch.cat([update.flatten() for update in updates]))
        parts = torch.split(together, [parameter.numel() for parameter in self._matrices])
        for parameter, update in zip(self._matrices, parts, strict=True):
            self._muon(parameter, update.view_as(parameter), factor * self._rates.matrices)
        for parameter, gradient in zip(self._others, gradients[len(self._matrices) :], strict=True):
            self._adam(parameter, gradient.view_as(parameter), factor * self._rates.others)
        for parameter in order:
            parameter.grad = None

    def _muon(self, parameter: nn.Parameter, update: torch.Tensor, rate: float) -> None:
        master = self._state[parameter]["master"]
        scale = max(1.0, parameter.size(0) / parameter.size(1)) ** 0.5
        master.mul_(1 - rate * self._weight_decay).add_(update, alpha=-rate * scale)
        parameter.copy_(master)

    def _adam(
        self, parameter: nn.Parameter, gradient: torch.Tensor, rate: float, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        state = self._state[parameter]
        state["first"].lerp_(gradient, 1 - betas[0])
        state["second"].lerp_(gradient.square(), 1 - betas[1])
        first = state["first"] / (1 - betas[0] ** self._step)
        second = state["second"] / (1 - betas[1] ** self._step)
        state["master"].addcdiv_(first, second.sqrt().add_(1e-10), value=-rate)
        parameter.copy_(state["master"])

    def state(self) -> dict[str, object]:
        """Everything needed to resume, by position in the model's parameter order."""
        order = [*self._matrices, *self._others]
        return {"step": self._step, "tensors": [self._state[parameter] for parameter in order]}

    @torch.no_grad()
    def load(self, state: dict[str, object]) -> None:
        """Restores what `state` gave, and the bf16 weights with it."""
        tensors = state["tensors"]
        step = state["step"]
        assert isinstance(tensors, list)
        assert isinstance(step, int)
        self._step = step
        for parameter, saved in zip([*self._matrices, *self._others], tensors, strict=True):
            for key, value in self._state[parameter].items():
                value.copy_(saved[key])
            parameter.copy_(self._state[parameter]["master"])
