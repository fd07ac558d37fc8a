"""Which OpenMP library computes, and how its threads wait.

Between two parallel regions a waiting thread spins, then sleeps. libgomp, which comes with torch, is told to spin for
microseconds only: whoever shares the cores (another replica, a client on the same machine) waits while it spins, and a
container pays for it from its CPU quota. With every core busy a step took ten to fifty times as long otherwise.

LLVM's library wakes its threads sooner, and its spinning threads give way to others of the process, such as the event
loop that sends the last step's tokens. Where a server has its cores to itself it makes steps faster, where cores
are shared slower. Hence it is for whoever runs the server to choose.
"""

import ctypes
import sys
from collections.abc import MutableMapping

from smartspec.config import ConfigError

VARIABLE = "SMARTSPEC_OPENMP"


def load(environment: MutableMapping[str, str]) -> str | None:
    """Set how threads wait, and load the library that `SMARTSPEC_OPENMP` names, a path or a file that the loader finds.

    Only before torch is loaded: after that it is too late for both. `GOMP_parallel` and its like are entry points of
    either library, and torch finds them by name, first among what was loaded globally, as it would by LD_PRELOAD.
    Whoever has set `OMP_WAIT_POLICY`, `KMP_BLOCKTIME` (milliseconds) or `GOMP_SPINCOUNT` (turns) keeps it.
    Returns the name, or None for torch's own. Raises ConfigError for a name that does not load.
    """
    if "torch" in sys.modules:
        return None
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "5000")
        environment.setdefault("KMP_BLOCKTIME", "1")  # with 0 a thread sleeps within a step: 38 ms instead of 15
    name = environment.get(VARIABLE)
    if not name:
        return None
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from error
    return name
