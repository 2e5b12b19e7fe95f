"""The documentation holds together: links, navigation, generated pages, flags that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import click
import docs_pages
import project_scripts
import pytest
from docs_pages import DOCS, PAGES, ROOT

from se_deploy.cli.main import COMMANDS
from se_deploy.cli.main import commands as group

MOST_WORDS = 1500  # of the README
MOST_BYTES = 300 * 1024  # of its picture
LINK = re.compile(r"(?<!\!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
OTHERS_FLAGS = frozenset({"--nodes_to_exclude", "--model-repository"})
"""Of other tools, where a page names one by itself."""


def anchors(page):
    """The anchors of a page's headings, as Markdown readers make them."""
    heads = re.findall(r"^#+ (.+)$", docs_pages.FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_project_resolves(page):
    for found in LINK.finditer(page.read_text("utf-8")):
        link = found[1] or found[2]
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert listed == {page.name for page in DOCS.glob("*.md")}


def test_the_generated_pages_are_those_of_this_code():
    """Where this fails: python scripts/reference.py."""
    with project_scripts.loaded("reference") as reference:
        for path, text in reference.pages().items():
            assert path.read_text("utf-8") == text, path.name


def test_the_readme_begins_with_its_two_commands_and_is_short():
    """.ci/run takes the first two fenced blocks as what a stranger types."""
    readme = ROOT / "README.md"
    first, second = docs_pages.blocks(readme)[:2]
    assert "se-deploy demo -o out" in first.text
    assert "pytest" in second.text
    assert "git clone" in " ".join(docs_pages.in_code(readme))
    assert len(readme.read_text("utf-8").split()) < MOST_WORDS
    assert 0 < (DOCS / "report.png").stat().st_size <= MOST_BYTES


def known_flags():
    """Those of the tool and of the project's scripts."""
    flags = {*OTHERS_FLAGS, "--help", "--version"}
    for script in (ROOT / "scripts").glob("*.py"):
        flags |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text("utf-8")))
    for name in COMMANDS:
        for option in group.get_command(None, name).params:
            if isinstance(option, click.Option):
                flags |= {*option.opts, *option.secondary_opts}
    return flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page):
    """In commands of se-deploy and in flags that stand alone; other tools' commands have their own."""
    flags = known_flags()
    own = [code for code in docs_pages.in_code(page) if code.startswith(("se-deploy ", "--"))]
    own += [line for line in docs_pages.commands(page) if line.startswith("se-deploy ")]
    strange = {flag for code in own for flag in FLAG.findall(code)} - flags
    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fenced_command_is_known_or_marked(page):
    """What `test_commands.py` cannot type is marked with what it needs."""
    runnable = ("se-deploy ", "python3 -m venv", ".venv/bin/", "pip install", "pytest", "ruff ", ".ci/run")
    odd = [line for line in docs_pages.commands(page) if not line.startswith(runnable)]
    assert not odd, "mark the block: <!-- needs: device --> (or network, docker, ...)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_a_page_names_are_there(page):
    named = set(re.findall(r"scripts/\w+\.\w+", page.read_text("utf-8")))
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=str(sys.prefix) + "/bin") is None, reason="no mkdocs: [docs]")
def test_the_site_is_built_strictly(tmp_path):
    done = subprocess.run(
        [sys.prefix + "/bin/mkdocs", "build", "-q", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "first_network.html").is_file()
