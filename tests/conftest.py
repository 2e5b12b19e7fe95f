"""The same start for every test process, however the tests were started."""

import os
import signal

# Read when torch and numpy's BLAS are first loaded: workers side by side would fight for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores SIGINT for what it starts in the background, and children inherit that: tests of interrupts,
# here and in processes of their own, would wait for what never comes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
