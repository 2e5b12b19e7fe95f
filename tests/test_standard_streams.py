"""Every way out of a command is one sentence and an exit code, whatever its output is connected to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import use_graphs

COMMAND = [sys.executable, "-c", "from se_deploy.cli import main; main()"]


def shell(line, folder):
    command = f'{sys.executable} -c "{COMMAND[2]}"'
    return subprocess.run(
        ["bash", "-c", line.replace("se-deploy", command)], cwd=folder, capture_output=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("se-deploy schema run >/dev/full", b"error: the system refused: No space left on device"),
        ("se-deploy schema run >&-", b"error: stdout is closed"),
        ("se-deploy schema run 2>&-", b"error: stderr is closed"),
        ("se-deploy export net.onnx -o $(printf 'x%.0s' {1..300}).onnx", b"File name too long"),
        ("se-deploy export net.onnx -o /dev/null --overwrite", b"is a device"),
        (
            "se-deploy quantize net.onnx -o out.onnx --calib-data net.onnx --calib-cache /proc/x/c.json",
            b"/proc/x",
        ),
        ("mkfifo p.onnx; se-deploy inspect p.onnx", b"'p.onnx' is a pipe, not a file"),
    ],
)
def test_it_is_said_and_not_a_traceback(tmp_path, line, said):
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    done = shell(line, tmp_path)
    told = done.stdout + done.stderr
    assert said in told
    assert b"Traceback" not in told
    assert done.returncode == 1


@pytest.mark.slow
def test_a_file_name_that_is_no_utf_8_is_a_name_like_any(tmp_path):
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    odd = os.fsencode(tmp_path) + b"/n\xfft.onnx"
    (tmp_path / "net.onnx").rename(os.fsdecode(odd))
    done = subprocess.run(
        [*COMMAND, "inspect", odd, "--html", odd + b".html"], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert Path(os.fsdecode(odd + b".html")).exists()


@pytest.fixture
def told_of_hangups():
    """Let children end by SIGHUP, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("told_of_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_an_interrupt(tmp_path, number):
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    process = subprocess.Popen(
        [*COMMAND, "export", tmp_path / "net.onnx", "-o", tmp_path / "out" / "o.onnx", "-v"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr.readline()  # it has begun
    process.send_signal(number)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "interrupted" in said
    assert list((tmp_path / "out").iterdir()) == []
