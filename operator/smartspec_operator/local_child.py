"""The first instant of a replica's process: tie its life to its parent's, then become the command.

A module of its own, run before the command, because `preexec_fn` is unsafe in a process with threads. Standard library
only: it must cost next to nothing.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends; Linux only, elsewhere nothing.

    The setting outlives `exec`. SIGKILL, since nobody is left to wait for a drain or to pass its answers on.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
