"""The command line: parse, call one function, render, exit code; the only place that prints.

Exit codes: 0 done, 1 an error the user can act on, 2 usage, 3 a gate failed, 130 interrupted.
"""

from __future__ import annotations

from se_deploy.cli.main import main

__all__ = ["main"]
