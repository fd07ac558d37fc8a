"""Running a compiled function on torch's own OpenMP threads.

A second pool of threads beside torch's would fight it for the cores: OpenMP threads spin for a while after each
operation, and there is one attention call after every few of torch's. `GOMP_parallel` is the entry that every compiled
`#pragma omp parallel` calls; calling it in the library that torch loaded reuses torch's team.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch  # noqa: F401 - brings the library, where none was loaded before it


@cache
def _entry() -> Callable[[int, int, int, int], None] | None:
    try:
        function = ctypes.CDLL(None).GOMP_parallel  # as torch itself finds it: by name, in the order of loading
    except (OSError, AttributeError):
        return None
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return function


def address() -> int | None:
    """Where `GOMP_parallel` is; None without an OpenMP library in the process."""
    entry: Any = _entry()
    return None if entry is None else ctypes.cast(entry, ctypes.c_void_p).value


@cache
def _serial(function: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)


def run(function: int, argument: int, num_threads: int) -> None:
    """Call the C function at address *function* with *argument* on *num_threads* threads at once; return when all have.

    Without an OpenMP library in the process (or with one thread) it runs once, here. The GIL is released meanwhile.
    """
    parallel = _entry() if num_threads > 1 else None
    if parallel is None:
        _serial(function)(argument)
    else:
        parallel(function, argument, num_threads, 0)
