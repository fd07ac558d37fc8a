"""numba, which compiles what must be fast: for which processors, and from where what others have compiled already.

All compiled code of SmartSpec goes through this module, for numba reads its settings when it is first imported.

On x86-64 it compiles for a *level* (https://gitlab.com/x86-psABIs/x86-64-ABI) that whole generations of processors
share, not for the one processor at hand: so an image can bring its kernels along, compiled once, and a replica begins
with them on whichever node it lands. Compiling them takes half a minute of one core, at each start of a pod whose disk
is its own. The kernels ask for their vectors themselves and gain nothing measurable from a finer choice.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
}
"""What Linux calls the features of each level beyond the one below it, the highest first."""

KERNELS = "SMARTSPEC_KERNELS"
"""The environment's name for a folder of compiled kernels, as `smartspec.precompile` makes it."""


def level_of(features: set[str]) -> str | None:
    """The highest level that a processor of these *features* reaches; None below the lowest."""
    if not LEVELS["x86-64-v3"] <= features:
        return None
    return next(level for level, needed in LEVELS.items() if needed <= features)


def _features() -> set[str]:
    """What this machine's processors can do, as Linux says; nothing where it is not Linux or not x86-64."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.machine() == "x86_64" else []
    except OSError:
        lines = []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def settle(environment: MutableMapping[str, str], features: set[str]) -> None:
    """Choose the level, unless somebody else has chosen, and put compiled kernels where numba looks for them."""
    if level := level_of(features):
        environment.setdefault("NUMBA_CPU_NAME", level)
    if environment.get("NUMBA_CPU_NAME") in LEVELS:
        environment.setdefault("NUMBA_CPU_FEATURES", "")  # none but the level's own
    kernels, cache = environment.get(KERNELS), environment.get("NUMBA_CACHE_DIR")
    if kernels and cache:
        unpack(Path(kernels), Path(cache))


def unpack(kernels: Path, cache: Path) -> None:
    """Copy *kernels* to *cache*, which numba insists on writing to, if there is none yet: wholly or not at all.

    Where that fails numba compiles what it needs, as it does for a processor that the kernels are not for.
    """
    if cache.exists():
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            shutil.copytree(kernels, copied := Path(folder, "kernels"))
            copied.rename(cache)
    except OSError:
        pass


if "numba" not in sys.modules:
    settle(os.environ, _features())

# Not before.
import numba  # noqa: E402
from numba import carray, cfunc, float32, types  # noqa: E402
from numba.core import cgutils  # noqa: E402

__all__ = ["carray", "cfunc", "cgutils", "float32", "intrinsic", "njit", "types"]

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")


def njit(signature: Any = None, **options: Any) -> Callable[[F], F]:
    """`numba.njit`, with a type that says what it leaves: a function that is called as before."""
    decorated: Callable[[F], F] = numba.njit(signature, **options)
    return decorated


def intrinsic(function: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """`numba.extending.intrinsic`: called from compiled code, without the first argument."""
    decorated: Callable[P, Any] = numba.extending.intrinsic(function)
    return decorated
