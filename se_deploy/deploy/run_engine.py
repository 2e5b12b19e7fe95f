"""Run the engine beside this file on its GPU.

    python3 run_engine.py IMAGE...                   the most probable classes of each image
    python3 run_engine.py --arrays IN.npz OUT.npz    arrays by input name in, by output name out
    python3 run_engine.py                            only whether engine, manifest and TensorRT agree

Needs numpy, Pillow, the system's TensorRT and its libcudart, nothing else. --json prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from PIL import Image

from se_deploy.data.preprocessing import to_sample

FOLDER = Path(__file__).resolve().parent
MANIFEST = "net.engine.json"  # of the engine that this script was bundled with
CUDA_LIBRARIES = ("libcudart.so.12", "libcudart.so.13", "libcudart.so")  # drivers run older ones too
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind


def main() -> None:
    """Check the engine, then do what was asked for."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("images", nargs="*")
    parser.add_argument("--arrays", nargs=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    path, manifest = checked()
    said: dict[str, Any] = {"engine": path.name, "runtime": manifest["runtime"], "version": trt.__version__}
    if asked.images or asked.arrays:
        engine = Engine(path, manifest)
        if asked.arrays:
            np.savez(asked.arrays[1], **engine.run(dict(np.load(asked.arrays[0]))))
        said["predictions"] = [classified(engine, image, manifest) for image in asked.images]
    lines = [f"{path.name}: {said['runtime']} {said['version']}, as its manifest says"]
    for one in said.get("predictions", ()):
        rows = (f"  {g['probability']:8.4%}  {g['index']}  {g['label'] or ''}" for g in one["top"])
        lines += (one["image"], *rows)
    print(json.dumps(said) if asked.json else "\n".join(lines))


def checked() -> tuple[Path, dict[str, Any]]:
    """Return the engine and its manifest, once its hash and the version of TensorRT agree with it."""
    if not (FOLDER / MANIFEST).is_file():
        sys.exit(f"no manifest of an engine, {MANIFEST}, lies in {FOLDER}: copy the whole bundle again")
    manifest = json.loads((FOLDER / MANIFEST).read_text("utf-8"))
    hashed = manifest.pop("own_sha256", None)
    said = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    if hashed not in (None, hashlib.sha256(said).hexdigest()):
        sys.exit(f"the manifest in {FOLDER} was changed since it was written: copy the whole bundle again")
    path = FOLDER / Path(manifest["engine"]).name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest["engine_sha256"]:
        sys.exit(f"{path.name} is not here, or not what its manifest describes: copy the bundle again")
    features = manifest["features"] = manifest.get("features") or {}
    if trt.__version__ != manifest["version"] and not features.get("version_compatible"):
        sys.exit(f"it is of version {manifest['version']}, here is {trt.__version__}: see README.txt")
    return path, manifest


def classified(engine: Engine, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the most probable classes of one image; a batch larger than 1 is filled with copies of it."""
    if not (FOLDER / "input.json").is_file() or len(engine.inputs) > 1:
        sys.exit("no input.json says how an image becomes the one input: --arrays takes arrays")
    spec: Any = argparse.Namespace(**json.loads((FOLDER / "input.json").read_text("utf-8")))
    with Image.open(path) as image:
        one = to_sample(image, spec)
    (name,) = engine.inputs
    answers = engine.run({name: np.repeat(one[None], manifest["shapes"][name]["min"][0], axis=0)})
    # (N, classes) of floats are scores; the index of the best class, maps and boxes are none.
    scores = next((a[0] for a in answers.values() if a.ndim == 2 and a.dtype.kind == "f"), None)
    if scores is None or not np.isfinite(scores).all():
        sys.exit(f"{path}: no output is (N, classes) of finite scores; --arrays gives every output")
    scores, labels = scores.astype(np.float64), dict(enumerate(spec.labels))
    if (scores < 0).any() or abs(scores.sum() - 1) > 1e-3:  # else they are probabilities, as FP16 adds up
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    best = [int(index) for index in np.argsort(-scores, kind="stable")[:5]]
    top = [{"index": i, "label": labels.get(i), "probability": float(scores[i])} for i in best]
    return {"image": path, "top": top}


class Engine:
    """A loaded engine and its execution context; arrays are numpy by tensor name."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        log = trt.Logger(trt.Logger.ERROR)  # prints TensorRT's own reasons
        trt.init_libnvinfer_plugins(log, "")
        self.cuda, runtime = cuda_runtime(), trt.Runtime(log)
        runtime.engine_host_code_allowed = bool(manifest["features"].get("version_compatible"))
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        self.context = self.engine and self.engine.create_execution_context()
        if not self.context:
            sys.exit(f"{path.name} does not load on this device: build it again here, see README.txt")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.types = {n: np.dtype(trt.nptype(self.engine.get_tensor_dtype(n))) for n in names}

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Return every output of one batch, computed on CUDA's default stream."""
        if sorted(feeds) != sorted(self.inputs):
            sys.exit(f"the engine takes {self.inputs}, it was fed {sorted(feeds)}")
        given = {n: np.asarray(a, self.types[n], order="C") for n, a in feeds.items()}  # a scalar stays one
        for name, array in given.items():
            if not self.context.set_input_shape(name, array.shape):
                sys.exit(f"{name}: {array.shape} is outside the range that the engine was built for")
        shapes = {n: tuple(self.context.get_tensor_shape(n)) for n in self.types if n not in given}
        made = {n: np.empty(shape, self.types[n]) for n, shape in shapes.items()}
        memory = {n: ctypes.c_void_p() for n in self.types}
        for name, array in (given | made).items():
            self.cuda.cudaMalloc(ctypes.byref(memory[name]), max(1, array.nbytes))
            self.context.set_tensor_address(name, memory[name].value)
        for name, array in given.items():
            self.cuda.cudaMemcpy(memory[name], array.ctypes.data, array.nbytes, TO_DEVICE)
        if not self.context.execute_async_v3(0):
            sys.exit("the engine does not run on this device: build it again here, see README.txt")
        for name, array in made.items():
            self.cuda.cudaMemcpy(array.ctypes.data, memory[name], array.nbytes, TO_HOST)
        for pointer in memory.values():
            self.cuda.cudaFree(pointer)
        return made


def cuda_runtime() -> ctypes.CDLL:
    """Return the CUDA runtime, whose calls end the script where they fail."""
    for name in CUDA_LIBRARIES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            library.cudaMalloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
            library.cudaMemcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            for function in (library.cudaMalloc, library.cudaMemcpy, library.cudaFree):
                function.restype = lambda error: error and sys.exit(f"CUDA failed with error {error}")
            return library
    sys.exit(f"none of {', '.join(CUDA_LIBRARIES)} loads: put its folder into LD_LIBRARY_PATH")


if __name__ == "__main__":
    main()
