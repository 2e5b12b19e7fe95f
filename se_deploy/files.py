"""Files on disk: read within bounds, written whole or not at all, and known by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import pickle
import signal
import stat
import struct
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import locks
from se_deploy.errors import BadInput, CannotWrite, OutputExists, SeDeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAMAGED: tuple[type[Exception], ...] = (
    OSError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError,
    SyntaxError, RuntimeError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    tarfile.TarError, tokenize.TokenError, pickle.UnpicklingError,
)  # fmt: skip
"""What the standard library, numpy, Pillow, torch and onnx raise for bytes that are no file of their kind.

RuntimeError holds RecursionError and NotImplementedError. MemoryError is none: sizes are checked first.
"""

LARGEST_TEXT = 1 << 26
"""Bytes of a JSON or text file that is read whole: reports with four plans have some 3 MiB."""


@contextlib.contextmanager
def parsing(
    path: Path | str,
    what: str,
    *,
    error: type[SeDeployError],
    hint: str,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn what a parser raises for a damaged file into `error`, which names the file; `also`: its own kinds.

    For blocks that hand the file to a library and nothing else: a defect of ours would be called damage.
    """
    try:
        yield
    except SeDeployError:
        raise
    except DAMAGED + also as e:
        raise error(f"'{path}' {what}: {reason_of(e)}", hint=hint) from e


def reason_of(error: BaseException) -> str:
    """Return the first line of what an exception says, its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    return (
        f"{type(error).__name__} {lines[0]}"
        if lines and isinstance(error, LookupError)
        else (lines[0] if lines else type(error).__name__)
    )


def check_regular(path: Path, *, error: type[SeDeployError] = BadInput, what: str = "") -> int:
    """Return the size in bytes of a file that is one: a pipe or a device never ends, or never begins.

    Raises: `error` for anything else, also where nothing is there.
    """
    named = f"'{path}', {what}," if what else f"'{path}'"
    hint = "name a file; what comes out of a pipe or a device has to be written to one first"
    try:
        status = path.stat()
    except (OSError, ValueError) as e:
        raise error(f"{named} cannot be read: {reason_of(e)}", hint="name a file that is there") from e
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{named} is {_kind(status.st_mode)}, not a file", hint=hint)
    return status.st_size


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def is_regular(path: Path) -> bool:
    """Whether a file is there; False also for a name that no file can have."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(
    path: Path, *, error: type[SeDeployError] = BadInput, most: int | None = None, what: str = ""
) -> bytes:
    """Return what a regular file of at most `most` bytes holds; `what` it is, in words. Raises: `error`."""
    size = check_regular(path, error=error, what=what)
    if most is not None and size > most:
        raise error(
            f"'{path}' holds {size:,} bytes, at most {most:,} are read", hint="name the file that was meant"
        )
    try:
        return path.read_bytes()
    except OSError as e:
        raise error(f"'{path}' cannot be read: {reason_of(e)}", hint="look at its permissions") from e


def read_text(path: Path, *, error: type[SeDeployError] = BadInput, most: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file. Raises: `error`."""
    try:
        return read_bytes(path, error=error, most=most).decode("utf-8")
    except UnicodeDecodeError as e:
        raise error(f"'{path}' is no UTF-8 text: {e}", hint="save it as UTF-8") from e


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Check that nothing is in the way at `path`; writes nothing.

    Only a file, or a link to one, is ever replaced.
    Raises: OutputExists without `overwrite`; CannotWrite for what is no file, and a name that none can have.
    """
    path = _target(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as e:
        raise CannotWrite(f"'{path}' cannot be written: {reason_of(e)}", hint="name another output") from e
    if mode is not None and not stat.S_ISREG(mode):
        raise CannotWrite(f"'{path}' is {_kind(mode)}, a file is to be written there", hint="name a file")
    if mode is not None and not overwrite:
        raise OutputExists(f"'{path}' exists already", hint="name another output, or pass --overwrite")


def claim(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that `path` may and can be written, as `refuse_taken` does.

    What killed runs left half-written beside it is removed.
    Raises: OutputExists without `overwrite`; CannotWrite also where the folder cannot be made or written.
    """
    refuse_taken(path, overwrite=overwrite)
    path = _target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CannotWrite(
            f"the folder of '{path}' cannot be made: {e.strerror}", hint="name another output"
        ) from e
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CannotWrite(f"the folder '{path.parent}' cannot be written", hint="name another output")
    locks.sweep(path.parent)


def claim_kept(path: Path | None) -> None:
    """Check, before any work is done, that a file which is kept between runs can be read or written.

    Raises: CannotWrite; nothing happens where none was named.
    """
    if path is not None:
        claim(path, overwrite=True)


def _target(path: Path) -> Path:
    """Return where a link leads, at last: that is replaced, and the link stays."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as e:  # links in a circle
        raise CannotWrite(f"'{path}' cannot be written: {reason_of(e)}", hint="name another output") from e


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only if the block ends well.

    Raises: CannotWrite where the folder cannot be written or the disk is full.
    """
    with together() as publish:
        yield publish(path)


@contextlib.contextmanager
def together() -> Iterator[Callable[[Path], Path]]:
    """Yield what gives, for each of several paths, one beside it to write to.

    They take the places of their own only if the block ends well, one right after the other in the order
    asked for, and no signal comes between. What is left half-written by a killed process is not locked any
    more, and removed by the next `claim`.
    Raises: CannotWrite where a folder cannot be written or the disk is full.
    """
    parts: dict[Path, tuple[Path, int]] = {}

    def publish(path: Path) -> Path:
        path = _target(path)
        part, descriptor = _part(path)
        parts[path] = part, descriptor
        return part

    try:
        yield publish
        with _uninterrupted():
            for path, (part, _) in parts.items():
                _replace(path, part)
    except OSError as e:
        where = next((path for path, (part, _) in parts.items() if str(part) == e.filename), None)
        named = where or next(iter(parts), "the output")
        raise CannotWrite(f"'{named}' cannot be written: {reason_of(e)}", hint="name another output") from e
    finally:
        for part, descriptor in parts.values():
            part.unlink(missing_ok=True)
            os.close(descriptor)


def _part(path: Path) -> tuple[Path, int]:
    """Make a file beside `path`, locked while it is open. Its name is short: that of `path` may be long."""
    while True:
        try:
            made = tempfile.mkstemp(prefix=locks.PREFIX, suffix=path.suffix[-16:], dir=path.parent)
        except OSError as e:
            raise CannotWrite(f"'{path}' cannot be written: {e.strerror}", hint="name another output") from e
        descriptor, part = made[0], Path(made[1])
        if locks.hold(descriptor) and locks.is_there(descriptor, part):
            return part, descriptor
        os.close(descriptor)  # somebody's sweep was faster than the lock


def _replace(path: Path, part: Path) -> None:
    if path.exists() and not path.is_file():  # it was none when it was claimed
        raise CannotWrite(f"'{path}' is no file any more", hint="name another output")
    part.chmod(0o666 & ~_umask())
    part.replace(path)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals that end a program wait while the block runs."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all; half a surrogate pair is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raises: BadInput where it is no file."""
    check_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
