"""One case at a time under limits: what a reader may use, and what it may raise.

    python -m fuzz.cases READER... --seed N --seconds S   mutated files, from `tests`
    python -m fuzz.cases --files FILE...                  files named READER/NAME, as kept in found/

Prints one JSON object a line. The case at hand lies in the folder `--folder` before it is read, so that one
which ends this process is known too.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz import mutations
from fuzz.readers import BY_NAME
from se_deploy.errors import SeDeployError

if TYPE_CHECKING:
    from fuzz.readers import Reader

MEMORY_BYTES = 1 << 30
"""What one small file may make a reader take, above what the process has anyway."""
CPU_S = 5.0
"""Seconds of processor time that one small file may take."""
WALL_S = 60
"""Seconds after which a reader waits for something that never comes, on however busy a machine."""


def limit() -> None:
    """Bound this process: more memory is a MemoryError from here on."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def outcome(reader: Reader, path: Path) -> str | None:
    """Read `path`; None where it was read or refused as it should be, else what is wrong, in one line.

    A reader that takes too long ends the process: SIGPROF and SIGALRM are not caught.
    """
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.alarm(WALL_S)
    try:
        reader.read(path)
    except SeDeployError as e:
        if not e.hint.strip() or not e.message.strip():
            return f"{type(e).__name__} does not say what to do: {e.message}"
        if reader.names_file and path.name not in e.message and path.stem not in e.message:
            return f"{type(e).__name__} does not name the file: {e.message[:200]!r}"
        return None
    except Exception as e:  # noqa: BLE001 - this is what is looked for
        return _signature(e)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return None


def _signature(error: Exception) -> str:
    """Name the exception and the innermost line of this package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/se_deploy/" in f.filename] or frames[-1:]
    where = f"{'/'.join(Path(own[-1].filename).parts[-3:])}:{own[-1].lineno}"
    return f"{type(error).__name__} at {where}: {str(error)[:160]!r}"


def run(reader: Reader, content: bytes, folder: Path) -> str | None:
    """Put `content` into an empty `folder` under the reader's file name, and read it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / reader.file
    path.write_bytes(content)
    return outcome(reader, path)


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


def main() -> None:
    """Run as the lines above say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--files", type=Path, nargs="*", default=())
    args = parser.parse_args()
    logging.captureWarnings(capture=True)
    logging.disable()
    warnings.simplefilter("ignore")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    if args.files:
        for reader in {BY_NAME[file.parent.name] for file in args.files}:
            run(reader, reader.seeds()[0], folder)  # for what it imports
        limit()
        for file in args.files:
            _say({"file": str(file), "starts": True})
            found = run(BY_NAME[file.parent.name], file.read_bytes(), folder)
            _say({"file": str(file), "finding": found})
        return
    readers = [BY_NAME[name] for name in args.readers]
    seeds = {reader.name: tuple(reader.seeds()) for reader in readers}
    for reader in readers:  # good files are read before the limit: what is imported then is no case's doing
        for seed in seeds[reader.name]:
            run(reader, seed, folder)
    limit()
    for reader in readers:
        _fuzz(reader, seeds[reader.name], folder, args)


def _fuzz(reader: Reader, seeds: tuple[bytes, ...], folder: Path, args: argparse.Namespace) -> None:
    """Read damaged files until there were enough or time is up; keep and tell the first of each finding."""
    end, done, seen = time.monotonic() + args.seconds, 0, set()
    while done < args.cases and time.monotonic() < end:
        chance = random.Random(f"{reader.name}/{args.seed}/{done}")  # noqa: S311 - no secret
        content = mutations.mutated(chance, reader.form, seeds)
        found = run(reader, content, folder)
        done += 1
        kind = None if found is None else found.partition(": ")[0]
        if kind is not None and kind not in seen:
            seen.add(kind)
            kept = folder.with_name(f"{folder.name}-{len(seen)}-{reader.file}")
            kept.write_bytes(content)
            _say({"reader": reader.name, "finding": found, "kept": str(kept)})
        if done % 100 == 0:
            _say({"reader": reader.name, "cases": done})
    _say({"reader": reader.name, "cases": done})


if __name__ == "__main__":
    main()
    sys.exit()
