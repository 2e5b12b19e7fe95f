"""What the tool says of itself and of the machine: `doctor`, `networks`, an error."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from se_deploy.schema.common import Count, Dims, Result


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that `doctor` looked at; `fix` is a command, where something can be installed."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    fix: str | None = None


class Doctor(Result, frozen=True, kw_only=True, tag="se-deploy/doctor/1"):
    """What this machine can build and run."""

    checks: tuple[Finding, ...]
    can_build: tuple[str, ...]
    can_run: tuple[str, ...]
    gpus: Count = 0  # NVIDIA devices that can be used


class ShippedNetwork(Struct, frozen=True, kw_only=True):
    """A network that ships; multiply-accumulates for one image of `input_size` (C, H, W)."""

    name: str
    params: Count
    macs: Count
    blocks: Count
    input_size: Dims
    reference: str


class Networks(Result, frozen=True, kw_only=True, tag="se-deploy/networks/1"):
    """The networks that ship."""

    networks: tuple[ShippedNetwork, ...]


class ErrorFields(Struct, frozen=True, kw_only=True):
    """What went wrong, and what to do about it."""

    kind: str
    message: str
    hint: str


class Error(Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/error/1"):
    """What any command prints with --json where it fails."""

    error: ErrorFields
