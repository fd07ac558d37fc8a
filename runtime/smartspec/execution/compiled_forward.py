"""A model's forward compiled once by inductor, for any number of rows, with its weights and its cache left outside.

What a transformers model does between its matrix products is dozens of small operations a layer, and each is a pass
over memory and a start of threads. Inductor merges them into a few loops. Matrix products and attention stay ours: they
are operators that the compiler cannot see into, and that find their weights and caches through the forward pass that is
running. So one compilation serves every size of step, and a row's bits cannot depend on which one was compiled for.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import truediv
from statistics import fmean

import torch

from smartspec.execution.batch import Segment
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.inductor import backend, missing_compiler
from smartspec.execution.native_operators import Table, table_of
from smartspec.execution.packed_linear import PackedLinear
from smartspec.execution.paged_model import Forward, PagedModel, eager

log = logging.getLogger(__name__)

LEAST_ROWS = 2
"""A compiler takes a size of 1 for a constant, so a step has at least two rows, and so do its logits."""

_TRACED_ROWS = 24
"""Rows to compile with. The logits asked for are fewer, or the compiler would take the two sizes for one."""

TRIAL_ROWS = (1, 16, 64)
_REPEATS = 6
_ROUNDS = 4
"""Of so many repeats at most: while other processes take cores, the fastest of a few steps says little."""
_WORTH = 1.1
"""A compiled forward is left again when it takes longer than this times eager: noise must not decide."""
_TOLERANCE = 0.05
"""Relative difference of logits between compiled and eager: rounding in 16 bits makes about a hundredth."""


class CompileError(Exception):
    """The model's forward cannot be compiled here, or is not worth it; the message says why."""


@dataclass(frozen=True)
class Compiled:
    """What came of compiling: seconds it took, and of a step of each of `TRIAL_ROWS` rows before and after."""

    seconds: float
    eager_seconds: tuple[float, ...]
    compiled_seconds: tuple[float, ...]

    @property
    def is_worth_it(self) -> bool:
        """Whether steps are faster than before, or as good as, of each size in its own measure: a burst of somebody
        else's work during the longest ones says nothing of the others."""
        return fmean(map(truediv, self.compiled_seconds, self.eager_seconds)) <= _WORTH

    def __str__(self) -> str:
        times = " against ".join(
            "/".join(f"{1e3 * seconds:.3g}" for seconds in row) for row in (self.compiled_seconds, self.eager_seconds)
        )
        return f"{times} ms eager for {'/'.join(map(str, TRIAL_ROWS))} rows"


def compile_forward(paged: PagedModel, clock: Callable[[], float], *, must_be_faster: bool = True) -> Compiled:
    """Put *paged* on a compiled forward, if that computes the same, and faster unless that is not asked for; otherwise
    it is left as it was.

    What was compiled is kept (see `compile_cache`), so that the next start takes a fraction of the time. Writes to the
    blocks of the cache, so call it before there are requests. Raises CompileError.
    """
    table = table_of(paged.products, _require(paged))
    if table is not None:
        try:
            return _compile(paged, clock, table, must_be_faster=must_be_faster)
        except NativeError as problem:
            log.warning("event=compiled_with_python_operators reason=%r", str(problem))
    return _compile(paged, clock, None, must_be_faster=must_be_faster)


class NativeError(CompileError):
    """The forward cannot be compiled with native operators: they were handed what lies otherwise in memory than they
    read it, or the C++ that calls them is not to be had. With Python's it may be."""


