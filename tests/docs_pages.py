"""README and docs/ as data: their fenced blocks, links, and commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md")))
GENERATED = ("flags.md", "json.md")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>[a-z, ]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `needs`: what its mark says that a machine must have, "" for nothing."""

    kind: str
    text: str
    needs: str

    @property
    def commands(self):
        """The commands of a shell block, continued lines joined, comments and blank lines left out."""
        if self.kind not in {"sh", "bash", "console"}:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page):
    found = FENCE.finditer(page.read_text("utf-8"))
    return [Block(one["kind"], one["text"], one["needs"] or "") for one in found]


def commands(page):
    """The commands that every machine can run."""
    return [line for block in blocks(page) if not block.needs for line in block.commands]


def in_code(page):
    """Every piece of code of a page that is not fenced, as it stands between backticks."""
    return INLINE.findall(FENCE.sub("", page.read_text("utf-8")))
