"""Imported before NumPy: a process that is to fork has no threads of its own, and the trainings of a drill compute on one core each."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
