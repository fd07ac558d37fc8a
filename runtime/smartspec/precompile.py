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

LEVEL = "NUMBA_CPU_NAME"


def compile_all() -> None:
    """Fill numba's cache: the policy's loops are compiled at import, attention for each type of element."""
    from smartspec import policy
    from smartspec.execution.attention_kernel import ELEMENTS, kernels

    for module in pkgutil.iter_modules(policy.__path__):
        import_module(f"{policy.__name__}.{module.name}")
    for bits in ELEMENTS:
        kernels(bits)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile side by side, a process for each level; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m smartspec.precompile", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.absolute()
    from smartspec.native import LEVELS

    code = f"from {__spec__.name} import compile_all; compile_all()"
    at_home = {name: value for name, value in os.environ.items() if name not in (LEVEL, "NUMBA_CPU_FEATURES")}
    environments = [{LEVEL: level} for level in LEVELS] if platform.machine() == "x86_64" else [{}]
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=at_home | {"NUMBA_CACHE_DIR": str(folder)} | environment)
        for environment in environments
    ]
    statuses = [process.wait() for process in running]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
