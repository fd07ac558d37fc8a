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
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Concatenate, ParamSpec, TypeVar


@dataclass(frozen=True)
class Level:
    """What is compiled for: LLVM's names of a processor and of features beside its own; and what Linux calls all that
    a machine must have for it."""

    processor: str
    features: str
    needed: frozenset[str]


_AVX2 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
BFLOAT16 = Level("x86-64-v4", "+avx512bf16", _AVX512 | {"avx512_bf16"})
LEVELS = (BFLOAT16, Level("x86-64-v4", "", _AVX512), Level("x86-64-v3", "", _AVX2))
"""The highest first."""

PROCESSOR, FEATURES = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"
KERNELS = "SMARTSPEC_KERNELS"
"""The environment's name for a folder of compiled kernels, one below it for each level, as `smartspec.precompile` makes
it."""


def level_of(features: frozenset[str]) -> Level | None:
    """The highest level that a processor of these *features* reaches; None below the lowest."""
    return next((level for level in LEVELS if level.needed <= features), None)


@cache
def processor() -> Mapping[str, str]:
    """This machine's first processor as Linux describes it, by its names; nothing where it is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def machine_features() -> frozenset[str]:
    """What this machine's processors can do, as Linux says; nothing where it is not Linux or not x86-64."""
    return frozenset(processor().get("flags", "").split()) if platform.machine() == "x86_64" else frozenset()


def settle(environment: MutableMapping[str, str], features: frozenset[str]) -> None:
    """Choose the level, unless somebody has chosen a processor, and put compiled kernels where numba looks for them."""
    if PROCESSOR not in environment and (level := level_of(features)):
        environment.update({PROCESSOR: level.processor, FEATURES: level.features})
    kernels, cache = environment.get(KERNELS), environment.get("NUMBA_CACHE_DIR")
    if kernels and cache:
        unpack(Path(kernels, folder_of(environment)), Path(cache))


def folder_of(environment: Mapping[str, str]) -> str:
    """The name of the folder of kernels for what *environment* has numba compile for."""
    return environment.get(PROCESSOR, "any") + environment.get(FEATURES, "")


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
    settle(os.environ, machine_features())

# Not before.
import numba  # noqa: E402
from numba import carray, cfunc, float32, types  # noqa: E402
from numba.core import cgutils  # noqa: E402

__all__ = [
    "address_of", "address_of_operator", "carray", "cgutils", "external", "float32", "intrinsic", "njit", "pointer",
    "sources_of", "types",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")


def njit(signature: Any = None, *, cache: bool = False, **options: Any) -> Callable[[F], F]:
    """`numba.njit`, with a type that says what it leaves: a function that is called as before."""
    compiler: Any = numba.njit

    def decorated(function: F) -> F:
        def compiled(*, cache: bool) -> F:
            made: F = compiler(signature, cache=cache, **options)(function)
            return made

        return _cached(compiled) if cache else compiled(cache=False)

    return decorated


def intrinsic(function: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """`numba.extending.intrinsic`: called from compiled code, without the first argument."""
    decorated: Callable[P, Any] = numba.extending.intrinsic(function)
    return decorated


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """The memory at an integer *address*, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


def chosen() -> Level | None:
    """What is compiled for here; None if that is none of `LEVELS`."""
    names = (os.environ.get(PROCESSOR), os.environ.get(FEATURES))
    return next((level for level in LEVELS if names == (level.processor, level.features)), None)


def address_of(function: Callable[[Any], None]) -> int:
    """The address of *function* as a C function `void f(void *)`: compiled, or taken from numba's cache on disk."""
    return _address_of(function, types.void(types.voidptr))


def address_of_operator(function: Callable[[Any, Any, Any], None]) -> int:
    """The same for `void f(void *, uint64_t, uint64_t)`, which is what torch calls an operator by."""
    return _address_of(function, types.void(types.voidptr, types.uint64, types.uint64))


def _address_of(function: Callable[..., None], signature: Any) -> int:
    compiler: Any = cfunc
    return int(_cached(lambda *, cache: compiler(signature, cache=cache)(function)).address)


def _cached(compiled: Callable[..., T]) -> T:
    """What *compiled* makes with numba's cache, or without where there is no place for one. Raises RuntimeError for a
    cache that cannot be read."""
    try:
        return compiled(cache=True)
    except RuntimeError:  # no writable place: neither beside the source nor under the home directory
        return compiled(cache=False)
    except (EOFError, UnpicklingError) as error:
        where = os.environ.get("NUMBA_CACHE_DIR") or "the folders __pycache__ beside the source"
        raise RuntimeError(f"what numba keeps compiled is damaged ({error}): delete {where} and start again") from error


def external(name: str, signature: Any) -> Any:
    """The C function of that name, for compiled code to call; `llvmlite.binding.add_symbol` says where it is."""
    return types.ExternalFunction(name, signature)


def sources_of(file: str, *others: str) -> str:
    """A hash of *others*, modules beside *file*: numba looks at the file of a compiled function to see whether that is
    up to date, and not at what it calls."""
    sources = [Path(file).with_name(f"{name}.py").read_bytes() for name in others]
    return sha256(b"".join(sources)).hexdigest()
