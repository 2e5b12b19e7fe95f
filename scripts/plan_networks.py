"""Export every network that ships, count its SE blocks and plan it in FP16 with TensorRT-RTX; needs no GPU.

    python scripts/plan_networks.py [--only TEXT] [--plans 12] [--target sm86] [--output FILE.json]

One line a network: parameters, multiply-accumulates, blocks found of those that PyTorch has, how many the
compiler fuses, its kernels. Exits with 1 where a block is missed or a network cannot be planned.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import fusion, networks, se_blocks
from se_deploy.backends import registry
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.commands import lowering
from se_deploy.errors import SeDeployError
from se_deploy.frontend import torch_export, zoo
from se_deploy.options import CalibrationOptions, RewriteOptions
from se_deploy.passes import canonical
from se_deploy.targets import resolve_target

if TYPE_CHECKING:
    from se_deploy.protocols import Planner


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one network."""

    name: str
    params: int
    macs: int
    blocks: int  # that the network has
    found: int  # by the census of the exported graph
    judged: int  # of them SE blocks: scSE and other attention get no verdict
    fused: int
    split: int
    fallback: int
    kernels: int
    exporter: str
    seconds: float


def row(name: str, opset: int, plans: int, planner: Planner) -> Row:
    """Take one network, with random weights and a free batch, from PyTorch to an FP16 plan.

    `plans`: how many plans the search for the target's rewrites may ask for; 0 plans the canonical form.
    """
    start = time.perf_counter()
    facts = networks.describe(name)
    exported = torch_export.export(zoo.load(f"se_deploy:{name}", input_size=facts.input_size), opset=opset)
    made = canonical.canonicalize(exported.model).model
    low = lowering.lowered(
        made,
        precision="fp16",
        to=lowering.Destination(
            registry.get("tensorrt-rtx"),
            (),
            RewriteOptions(search_plans=plans) if plans else RewriteOptions(names=()),
        ),
        calibration=CalibrationOptions(),
        planner=planner,
    )
    plan = planner.plan(low.model)
    said = [
        verdict.verdict
        for verdict in fusion.verdicts(plan, low.blocks, low.model, registry.get(plan.runtime).form().fusion)
    ]
    return Row(
        name=name,
        params=facts.params,
        macs=facts.macs,
        blocks=facts.blocks,
        found=len(se_blocks.detect(made).blocks),
        judged=len(low.blocks),
        fused=said.count("fused"),
        split=said.count("split"),
        fallback=said.count("fallback"),
        kernels=len(plan.layers),
        exporter=exported.exporter,
        seconds=round(time.perf_counter() - start, 1),
    )


def main() -> int:
    """Print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--plans", type=int, default=12, help="for the search; 0: the canonical form")
    parser.add_argument("--target", default="sm86")
    parser.add_argument("--opset", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    planner = start_planner("tensorrt-rtx", resolve_target(arguments.target))
    rows, failed = [], []
    print(f"{'network':22} {'M params':>8} {'GMACs':>7} {'blocks':>7} {'fused':>6} {'kernels':>8} {'s':>6}")
    for name in networks.NETWORKS:
        if arguments.only not in name:
            continue
        try:
            r = row(name, arguments.opset, arguments.plans, planner)
        except SeDeployError as e:
            print(f"{name:22} {e.message}")
            failed.append(name)
            continue
        rows.append(r)
        print(
            f"{name:22} {r.params / 1e6:8.2f} {r.macs / 1e9:7.3f} {f'{r.found}/{r.blocks}':>7} {r.fused:6d} "
            f"{r.kernels:8d} {r.seconds:6.1f}",
            flush=True,
        )
    planner.close()
    if arguments.output:
        arguments.output.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n")
    return 1 if failed or any(r.found != r.blocks for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
