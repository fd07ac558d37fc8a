"""Compiled functions on torch's own threads."""

import ctypes
import threading

import pytest

from smartspec.execution import openmp


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_function_runs_once_on_each_thread(num_threads: int) -> None:
    """With the argument given, and all done when the call returns."""
    seen: list[tuple[int, int]] = []
    lock = threading.Lock()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def note(argument: int) -> None:
        with lock:
            seen.append((argument, threading.get_native_id()))

    address = ctypes.cast(note, ctypes.c_void_p).value
    assert address is not None
    openmp.run(address, 42, num_threads)
    assert [argument for argument, _ in seen] == [42] * len(seen)
    assert len({thread for _, thread in seen}) == len(seen) == num_threads
