"""A real sshd on this machine, as the device of `--remote`: own keys, own port, own known hosts."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_ports

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NEEDED = pytest.mark.skipif(
    SSHD is None or shutil.which("scp") is None, reason="no sshd here: install openssh-server"
)
HOST = "device"
WAIT_S = 20


@dataclass
class Device:
    """A running sshd, and how `ssh` reaches it."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        """For ssh -F."""
        return self.folder / "ssh_config"

    @property
    def words(self) -> tuple[str, ...]:
        """Of a command that runs on it."""
        return ("--remote", HOST, "--ssh-config", str(self.config), "--remote-program", str(self.program))

    @property
    def program(self) -> Path:
        """This package's command, as installed there."""
        return self.folder / "bin with space" / "se-deploy"

    @property
    def temporary(self) -> list[str]:
        """What was left in the device's temporary folder."""
        return sorted(path.name for path in (self.folder / "scratch").glob("se-deploy*"))

    def cut(self) -> int:
        """Break every line that is open; give how many there were."""
        found = _children(self.process.pid)
        _kill(found)
        return len(found)

    def stop(self) -> None:
        """Take the device off the net, where it still is."""
        if self.process.poll() is not None:
            return
        # It may be about to open a line, which would outlive it unseen: first it stands still.
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        lines = _children(self.process.pid)  # which outlive it
        self.process.kill()
        self.process.wait()
        _kill(lines)

    def install(self, script: str) -> None:
        """Put another program in se-deploy's place."""
        self.program.write_text(script)


@contextlib.contextmanager
def device(folder: Path, **environment: str):
    """Run an sshd that lets this user in, with an environment for what runs there."""
    environment |= {"TMPDIR": str(folder / "scratch"), "HOME": str(folder)}  # without this user's own profile
    for name in ("scratch", "bin with space"):
        (folder / name).mkdir()
    for name in ("host", "user"):
        key = folder / f"{name}_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (port,) = free_ports(1)
    (folder / "authorized").write_text((folder / "user_key.pub").read_text())
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nLogLevel ERROR\n"
        f"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        f"SetEnv {' '.join(f'{name}={value}' for name, value in environment.items())}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own empty folder, which the service makes at boot
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")])
    try:
        _wait_for(port)
        made = Device(folder, process)
        made.install(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
            "from se_deploy.cli import main\nmain()\n"
        )
        made.program.chmod(0o755)
        yield made
    finally:
        Device(folder, process).stop()


def wait_until(holds) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def _wait_for(port: int) -> None:
    def answers() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers)


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], check=False, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]
