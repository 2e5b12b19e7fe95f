"""Options that several commands share: single flags, and groups that reach a command as one dataclass."""

from __future__ import annotations

from se_deploy.cli.options.calibration import calibration
from se_deploy.cli.options.cluster import on
from se_deploy.cli.options.data import sampled, samples, seed, skip_unreadable
from se_deploy.cli.options.host import host, host_cpu, host_engine, plugins, threads
from se_deploy.cli.options.measuring import by_name, kinds, limits, run_timing, sized_timing
from se_deploy.cli.options.network import (
    fed_network,
    image,
    max_shapes,
    min_shapes,
    of_export,
    opt_shapes,
    timed_network,
    tuned,
    written_network,
)
from se_deploy.cli.options.reporting import reporter
from se_deploy.cli.options.target import exported_target, precision, rewritten_target, target
from se_deploy.cli.options.written import (
    demo_folder,
    dry_run,
    junit,
    output_engine,
    output_folder,
    output_onnx,
    output_page,
    overwrite,
    verify,
)

__all__ = [
    "by_name",
    "calibration",
    "demo_folder",
    "dry_run",
    "exported_target",
    "fed_network",
    "host",
    "host_cpu",
    "host_engine",
    "image",
    "junit",
    "kinds",
    "limits",
    "max_shapes",
    "min_shapes",
    "of_export",
    "on",
    "opt_shapes",
    "output_engine",
    "output_folder",
    "output_onnx",
    "output_page",
    "overwrite",
    "plugins",
    "precision",
    "reporter",
    "rewritten_target",
    "run_timing",
    "sampled",
    "samples",
    "seed",
    "sized_timing",
    "skip_unreadable",
    "target",
    "threads",
    "timed_network",
    "tuned",
    "verify",
    "written_network",
]
