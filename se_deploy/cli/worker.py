"""`worker`: this machine as a node of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli.parameters import command, defaulted, group, optional, repeated, required, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import HostPort, Tag
from se_deploy.options import CLIENT_PORT

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given
    from se_deploy.commands.worker import WorkerOptions

_address = required("--address", HostPort(), "The cluster's first node; with --head: where to listen.")
_head = switch("--head", "Be the first node of a cluster; the others join at --address.")
_tags = repeated("--tag tags", Tag(), "A device to work for besides what is found, as orin-nano; repeatable.")
_cpus = optional("--cpus", click.IntRange(min=1), "Steps at a time; default: one for each processor.")
_client_port = defaulted(
    "--client-port",
    click.IntRange(1, 65535),
    CLIENT_PORT,
    "Where the first node lets in --on ray://HOST:PORT.",
)


def _options(given: Given) -> WorkerOptions:
    from se_deploy.commands.worker import WorkerOptions

    host, port = _address.of(given)
    return WorkerOptions(
        host, port, _head.of(given), _tags.of(given), _cpus.of(given), _client_port.of(given)
    )


@command(
    "worker",
    group("chosen", _options, _address, _head, _tags, _cpus, _client_port, section=Section.CLUSTER),
)
def worker(chosen: WorkerOptions) -> None:
    """Work for sweeps: start a Ray node that offers what `doctor` finds, until it is interrupted.

    Ray runs the code that it is sent: only inside a network that you trust.

    \b
    Example:
        se-deploy worker --head --address 192.168.7.1:6379
        se-deploy worker --address 192.168.7.1:6379
    """
    from se_deploy.commands import worker as verb
    from se_deploy.commands.doctor import doctor

    plan = verb.plan(chosen, doctor())
    for exposed in plan.exposed:
        click.echo(f"warning: {exposed.text}", err=True)
    click.echo(f"devices and compilers: {', '.join(plan.tags) or 'none'}; GPUs: {plan.gpus}", err=True)
    verb.serve(plan.words, plan.environment)
