"""`--remote`: a command runs on a device, by the se-deploy that is installed there, as if it ran here.

What it reads is copied into a fresh folder of the device, the command runs there on its own, so that a line
which breaks ends nothing, and what it writes comes back whole or not at all. The folder is then removed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_deploy import files, locks
from se_deploy.backends import manifest as manifests
from se_deploy.commands import bundle as bundling
from se_deploy.commands import reading
from se_deploy.commands.build_engine import onnx_path
from se_deploy.commands.remote_files import Layout, Read, Written
from se_deploy.data.reading import LIST_SUFFIXES
from se_deploy.errors import BadInput, RemoteFailed
from se_deploy.schema import convert, results, tool_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.deploy.ssh import Host
    from se_deploy.options import ImageOptions

Talk = Callable[[str], None]
"""Is given what is said on the device, line by line."""

_ENVIRONMENTS = ("$HOME/.venv", "$HOME/venv", "$HOME/.local", "$HOME/se-deploy/.venv")
"""Where se-deploy is looked for besides PATH: a command over SSH reads no profile that would set it."""

_FOLDER = re.compile(r"/[A-Za-z0-9._/-]*/se-deploy\.[A-Za-z0-9]{8}")
_SAID = "se-deploy:"  # before each of several answers
_GONE = 9  # what following ends with where the job is gone without a result
_SCRIPT_LISTS = 5  # classes of each image
_DATA_OPTIONS = ("--data=", "--calib-data=")


class NotInstalled(RemoteFailed):
    """The device has no se-deploy."""


@dataclass(frozen=True, slots=True)
class Word:
    """An option, as "--output=", and its value; or a value alone."""

    option: str
    value: str | Read | Written


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a command is to run, and what is called there."""

    host: Host
    program: str | None = None  # None: se-deploy, wherever it is commonly installed


@dataclass(frozen=True, slots=True)
class Answer:
    """What the command printed on the device, its paths as they were given here."""

    code: int
    fields: Mapping[str, Any]  # of its JSON object


def run(remote: Remote, command: str, words: Sequence[Word], *, overwrite: bool, talk: Talk) -> Answer:
    """Run `se-deploy COMMAND WORDS --json` on the device; `talk` is given its stderr.

    Raises: NotInstalled; RemoteFailed where the device cannot be reached or the line stays broken;
    OutputExists and CannotWrite before any work; BadInput for what cannot travel.
    """
    _claim(words, overwrite=overwrite)
    with _job(remote, talk) as (folder, program):
        if program is None:
            raise NotInstalled(
                f"{remote.host.name}: '{remote.program or 'se-deploy'}' was not found there",
                hint="install it on the device, as docs/jetson.md says, or name it with --remote-program",
            )
        layout = Layout(folder)
        call = [program, command, "--json", *(_spelled(word, layout) for word in words)]
        layout.send(remote.host)
        code = _work(remote.host, folder, call, talk=lambda line: talk(layout.local(line)))
        printed = remote.host.run(f"cat {shlex.quote(folder)}/stdout").decode(errors="replace")
        layout.fetch(remote.host, overwrite=overwrite)
    try:
        fields = layout.locally(json.loads(printed))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise RemoteFailed(
            f"{remote.host.name}: se-deploy ended with exit code {code} and no result",
            hint="what it said is above; `se-deploy doctor` on the device says what is missing",
        )
    return Answer(code, fields)


def predict_by_script(
    remote: Remote,
    artifact: Path,
    images: Sequence[Path],
    *,
    top: int,
    image: ImageOptions,
    missing: NotInstalled,
    talk: Talk,
) -> results.Predict:
    """Return what the bundle's own script says of images, on a device without se-deploy.

    `missing`: why it is asked. Raises: RemoteFailed with what the script says; `missing` where more classes
    are wanted than it lists.
    """
    if top > _SCRIPT_LISTS:
        raise missing
    with _job(remote, talk) as (folder, _), locks.scratch() as here:
        bundling.bundle(artifact, Path(here) / "bundle", image=image)
        layout = Layout(folder)
        script = f"{layout.reading(Path(here) / 'bundle')}/{bundling.RUNNER}"
        call = ["python3", script, "--json", *map(layout.reading, images)]
        layout.send(remote.host)
        said = layout.locally(json.loads(remote.host.run(shlex.join(call))))
    for one in said["predictions"]:
        one["top"] = one["top"][:top]
    fields = {
        "schema": "se-deploy/predict/1",
        "tool_version": tool_version(),
        "warnings": [f"{missing.message}: the bundle's own {bundling.RUNNER} ran the engine"],
        "artifact": str(artifact),
        "runtime": said["runtime"],
        "device": remote.host.name,
        "predictions": said["predictions"],
        "remote": remote.host.name,
    }
    what = f"what {bundling.RUNNER} says"
    return convert(fields, results.Predict, what=what, error=RemoteFailed, hint="bundle the engine again")


