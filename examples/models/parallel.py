"""Data-parallel workers on one machine: processes of one thread each, which meet once per step.

Threads inside the operators meet thousands of times per step instead, at every operator's barrier, and each meeting
waits for the slowest. Training the target took 4.2 s per step with three threads and 3.4 s with three processes, and
other work on the machine slows the processes by the time it takes from them rather than by several times that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn


def rank() -> int:
    """This worker's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many workers there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch: torch.Tensor) -> torch.Tensor:
    """This worker's rows of a batch, which every worker has drawn with the same seed."""
    return batch.tensor_split(world())[rank()]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over the workers, in place."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def meet() -> None:
    """Waits for every worker."""
    if world() > 1:
        distributed.barrier()


def say(message: str) -> None:
    """Prints from the first worker only."""
    if rank() == 0:
        print(message, flush=True)


def _worker(
    number: int, workers: int, store: str, function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=workers)
    function(*arguments)
    distributed.destroy_process_group()


def run(workers: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls `function(*arguments)` in `workers` processes and waits for them all."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(  # type: ignore[no-untyped-call]
            _worker, args=(workers, str(Path(folder) / "store"), function, arguments), nprocs=workers
        )
