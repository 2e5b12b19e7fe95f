"""`schema`: the JSON Schema of what the tool prints and writes."""

from __future__ import annotations

import click

from se_deploy.cli.parameters import argument, command
from se_deploy.schema import OBJECTS


@command("schema", argument("name", click.Choice(list(OBJECTS)), metavar="COMMAND"))
def schema(name: str) -> None:
    """Print the JSON Schema of what COMMAND prints with --json.

    COMMAND is also a kind of file (manifest, calibration-cache, rewrites, input, config for se-deploy.toml),
    or error, which every command prints where it fails.

    \b
    Example:
        se-deploy schema export > export.schema.json
    """
    import json

    from se_deploy.schema import json_schema

    click.echo(json.dumps(json_schema(name), indent=2))
