"""Every command of README and docs is typed, in a folder with the network, weights and photographs they name.

What a block needs that not every machine has is marked above it: <!-- needs: device -->. A page's commands
run in order, in a copy of the folder without the files that they write.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys

import docs_pages
import needs
import numpy as np
import pytest
from docs_pages import DOCS, PAGES
from PIL import Image

from se_deploy.cli import main

pytestmark = [pytest.mark.slow, needs.TORCH, needs.RTX]

CLASSES = "abcd"
SIDE = 72  # of a photograph; the network takes 64
A_CLASS = 12  # photographs


def photograph(label, seed):
    """Noise around the colour of its class."""
    rng = np.random.default_rng([label, seed])
    colour = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (180, 180, 60)][label])
    return np.clip(colour + rng.normal(0, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def trained(folder):
    """Train the network of the page for some steps; weights.safetensors."""
    import torch  # noqa: PLC0415 - skipped without it
    from safetensors.torch import save_file  # noqa: PLC0415

    names = {}
    exec((folder / "net.py").read_text("utf-8"), names)  # noqa: S102 - the page's own listing
    torch.manual_seed(0)
    net = names["Net"]()
    data = np.stack([photograph(n % 4, n // 4)[4:68, 4:68] for n in range(48)]).transpose(0, 3, 1, 2)
    x, y = torch.tensor((data / 255 - 0.5) / 0.5, dtype=torch.float32), torch.arange(48) % 4
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    save_file(net.state_dict(), folder / "weights.safetensors")
    np.save(folder / "calib.npy", x.numpy())
    np.save(folder / "photos.npy", x[:8].numpy())


def block_of(page, kind, begins):
    return next(b.text for b in docs_pages.blocks(DOCS / page) if b.kind == kind and begins in b.text)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """All that the pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "net.py").write_text(block_of("first_network.md", "python", "# net.py"))
    (folder / "se-deploy.toml").write_text(block_of("ci.md", "toml", "[parity]"))
    for label, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for seed in range(A_CLASS):
            Image.fromarray(photograph(label, seed)).save(folder / "photos" / name / f"{seed}.png")
    trained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scale = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
        source = ["net.py:Net", "--checkpoint", "weights.safetensors", "--input-size", "3x64x64"]
        typed("export", *source, *scale, "-o", "net.onnx", "-q")
        shutil.copy("net.onnx", "reference.onnx")
        plain = ["import onnx", "m = onnx.load('net.onnx')", "del m.metadata_props[:]"]
        subprocess.run([sys.executable, "-c", "; ".join([*plain, "onnx.save(m, 'plain.onnx')"])], check=True)
        typed("build-engine", "net.onnx", "--fp16", "-o", "net.engine", "--search-plans", "4", "-q")
    return folder


def typed(*words):
    code = main(list(words), standalone_mode=False)
    assert code == 0, shlex.join(["se-deploy", *words])


@pytest.fixture
def folder(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(lines, folder):
    """Type the commands of se-deploy among `lines`."""
    own = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("se-deploy ")]
    for words in own:
        for flag, value in itertools.pairwise(words):
            if flag in {"-o", "--output", "--junit", "--html", "--calib-cache"}:
                for path in folder.glob(f"{value}*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for words in own:
        typed(*words)
    return own


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any("se-deploy " in c for c in docs_pages.commands(page))],
    ids=lambda page: page.name,
)  # fmt: skip
def test_every_command_of_a_page_works(page, folder):
    assert run(docs_pages.commands(page), folder)


def test_the_right_column_of_the_equivalent_commands_works(folder):
    rows = [code for code in docs_pages.in_code(DOCS / "comparison.md") if code.startswith("se-deploy ")]
    assert len(run(rows, folder)) >= 8


@pytest.mark.parametrize("begins", ["runs-on:", "script:"], ids=["github", "gitlab"])
def test_the_commands_of_a_ci_file_work_in_order(begins, folder):
    text = block_of("ci.md", "yaml", begins)
    lines = re.findall(r"^\s*- (?:run: )?(se-deploy .+)$", text, re.MULTILINE)
    assert len(run(lines, folder)) == 3
    assert (folder / "verdicts.xml").is_file()


def test_the_ci_files_are_yaml():
    yaml = pytest.importorskip("yaml")
    for begins in ("runs-on:", "script:"):
        assert isinstance(yaml.safe_load(block_of("ci.md", "yaml", begins)), dict)


def test_the_python_of_the_pages_works(folder):
    exec(block_of("library.md", "python", "from se_deploy"), {})  # noqa: S102 - the page's own listing
    (folder / "test_parity.py").write_text(block_of("ci.md", "python", "assert_parity"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_parity.py", "-p", "no:cacheprovider"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout
