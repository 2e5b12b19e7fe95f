"""`parity`, `profile`, `check`: numbers are measured and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_deploy.cli import options, talk


@click.command()
@click.argument("reference", type=options.Model())
@click.argument("candidates", type=options.IN_FILE, nargs=-1, required=True)
@click.option("--data", type=options.IN_PATH, required=True, help="Images, .npy/.npz, MNIST IDX, ...")
@click.option("--samples", type=click.IntRange(min=1), help="Use at most so many of them.")
@options.tolerance
@click.option("--min-cosine", type=float, help="Smallest cosine between outputs.")
@click.option("--min-top1", type=float, help="Smallest share of equal answers, between 0 and 1.")
@click.option("--junit", type=options.OUT_FILE, help="Write the verdicts as JUnit XML.")
@click.option("--skip-unreadable", is_flag=True, help="Count unreadable files instead of failing.")
@options.network
@options.image
@options.threads
@options.device
@options.seed
@options.overwrite
@options.talk
def parity(reference: str, candidates: tuple[Path, ...], **params: Any) -> None:
    """Compare each of CANDIDATES with REFERENCE on the same data; exits with 3 where one fails.

    REFERENCE is a network specification or an ONNX file, CANDIDATES are ONNX files and engines. Without
    --preset each candidate is judged by the tolerances of its own precision.

    \b
    Example:
        se-deploy parity timm:seresnet50 net.onnx net.fp16.onnx --pretrained --data photos/
    """
    from se_deploy import files, report, schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import parity as verb

    say = talk.of(params)
    if params["junit"]:
        files.claim(params["junit"], overwrite=params["overwrite"])
    with say.progress() as progress:
        result = verb.parity(
            reference,
            candidates,
            data=params["data"],
            limits=verb.Limits(
                params["preset"], params["atol"], params["rtol"], params["min_cosine"], params["min_top1"]
            ),
            samples=params["samples"],
            skip_unreadable=params["skip_unreadable"],
            threads=params["threads"],
            device=params["device"],
            network=arguments.network(params),
            image=arguments.image(params),
            seed=params["seed"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    if params["junit"]:
        files.write_text(params["junit"], report.junit(payload))
    failed = [f"{c.path}: {text}" for c in result.candidates for text in c.failures]
    say.finish(payload, warnings=result.warnings, table=render.parity(payload), failed=failed)


@click.command()
@click.argument("files", type=options.IN_FILE, nargs=-1, required=True)
@click.option("--reference", type=options.Model(), help="A network to compare with, as timm:NAME.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images a call.")
@click.option("--max-p50-ms", type=float, help="With --gate latency: the slowest median that passes.")
@click.option("--min-speedup", type=float, help="With --gate latency: the least speed-up that passes.")
@options.network
@options.opt_shapes
@options.timing
@options.threads
@options.device
@options.gate
@options.seed
@options.talk
def profile(files: tuple[Path, ...], **params: Any) -> None:
    """Measure the latency of ONNX files and engines, and the speed-up over PyTorch.

    An ONNX file runs in ONNX Runtime on the CPU, an engine on its GPU. Warm-up, duration and percentiles
    are those of trtexec, so that figures can be compared.

    \b
    Example:
        se-deploy profile net.onnx --reference timm:seresnet50 --threads 1
    """
    from se_deploy import schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import profile as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.profile(
            files,
            reference=params["reference"],
            batch=params["batch_size"],
            threads=params["threads"],
            device=params["device"],
            warmup_ms=params["warmup_ms"],
            duration_s=params["duration_s"],
            iterations=params["iterations"],
            network=arguments.network(params),
            image=arguments.image(params),
            sizes=dict(params["opt_shapes"]),
            seed=params["seed"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    slow = result.failures(max_p50_ms=params["max_p50_ms"], min_speedup=params["min_speedup"])
    failed = arguments.failed_gates(params, {"latency": slow})
    say.finish(payload, warnings=result.warnings, table=render.profile(payload), failed=failed)


@click.command()
@click.option(
    "--config",
    type=options.IN_FILE,
    help="Default: se-deploy.toml, or [tool.se-deploy] of pyproject.toml, in this folder.",
)
@click.option("--junit", type=options.OUT_FILE, help="Write the verdicts as JUnit XML.")
@options.overwrite
@options.talk
def check(config: Path | None, **params: Any) -> None:
    """Judge every gate of the configuration: parity, fusion, precision, latency; exits with 3 if one fails.

    \b
    Example of se-deploy.toml:
        [parity]                  # also: atol, rtol, min_cosine, samples, checkpoint, model_args, ...
        reference = "timm:seresnet50"
        candidates = ["net.onnx", "net.engine"]
        data = "photos"
        min_top1 = 0.99
        [fusion]                  # also: runtime, target
        files = ["net.onnx"]
        allow_split = 0
        [precision]
        files = {"net.engine" = "fp16"}
        [latency]                 # also: threads, batch, duration_s
        files = ["net.onnx"]
        reference = "timm:seresnet50"
        min_speedup = 1.2         # or max_p50_ms
    \b
    Sections repeat as [[parity]]; paths are relative to the file.
    \b
    Example:
        se-deploy check --junit verdicts.xml
    """
    from se_deploy import files, report, schema
    from se_deploy.cli import render_use
    from se_deploy.commands import check as verb

    say = talk.of(params)
    if params["junit"]:
        files.claim(params["junit"], overwrite=params["overwrite"])
    gates = verb.read(config)
    with say.progress() as progress:
        result = verb.check(gates, progress=progress)
    payload = schema.builtins(verb.to_schema(result))
    if params["junit"]:
        files.write_text(params["junit"], report.junit(payload))
    say.finish(payload, warnings=result.warnings, table=render_use.checked(payload), failed=result.failures)
