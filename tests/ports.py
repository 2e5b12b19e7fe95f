"""Ports for servers that a test starts."""

from __future__ import annotations

import contextlib
import random
import socket


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nothing listens on, and that the system gives nobody who asks it for any port.

    Between this and the server's start other processes ask for some: those of Ray itself, other tests.
    """
    found: list[int] = []
    for port in random.sample(range(24000, 32000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind((host, port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"of 100 ports {len(found)} are free")
