"""Draw the top of a run's report as docs/report.png, in a headless Chromium: the picture in the README.

    se-deploy demo -o out && python scripts/report_picture.py out/report.html

The picture has 256 colours and at most 300 KiB, so that it may live in the repository.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1320, 930  # pixels
MOST_BYTES = 300 * 1024


def screenshot(page: Path, picture: Path, *, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write the first screen of an HTML page as a PNG. Raises: SystemExit where no browser is on PATH."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--hide-scrollbars", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
                f"--screenshot={shot}", page.resolve().as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(shot) as image:
            image.convert("RGB").quantize(256).save(picture, optimize=True)


def main() -> None:
    """Draw the report that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="report.html of a run")
    parser.add_argument("-o", "--output", type=Path, default=DOCS / "report.png")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--height", type=int, default=HEIGHT)
    given = parser.parse_args()
    screenshot(given.report, given.output, width=given.width, height=given.height)
    size = given.output.stat().st_size
    print(f"{given.output}: {size / 1024:.0f} KiB")
    if size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES // 1024} KiB: choose fewer pixels")


if __name__ == "__main__":
    main()
