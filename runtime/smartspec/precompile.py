"""`python -m smartspec.precompile FOLDER`: all compiled kernels of the runtime, for every level of processors.

For an image: with `SMARTSPEC_KERNELS=FOLDER`, and a `NUMBA_CACHE_DIR` that does not exist yet, a server begins with
them.
"""

import argparse
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from smartspec.native import BFLOAT16, FEATURES, LEVELS, PROCESSOR, chosen, folder_of


def compile_all() -> None:
    """Fill numba's cache: the policy's and the scheduler's loops are compiled at import, attention for each type of
    element, and the operators that run it."""
    # Imported here, in a process of one level.
    from smartspec import policy, scheduling
    from smartspec.execution import native_operators, product_kernel
    from smartspec.execution.attention_kernel import ELEMENTS, kernels

    for package in (policy, scheduling):
        for module in pkgutil.iter_modules(package.__path__):
            import_module(f"{package.__name__}.{module.name}")
    for bits in ELEMENTS:
        kernels(bits)
    native_operators.register()
    if chosen() is BFLOAT16:
        product_kernel.kernel()


def main(argv: Sequence[str] | None = None) -> int:
    """Compile side by side, a process for each level; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m smartspec.precompile", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.absolute()
    code = f"from {__spec__.name} import compile_all; compile_all()"
    levels = LEVELS if platform.machine() == "x86_64" else ()
    targets = [{PROCESSOR: level.processor, FEATURES: level.features} for level in levels] or [{}]
    running = []
    for target in targets:
        # A cache for each: processes that share one lose some of what the others wrote.
        cache = {"NUMBA_CACHE_DIR": str(folder / folder_of(target))}
        running.append(subprocess.Popen([sys.executable, "-c", code], env=os.environ | target | cache))
    statuses = [process.wait() for process in running]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
