"""What bundles are made of, and what is in one."""

from __future__ import annotations

import use_graphs

from se_deploy.backends import manifest as manifests


def engine(folder, **fields):
    """An engine in a folder, with its manifest and its ONNX file."""
    folder.mkdir(exist_ok=True)
    onnx_file = use_graphs.save(folder / "net.engine.onnx", use_graphs.SE, batch=fields.pop("batch", "N"))
    path = folder / "net.engine"
    path.write_bytes(b"vtrt" + bytes(64))
    manifests.write(use_graphs.manifest(path, onnx_file, **fields), manifests.path_of(path))
    return path


def contents(folder):
    """The files in a folder, by their paths there."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
