"""Tensors: the only part of the runtime that knows torch."""

import os

from smartspec.execution import compile_cache, openmp_library

compile_cache.settle(os.environ)  # before torch is asked for it
OPENMP_LIBRARY = openmp_library.load(os.environ)  # before torch is; None: its own
