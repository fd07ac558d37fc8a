"""Running a compiled function on torch's own OpenMP threads.

A second pool of threads beside torch's would fight it for the cores: OpenMP threads spin for a while after each
operation, and there is one attention call after every few of torch's. `GOMP_parallel` is the entry that every compiled
`#pragma omp parallel` calls; calling it in the library that torch loaded reuses torch's team.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch


@cache
def _entry() -> Callable[[int, int, int, int], None] | None:
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return None
    names = ("libgomp", "libiomp", "libomp")
    paths = {line.split()[-1] for line in loaded.splitlines() if line.rpartition("/")[2].startswith(names)}
    home = str(Path(torch.__file__).parent)  # its neighbours are torch's too: wheels differ in where they put it
    for path in sorted(paths, key=lambda path: not path.startswith(home)):
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.restype = None
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        return function
    return None


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
