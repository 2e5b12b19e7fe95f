"""Values that several verbs return, as the parts of the JSON objects that they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from msgspec import convert

from se_deploy.schema import common, results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.passes.search import SearchResult
    from se_deploy.quantization.chain import Chain
    from se_deploy.quantization.fp16_ranges import KeptFp32
    from se_deploy.se_blocks import Census, SEBlock


class CensusKeys(TypedDict):
    """The keys of a census in the objects of `export` and `inspect`."""

    blocks: tuple[common.Block, ...]
    rejected: tuple[common.Rejected, ...]


class Fp16Keys(TypedDict):
    """The keys of what FP16 cannot hold, in the objects of verbs that write FP16."""

    kept_fp32: tuple[common.KeptNode, ...]
    unchecked: tuple[str, ...]
    rounding: str | None


class SearchKeys(TypedDict):
    """The keys of a search for rewrites in the objects of `export` and `build-engine`."""

    waterfall: tuple[common.WaterfallStep, ...]
    refused: tuple[tuple[str, str, str], ...]


def block(found: SEBlock) -> common.Block:
    """Return one block of the census."""
    return convert(found, common.Block, from_attributes=True)


def census(found: Census) -> CensusKeys:
    """Return `blocks` and `rejected`."""
    return {
        "blocks": tuple(map(block, found.blocks)),
        "rejected": tuple(convert(no, common.Rejected, from_attributes=True) for no in found.rejected),
    }


def search(found: SearchResult | None) -> SearchKeys:
    """Return the planned cost after each rewrite, the graph as given first, and what was not possible."""
    if found is None:
        return {"waterfall": (), "refused": ()}
    states = []
    if found.baseline is not None:
        states = [("as given", (), found.baseline), *((s.rewrite, s.sites, s.after) for s in found.steps)]
    return {
        "waterfall": tuple(
            common.WaterfallStep(
                rewrite=name,
                block=", ".join(sites) or None,
                kernels=cost.kernels,
                activation_bytes=cost.activation_bytes,
            )
            for name, sites, cost in states
        ),
        "refused": tuple((no.rewrite, no.site, no.reason) for no in found.refused),
    }


def fp16(kept: Sequence[KeptFp32], unchecked: tuple[str, ...], rounding: str | None) -> Fp16Keys:
    """Return what stays in FP32 within FP16, what could not be checked, and where numbers were rounded."""
    nodes = tuple(convert(one, common.KeptNode, from_attributes=True) for one in kept)
    return {"kept_fp32": nodes, "unchecked": unchecked, "rounding": rounding}


def chain(found: Chain | None) -> results.Chain | None:
    """Return the chain of INT8 layers; None where nothing is quantized."""
    if found is None:
        return None
    return results.Chain(
        int8_layers=len(found.int8),
        unbroken=found.unbroken,
        breaks=tuple(
            results.ChainBreak(
                node=one.node,
                cause=one.cause,
                source=one.rule.source,
                rule=one.rule.name,
                says=one.rule.says,
                evidence=one.rule.evidence,
                layers=one.layers,
            )
            for one in found.breaks
        ),
        ends=tuple(convert(one, results.ChainEnd, from_attributes=True) for one in found.ends),
        float_layers=found.in_float,
        unbroken_fraction=found.unbroken_fraction,
        int8_macs_fraction=found.int8_macs_fraction,
        int8_bytes_fraction=found.int8_bytes_fraction,
    )