def _compile(paged: PagedModel, clock: Callable[[], float], table: Table | None, *, must_be_faster: bool) -> Compiled:
    _hand_out(paged, table)
    run_eager = eager(paged.model)
    compiled_eager: Forward = torch.compile(run_eager, backend=backend(table), dynamic=True, fullgraph=True)
    run_compiled = compiled_eager if table is None else _begun(compiled_eager, table)
    trials = [_trial(paged, rows) for rows in TRIAL_ROWS]
    began = clock()
    try:
        # Once for each number of threads that steps run on: dynamo compiles anew for another.
        for trial in (_trial(paged, _TRACED_ROWS), trials[-1]):
            paged.run_by(run_eager)
            expected = paged.forward(trial)
            paged.run_by(run_compiled, least_rows=LEAST_ROWS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of its own use of itself
                found = paged.forward(trial)
            difference = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
            if not difference <= _TOLERANCE:
                raise CompileError(f"compiled logits differ by {difference:.2g}")
        compiled = _compare(paged, trials, clock, run_eager, _unguarded(run_compiled), seconds=clock() - began)
        if must_be_faster and not compiled.is_worth_it:
            raise CompileError(f"compiled steps take longer: {compiled}")
    except Exception as problem:  # what dynamo and inductor raise has no base class that is public
        paged.run_by(run_eager)
        if isinstance(problem, CompileError):
            raise
        error = CompileError if table is None else NativeError
        raise error(f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}") from problem
    return compiled


def _hand_out(paged: PagedModel, table: Table | None) -> None:
    """Let every module that calls an operator know *table*."""
    for module in paged.model.modules():
        if isinstance(module, PackedLinear) or hasattr(module, "smartspec_calls"):
            module.smartspec_table = None if table is None else table.tensor


def _begun(forward: Forward, table: Table) -> Forward:
    """*forward* after *table* has taken the step in; raises NativeError where its logits are none."""

    def run(input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        table.begin()
        logits = forward(input_ids, position_ids, kept)
        if table.is_misused:
            raise NativeError("an operator of the compiled forward was handed what it cannot read")
        return logits

    return run


def _require(paged: PagedModel) -> CompiledAttention:
    """The model's attention; raises CompileError for what is known to be in the way, before time is spent on it."""
    if not isinstance(paged.attention, CompiledAttention):
        raise CompileError(f"only models in float32 or bfloat16 on a CPU are compiled, not on {paged.device}")
    if any(len(getattr(module, "smartspec_calls", ())) > 1 for module in paged.model.modules()):
        raise CompileError("a module attends more than once in a forward")
    if (problem := missing_compiler()) is not None:
        raise CompileError(problem)
    return paged.attention


def _unguarded(forward: Forward) -> Forward:
    """*forward* without asking, at every step, whether each of its modules is still what it was (0.4 ms for 16 layers);
    nor does a step ever wait for another compilation. It is called with rows enough, and its modules do not change."""

    def run(input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return forward(input_ids, position_ids, kept)

    return run


def _trial(paged: PagedModel, rows: int) -> list[Segment]:
    """One request of *rows* tokens from the start of the cache, a third of them with logits."""
    rows = min(rows, paged.num_blocks * paged.block_size)
    ids = torch.randint(paged.vocab_size, (rows,), generator=torch.Generator().manual_seed(rows)).tolist()
    return [Segment(ids, 0, range(-(-rows // paged.block_size)), -(-rows // 3))]


def _compare(
    paged: PagedModel,
    trials: list[list[Segment]],
    clock: Callable[[], float],
    run_eager: Forward,
    run_compiled: Forward,
    *,
    seconds: float,
) -> Compiled:
    """The fastest of a few steps of each trial, the two ways in turn; *paged* is left on the compiled one.

    As long as compiled steps look slower, there are more: somebody else's burst must not decide for the server's life.
    """
    best = {run: [float("inf")] * len(trials) for run in (run_eager, run_compiled)}
    for _ in range(_ROUNDS):
        for index, trial in enumerate(trials):
            for _ in range(_REPEATS):
                for run, fastest in best.items():
                    paged.run_by(run, least_rows=LEAST_ROWS)
                    began = clock()
                    paged.forward(trial)
                    fastest[index] = min(fastest[index], clock() - began)
        compiled = Compiled(seconds, tuple(best[run_eager]), tuple(best[run_compiled]))
        if compiled.is_worth_it:
            break
    return compiled
