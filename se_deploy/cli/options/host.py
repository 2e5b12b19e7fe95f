"""What of this machine a command uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli.parameters import defaulted, group, repeated
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE
from se_deploy.options import DEVICES, HostOptions

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given

threads = defaulted(
    "--threads", click.IntRange(min=0), 0, "CPU threads; 0: the runtime's own choice.", section=Section.HOST
)

_device = defaulted("--device", click.Choice(DEVICES), "cpu", "Where PyTorch and ONNX Runtime run.")


plugins = repeated(
    "--plugin plugins", IN_FILE, "Shared library with operators that an engine has; repeatable."
)


def _host(given: Given) -> HostOptions:
    return HostOptions(threads.of(given), _device.of(given), plugins.of(given))


host = group("host", _host, threads, _device, plugins, section=Section.HOST)


def _host_cpu(given: Given) -> HostOptions:
    return HostOptions(threads.of(given))


host_cpu = group("host", _host_cpu, threads, section=Section.HOST)
"""Of a command that runs on the CPU only."""

host_engine = group(
    "host",
    lambda given: HostOptions(threads.of(given), plugins=plugins.of(given)),
    threads,
    plugins,
    section=Section.HOST,
)
"""Of a command that runs on the CPU, or an engine on its GPU."""
