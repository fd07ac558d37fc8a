"""Tensors: the only part of the runtime that knows torch."""

import os

# OpenMP threads wait for work by spinning, for milliseconds unless told otherwise. Whoever shares the cores then waits
# too (another replica, a client on the same machine), and a container pays for it from its CPU quota: with every core
# busy a step took ten to fifty times as long. Some microseconds bridge the gaps inside a step. This must be in the
# environment before torch loads its OpenMP library, hence here; who has set a policy keeps it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
