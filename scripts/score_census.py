"""Score the census against graphs whose right answer is known: recall and precision per exporter.

    python scripts/score_census.py DIR [--only TEXT] [-v]

DIR holds NAME.onnx files, each with a NAME.truth.json beside it: `blocks`, a list of objects with `role`
("se", "like" or "trap"), `gate_mul` (the Mul that applies the gate) and `gate_mul_output`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from se_deploy import graph, se_blocks


def score(path: Path, *, verbose: bool) -> Counter[str]:
    """Compare one file with its sidecar; the counter holds found, missed, wrong, traps and files."""
    truth = json.loads(path.with_name(f"{path.name.removesuffix('.onnx')}.truth.json").read_text())
    start = time.perf_counter()
    census = se_blocks.detect(graph.load(path))
    seconds = time.perf_counter() - start
    said = {block.output: block for block in census.blocks}
    roles = {b["gate_mul_output"]: b["role"] for b in truth["blocks"] if b.get("gate_mul")}
    unlocated = sum(b["role"] == "se" and not b.get("gate_mul") for b in truth["blocks"])
    wanted = {output for output, role in roles.items() if role == "se"}
    claimed = {block.output for block in census.se}
    missed, wrong = wanted - claimed, claimed - wanted
    traps = {o for o in said if roles.get(o) == "trap"}
    nodes = {b["gate_mul_output"]: b["gate_mul"] for b in truth["blocks"] if b.get("gate_mul")}
    misnamed = {o for o in claimed & wanted if said[o].scale_node != nodes[o]}
    reasons = {n.output: n.reason for n in census.rejected}
    if verbose or missed or wrong or traps or misnamed or unlocated:
        print(
            f"{path}: {len(claimed & wanted)} of {len(wanted)}, {seconds:.2f} s, "
            f"{Counter(b.kind for b in census.blocks)}, unlocated {unlocated}"
        )
    for output in sorted(missed):
        print(f"  missed {output}: {said[output].kind if output in said else reasons.get(output)}")
    for output in sorted(wrong):
        print(f"  wrong  {output}: {roles.get(output)} called {said[output].kind} {said[output].spelling}")
    for output in sorted(traps):
        print(f"  trap   {output}: {said[output].kind}")
    for output in sorted(misnamed):
        print(f"  node   {output}: {said[output].scale_node} is {nodes[output]}")
    return Counter(
        found=len(claimed & wanted),
        missed=len(missed),
        wrong=len(wrong),
        traps=len(traps | misnamed),
        files=1,
    )


def main() -> int:
    """Score every file under a folder; exits with 1 unless recall and precision are 1 throughout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="take paths that hold this text")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every file")
    args = parser.parse_args()
    totals: dict[str, Counter[str]] = {}
    for sidecar in sorted(args.folder.rglob("*.truth.json")):
        path = sidecar.with_name(sidecar.name.replace(".truth.json", ".onnx"))
        if args.only not in str(path) or not path.exists():
            continue
        exporter = sidecar.parent.name + ("+sim" if ".sim." in sidecar.name else "")
        totals.setdefault(exporter, Counter()).update(score(path, verbose=args.verbose))
    print(f"{'exporter':24} files blocks  recall precision")
    perfect = True
    for exporter, t in sorted(totals.items()):
        recall = t["found"] / (t["found"] + t["missed"]) if t["found"] + t["missed"] else 1.0
        precision = t["found"] / (t["found"] + t["wrong"]) if t["found"] + t["wrong"] else 1.0
        print(f"{exporter:24} {t['files']:5} {t['found'] + t['missed']:6} {recall:7.4f} {precision:9.4f}")
        perfect &= not (t["missed"] or t["wrong"] or t["traps"])
    return 0 if perfect else 1


if __name__ == "__main__":
    sys.exit(main())
