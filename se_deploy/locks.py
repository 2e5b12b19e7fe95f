"""Locks that do not outlive their owner: the system gives them back, however a process ends.

With them a rerun knows what a killed run left behind: what is locked is somebody's, what is not is litter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy.errors import CannotWrite

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and what a killed run left is not cleaned
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = ".se-deploy-"
"""Of every file that is only there while something is written beside it."""
_FOLDER_LOCK = f"{PREFIX}lock"
_SCRATCH = "se-deploy-scratch-"


def hold(descriptor: int) -> bool:
    """Lock an open file for as long as it is open; False where another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: two runs are then not told apart
    return True


def _nobodys(descriptor: int) -> bool:
    """Lock an open file; False also where the file system has no locks, and who lives cannot be told."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make `path` and keep it for this process while the block runs; what killed ones left in it goes first.

    Raises: CannotWrite where another process has it, or it cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise CannotWrite(
            f"'{path}' is a file, a folder is to be written there", hint="name a folder with -o"
        )
    lock = path / _FOLDER_LOCK
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            raise CannotWrite(
                f"the folder '{path}' cannot be written: {e.strerror}", hint="name another one"
            ) from e
        if not hold(descriptor):
            os.close(descriptor)
            raise CannotWrite(
                f"another run is writing into '{path}'", hint="wait for it, end it, or name another folder"
            )
        if is_there(descriptor, lock):
            break
        os.close(descriptor)  # its last owner removed it in between
    try:
        sweep(path)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def is_there(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def sweep(path: Path) -> None:
    """Remove the half-written files that killed processes left in a folder."""
    if fcntl is None:
        return
    for left in path.glob(f"{PREFIX}*"):
        if left.name != _FOLDER_LOCK and left.is_file() and not left.is_symlink():
            with contextlib.suppress(OSError), left.open("rb") as file:  # another user's, or gone already
                if _nobodys(file.fileno()) and is_there(file.fileno(), left):
                    left.unlink()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder of this process alone, removed at the end; those that killed ones left go first."""
    _sweep_scratch(Path(tempfile.gettempdir()))
    while True:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, ignore_cleanup_errors=True) as made:
            descriptor = _locked_folder(made)
            if descriptor is None:
                continue  # somebody's sweep was faster than the lock
            try:
                yield Path(made)
            finally:
                os.close(descriptor)
            return


def _locked_folder(path: str) -> int | None:
    """Lock a folder itself, so that nothing lies in it; None where another process has it or removed it."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)  # Windows opens no folders
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if hold(descriptor) and is_there(descriptor, Path(path)):
        return descriptor
    os.close(descriptor)
    return None


def _sweep_scratch(place: Path) -> None:
    """Remove the scratch folders of this user that nobody holds any more."""
    if fcntl is None:
        return
    for left in place.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # gone already
            if left.is_symlink() or not left.is_dir() or left.stat().st_uid != os.getuid():
                continue
            descriptor = _locked_folder(str(left))
            if descriptor is not None:
                if _nobodys(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)
