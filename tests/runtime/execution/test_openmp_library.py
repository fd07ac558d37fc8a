"""Whose threads compute."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smartspec.execution import openmp_library

WHO = """
import ctypes, os
import smartspec.execution as execution
from smartspec.execution import openmp

class Where(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p)]
    _fields_ += [("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]

where = Where()
ctypes.CDLL(None).dladdr(ctypes.cast(openmp._entry(), ctypes.c_void_p), ctypes.byref(where))
print(execution.OPENMP_LIBRARY, where.file.decode(), os.environ["KMP_BLOCKTIME"], os.environ["GOMP_SPINCOUNT"])
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *program* in a Python that has not seen torch yet."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "KMP", "OMP", "SMARTSPEC"))}
    return subprocess.run([sys.executable, "-c", program], env=clean | environment, text=True, capture_output=True)


def torchs_own() -> Path:
    """The OpenMP library that came with torch."""
    return next((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))


@pytest.mark.skipif(sys.platform != "linux", reason="what is loaded first answers first: so it is on Linux")
def test_a_library_loaded_before_torch_takes_its_place(tmp_path: Path) -> None:
    """Both for torch and for our own kernels, and it waits without holding the cores."""
    other = shutil.copy(torchs_own(), tmp_path / "libother.so")
    done = run(WHO, SMARTSPEC_OPENMP=str(other))
    assert done.stdout.split() == [str(other), str(other), "1", "5000"], done.stderr


def test_torchs_own_computes_unless_another_is_named() -> None:
    """And how it waits is the choice of whoever made one."""
    done = run(WHO, GOMP_SPINCOUNT="7")
    assert done.stdout.split() == ["None", str(torchs_own()), "1", "7"], done.stderr


def test_nothing_is_loaded_beside_torchs_own() -> None:
    """Two pools of threads would fight for the cores."""
    environment = {"SMARTSPEC_OPENMP": str(torchs_own())}
    assert openmp_library.load(environment) is None
    assert list(environment) == ["SMARTSPEC_OPENMP"]


def test_a_library_that_is_asked_for_must_load() -> None:
    """The variable is named, and what is wrong with it."""
    done = run(
        "import sys; from smartspec.__main__ import main; sys.exit(main(['serve', '/no/such/model', '--port', '0']))",
        SMARTSPEC_OPENMP="/no/such/lib.so",
    )
    assert done.returncode == 2
    assert "SMARTSPEC_OPENMP: /no/such/lib.so: cannot open" in done.stderr
    assert "Traceback" not in done.stderr
