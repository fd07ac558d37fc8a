"""Tensors: the only part of the runtime that knows torch."""

import os

from smartspec.execution import openmp_library

OPENMP_LIBRARY = openmp_library.load(os.environ)  # before torch is; None: its own
