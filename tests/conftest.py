"""The same start for every test process, however the tests were started."""

import os
import re
import signal

import pytest

# Read when torch and numpy's BLAS are first loaded: workers side by side would fight for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores SIGINT for what it starts in the background, and children inherit that: tests of interrupts,
# here and in processes of their own, would wait for what never comes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Refuse tests that have another name in each process: workers side by side would not find them."""
    named = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]{6}", item.nodeid)]
    if named:
        raise pytest.UsageError(f"a parameter needs an id: {named[0]}")
