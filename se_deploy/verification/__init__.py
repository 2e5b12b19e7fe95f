"""Whether a step computes what it was given: no command hands over a file that nobody compared.

`choose` makes inputs that can show a fault, `expect` the source's answers to them, `verify` the verdict on
what a step made of the source; `keep_right` takes guilty parts of a step back.
"""

from __future__ import annotations

from se_deploy.verification.found import found_by
from se_deploy.verification.mixing import mixed
from se_deploy.verification.probes import Probe, choose, noise
from se_deploy.verification.taking_back import Kept, keep_right
from se_deploy.verification.verdict import (
    CheckInput,
    Expected,
    Failure,
    Verified,
    expect,
    skipped,
    to_schema,
    verify,
)

__all__ = [
    "CheckInput", "Expected", "Failure", "Kept", "Probe", "Verified", "choose", "expect", "found_by",
    "keep_right", "mixed", "noise", "skipped", "to_schema", "verify",
]  # fmt: skip
