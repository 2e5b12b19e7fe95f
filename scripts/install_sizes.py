"""Print how much room each extra takes: the files of its packages and of all that they need, installed here.

    python scripts/install_sizes.py

It looks at the environment that runs it; an extra with a package that is not installed there is not measured.
"""

from __future__ import annotations

import functools
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from se_deploy.schema import tool_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
MEGA = 1e6
SETS = ("", "cpu", "gpu", "jetson", "rtx", "torch", "report", "zoo", "cpu,rtx", "all")


def wanted(texts: list[str], extras: frozenset[str]) -> list[Requirement]:
    """Return the requirements that hold on this machine with these extras."""
    found = [Requirement(text) for text in texts]
    environments = [{"extra": extra} for extra in extras or {""}]
    return [one for one in found if not one.marker or any(map(one.marker.evaluate, environments))]


@functools.cache
def needs(name: str, extras: frozenset[str]) -> frozenset[str]:
    """Return the distributions that one of them brings, itself included. Raises: PackageNotFoundError."""
    found = {re.sub(r"[-_.]+", "-", name).lower()}
    for one in wanted(metadata.requires(name) or [], extras):
        found |= needs(one.name, frozenset(one.extras))
    return frozenset(found)


def own(project: dict[str, list[str]], extra: str) -> set[str]:
    """Return the distributions that an extra of this package brings, without the core."""
    found: set[str] = set()
    for one in wanted(project[extra], frozenset()):
        if one.name == "se-deploy":
            found |= {name for inner in one.extras for name in own(project, inner)}
        else:
            found |= needs(one.name, frozenset(one.extras))
    return found


@functools.cache
def size_bytes(name: str) -> int:
    """Return what a distribution's files take."""
    paths = {Path(file.locate()) for file in metadata.files(name) or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Print a row for each set of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = project["optional-dependencies"] | {"": project["dependencies"]}
    print(f"se-deploy {tool_version()}, Python {sys.version.split()[0]}, {sys.platform}")
    for extras in SETS:
        try:
            names = own(groups, "").union(*(own(groups, extra) for extra in extras.split(",")))
        except metadata.PackageNotFoundError as e:
            print(f"[{extras}]: not measured, {e} is not installed here")
            continue
        print(f"[{extras}]: {sum(map(size_bytes, names)) / MEGA:,.0f} MB, {len(names)} packages")


if __name__ == "__main__":
    main()