def _claim(words: Sequence[Word], *, overwrite: bool) -> None:
    """Check before any work that what is written may be, and that what is read can travel."""
    for word in words:
        value = word.value
        if isinstance(value, Written) and not value.kept and not value.folder:
            engine = reading.kind_of(value.path) == "engine"
            beside = (manifests.path_of(value.path), onnx_path(value.path)) if engine else ()
            for path in (value.path, *beside):
                files.claim(path, overwrite=overwrite)
        listed = isinstance(value, Read) and value.path.suffix.lower() in LIST_SUFFIXES
        if listed and word.option in _DATA_OPTIONS:
            raise BadInput(
                f"'{word.value}' lists files by their paths here, which the device does not have",
                hint="name a folder of the images, a .tar or a .npy",
            )


@contextlib.contextmanager
def _job(remote: Remote, talk: Talk) -> Iterator[tuple[str, str | None]]:
    """Yield a fresh folder of the device, and se-deploy's path there; at the end, all of it is removed."""
    folder, program = _started(remote)
    remove = _stop(folder)
    again = f"ssh {remote.host.name} {shlex.quote(remove)}"
    try:
        yield folder, program
    except BaseException as e:
        try:
            remote.host.run(remove, patient=False)
        except RemoteFailed as gone:
            raise RemoteFailed(
                f"{remote.host.name}: the line stays broken ({gone.message}); '{folder}' is left there, and "
                "what was started may still run",
                hint=f"once it is back: {again}; then try again",
            ) from e
        raise
    try:
        remote.host.run(remove)
    except RemoteFailed as gone:
        talk(f"warning: '{folder}' is left on {remote.host.name} ({gone.message}); remove it: {again}")


def _started(remote: Remote) -> tuple[str, str | None]:
    """Make the folder and look for se-deploy: one question, which also tells whether the device is there."""
    if remote.program is not None:
        places = shlex.quote(remote.program)
    else:
        places = " ".join(["se-deploy", *(f'"{place}/bin/se-deploy"' for place in _ENVIRONMENTS)])
    script = (
        'folder=$(mktemp -d "${TMPDIR:-/tmp}/se-deploy.XXXXXXXX") && mkdir "$folder/out" || exit 1; '
        f"echo {_SAID}folder=$folder; "
        f'for one in {places}; do command -v "$one" >/dev/null || continue; '
        f'echo {_SAID}program=$(command -v "$one"); break; done'
    )
    said = remote.host.run(script, patient=False).decode(errors="replace").splitlines()
    found = dict(line.removeprefix(_SAID).partition("=")[::2] for line in said if line.startswith(_SAID))
    folder = found.get("folder", "")
    if not _FOLDER.fullmatch(folder):
        raise RemoteFailed(
            f"{remote.host.name}: no temporary folder could be made there",
            hint="free its /tmp, or set TMPDIR",
        )
    return folder, found.get("program")


def _work(host: Host, folder: str, call: Sequence[str], *, talk: Talk) -> int:
    """Run `call` in a session of its own, so that it outlives the line; return its exit code."""
    at = shlex.quote(folder)
    inner = (
        f"cd {at}; echo $$ >pid; {shlex.join(call)} >stdout 2>stderr </dev/null; "
        "echo $? >code.part; mv code.part code"
    )
    # Making the folder `started` lets this be asked twice: the line may break before the answer.
    host.run(
        f"cd {at} && mkdir started 2>/dev/null || exit 0; : >stderr; "
        f"setsid sh -c {shlex.quote(inner)} >/dev/null 2>&1 </dev/null &"
    )
    ends = f'[ ! -e code ] && [ -d {at} ] && kill -0 "$(cat pid)" 2>/dev/null'

    def rest(seen: int) -> str:
        return (
            f"cd {at} || exit {_GONE}; "
            "n=0; until [ -s pid ] || [ $n -ge 100 ]; do sleep 0.1; n=$((n+1)); done; "
            f"tail -c +{seen + 1} -f stderr & tail=$!; while {ends}; do sleep 0.2; done; "
            f"kill $tail; [ -e code ] || exit {_GONE}"
        )

    lines = _Lines(talk)
    if host.follow(rest, lines.add):
        raise RemoteFailed(
            f"{host.name}: the command ended without a result",
            hint="it was killed, or the device restarted: see its memory (free -h, dmesg), then try again",
        )
    lines.add(host.run(f"tail -c +{lines.seen + 1} {at}/stderr"))  # what `tail -f` was too slow for
    return int(host.run(f"cat {at}/code"))


def _stop(folder: str) -> str:
    """Return the script that ends what runs in a folder of the device, and removes it."""
    at = shlex.quote(folder)
    kill = f'kill -s TERM -- "-$(cat {at}/pid)" 2>/dev/null'
    return f"if [ -s {at}/pid ] && [ ! -e {at}/code ]; then {kill}; fi; rm -rf {at}"


def _spelled(word: Word, layout: Layout) -> str:
    if isinstance(word.value, Read):
        return f"{word.option}{layout.reading(word.value.path)}"
    if isinstance(word.value, Written):
        return f"{word.option}{layout.writing(word.value)}"
    return f"{word.option}{word.value}"


class _Lines:
    """Bytes in, whole lines out; counts what it has seen."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._rest, self.seen = talk, b"", 0

    def add(self, part: bytes) -> None:
        self.seen += len(part)
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            self._talk(line.decode(errors="replace"))
