"""Print which GPU kernels the graphs that `scripts/on_gpu --step rewrites` times spend their time in.

    python scripts/gpu_kernels.py [seresnet18 rexnet_100] [--most 7]

Each form of a network as PyTorch runs it at batch 1, channels-last, from PyTorch's profiler: the sum of all
kernels' time per call, and the slowest kernels. Needs an NVIDIA GPU and PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from graph_module import Module, load
from torch.profiler import ProfilerActivity, profile

GRAPHS = Path(__file__).resolve().parent / "gpu_graphs"
FORMS = ("fp16", "ours.bdynamic", "ours.b1")
WARM_UP, CALLS = 5, 10


def kernels(network: str, form: str) -> list[tuple[str, float, float]]:
    """Return the kernels of one call: name, microseconds and how many, the slowest first."""
    graph = load(GRAPHS / f"{network}.{form}.json.gz")
    module = Module(graph).to("cuda").eval().channels_last()
    shape = [1, *graph["inputs"][0]["shape"][1:]]
    x = torch.randn(shape, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(WARM_UP):
            module(x)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(CALLS):
                module(x)
            torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.device_time_total)
    return [(event.key, event.device_time_total / CALLS, event.count / CALLS) for event in events]


def main() -> int:
    """Print the kernels of every form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["seresnet18", "rexnet_100"])
    parser.add_argument("--most", type=int, default=7, help="kernels that are printed of each form")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU here: run it where one is", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = True
    for network in options.networks:
        for form in FORMS:
            rows = kernels(network, form)
            total, count = sum(us for _, us, _ in rows), sum(n for _, _, n in rows)
            print(f"{network} {form}: {total:.0f} us in {count:.0f} kernels")
            for name, us, times in rows[: options.most]:
                print(f"  {us:8.1f} us  x{times:.0f}  {name[:100]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
