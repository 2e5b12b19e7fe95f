"""One thread for each test process: workers side by side would otherwise fight for the same cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy's BLAS are first loaded
