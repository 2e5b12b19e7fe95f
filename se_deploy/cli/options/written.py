"""What a command writes, and whether it writes at all."""

from __future__ import annotations

from pathlib import Path

from se_deploy.cli.parameters import defaulted, on_off, optional, required, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import OUT_DIR, OUT_FILE

output_onnx = required("-o --output", OUT_FILE, "ONNX file to write.", section=Section.OUTPUT)
output_engine = required("-o --output", OUT_FILE, "Engine to write.", section=Section.OUTPUT)
output_folder = required("-o --output", OUT_DIR, "Folder to fill.", section=Section.OUTPUT)

output_page = optional(
    "-o --output", OUT_FILE, "Write the comparison as one HTML page.", section=Section.OUTPUT
)
demo_folder = defaulted("-o --output", OUT_DIR, Path("out"), "Folder to fill.", section=Section.OUTPUT)
overwrite = switch("--overwrite", "Replace output files that exist.", section=Section.OUTPUT)
verify = on_off(
    "--verify/--no-verify",
    "Compare what is written with what was given; without it the result says so.",
    section=Section.OUTPUT,
)
dry_run = switch(
    "--dry-run", "Check the arguments, say what would be done, and write nothing.", section=Section.OUTPUT
)
junit = optional("--junit", OUT_FILE, "Write the verdicts as JUnit XML.", section=Section.OUTPUT)
