"""A device over the system's own OpenSSH: commands as argument lists, host keys checked as the user has it.

What runs on the device is a script for its `sh`; each word in it goes through `shlex.quote`. A command that
ends with 255 is a line that broke, and is tried again: whatever is asked here may be asked twice.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput, RemoteFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_QUOTED_LINES = 3  # of what a program said on stderr: a traceback's end
_BEGINS = b"se-deploy: the answer begins\n"
"""Printed before each answer: a login shell may print lines of its own, as a ~/.bashrc that greets does."""

_PIPE_BYTES = 65_536  # what a pipe holds at most
_BROKEN = 255  # what ssh and a broken scp end with
_PAUSES_S = (1, 2, 4, 8, 15)  # between tries: half a minute, as a wireless link or a router may need
_OPTIONS = ("-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
"""A dead line is known after 45 s instead of hours."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a command runs: a host, or a user at a host, or an alias of the user's ssh configuration."""

    name: str
    config: Path | None = None  # in place of the user's ~/.ssh/config

    def __post_init__(self) -> None:
        """Raises: BadInput for what ssh would not read as a host, an option above all."""
        if not _HOST.fullmatch(self.name):
            raise BadInput(
                f"'{self.name}' is no host",
                hint="write it as user@host; ports and IPv6 addresses belong into ~/.ssh/config",
            )

    def run(self, script: str, *, patient: bool = True) -> bytes:
        """Return what `script` prints. Raises: RemoteFailed where it ends with another code than 0."""
        printed = _tried(self._command(script), self.name, patient=patient)
        _, begun, answer = printed.partition(_BEGINS)
        if not begun:
            raise RemoteFailed(
                f"{self.name}: its login shell runs no command: {_last_words(printed) or 'it says nothing'}",
                hint=f"`ssh {shlex.quote(self.name)} 'echo hello'` must say hello",
            )
        return answer

    def follow(self, script: Callable[[int], str], sink: Callable[[bytes], None]) -> int:
        """Give what a script prints to `sink` as it comes; return the script's exit code.

        `script`: how to go on behind so many bytes, after a line that broke. Raises: RemoteFailed where the
        line stays broken.
        """
        seen, tries = 0, 0
        while True:
            command, before, begun = self._command(script(seen)), b"", b""
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                assert process.stdout is not None  # noqa: S101 - it was asked for above
                assert process.stderr is not None  # noqa: S101
                while part := os.read(process.stdout.fileno(), _PIPE_BYTES):
                    if not begun:
                        before, begun, part = (before + part).partition(_BEGINS)
                    if begun and part:
                        sink(part)
                        seen, tries = seen + len(part), 0
                reason = process.stderr.read()
            if process.returncode != _BROKEN:
                return process.returncode
            if tries == len(_PAUSES_S):
                raise _failed(self.name, reason)
            time.sleep(_PAUSES_S[tries])
            tries += 1

    def upload(self, folder: Path, to: str) -> None:
        """Copy a folder, links followed, into the folder `to` of the device. Raises: RemoteFailed."""
        _tried([*self._program("scp"), "-q", "-r", "--", str(folder), f"{self.name}:{to}/"], self.name)

    def download(self, folder: str, to: Path) -> None:
        """Copy a folder of the device into the folder `to`. Raises: RemoteFailed."""
        _tried([*self._program("scp"), "-q", "-r", "--", f"{self.name}:{folder}", f"{to}/"], self.name)

    def _command(self, script: str) -> list[str]:
        begins = f"echo {shlex.quote(_BEGINS.decode().rstrip())}"
        return [*self._program("ssh"), "-T", "-a", "-x", "--", self.name, in_sh(f"{begins}; {script}")]

    def _program(self, name: str) -> list[str]:
        return [name, *(["-F", str(self.config)] if self.config else []), *_OPTIONS]


def in_sh(script: str) -> str:
    """Return the one word that makes any login shell run `script` in sh."""
    return shlex.join(["sh", "-c", script])


def _tried(command: list[str], host: str, *, patient: bool = True) -> bytes:
    """Run a command that may be run again, until its line holds."""
    for pause in (*(_PAUSES_S if patient else ()), None):
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except FileNotFoundError as e:
            raise RemoteFailed(
                f"'{command[0]}' is not installed here", hint="install OpenSSH's client"
            ) from e
        broken = done.returncode == _BROKEN or (command[0] == "scp" and _lost(done.stderr))
        if not broken or pause is None:
            break
        time.sleep(pause)
    if broken:
        raise _failed(host, done.stderr)
    if done.returncode:
        raise RemoteFailed(
            f"{host}: {_last_words(done.stderr) or f'exit code {done.returncode}'}",
            hint=f"`ssh {shlex.quote(host)}` shows more of what is there",
        )
    return done.stdout


def _lost(stderr: bytes) -> bool:
    """Whether scp, which has one exit code for everything, lost its line."""
    words = (b"lost connection", b"Connection closed", b"Connection reset", b"Broken pipe", b"timed out")
    return any(word in stderr for word in words)


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return "; ".join(line.strip() for line in lines[-_QUOTED_LINES:])


def _failed(host: str, stderr: bytes) -> RemoteFailed:
    return RemoteFailed(
        f"{host}: {_last_words(stderr) or 'the line broke'}",
        hint=f"`ssh {shlex.quote(host)}` must work without a question: know its host key, and it yours",
    )
