"""Who works on what one network's jobs can be spread over."""

from __future__ import annotations

from se_deploy.cli.parameters import defaulted
from se_deploy.cli.sections import Section
from se_deploy.cli.types import Where

on = defaulted(
    "--on", Where(), "local", "Who works: local, ray on a node, or ray://HOST:PORT.", section=Section.CLUSTER
)
