"""The pages in a real browser; skipped, and said why, where there is none."""

import shutil
import subprocess

import needs
import pytest
import sample

from se_deploy import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(
        BROWSER is None, reason="none of chromium, chromium-browser, google-chrome is on PATH"
    ),
    needs.PLOTS,
]


def rendered(page, tmp_path, *flags):
    """The page's elements after the browser has read it, and what it logged."""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_report_opens_from_disk(tmp_path):
    dom, console = rendered(report.html(sample.typed(sample.report())), tmp_path)
    assert "<title>se-deploy: se_deploy:se_resnet20</title>" in dom
    assert dom.count("<svg") == 5
    assert dom.count("<section") == 8
    assert dom.rstrip().endswith("</html>")
    assert console == []


def test_two_runs_side_by_side_open_from_disk(tmp_path):
    dom, console = rendered(
        report.compare_html([(name, sample.typed(sample.report())) for name in "ab"]),
        tmp_path,
        "--window-size=420,900",
    )
    assert dom.count("<svg") == 2
    assert console == []
