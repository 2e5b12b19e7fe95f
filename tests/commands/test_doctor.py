import pytest

from se_deploy import schema
from se_deploy.backends import registry
from se_deploy.backends.tensorrt import gpu
from se_deploy.cli import main
from se_deploy.commands import doctor
from se_deploy.commands.doctor import Probe

GONE = Probe(None, "ModuleNotFoundError: No module named 'x'")
BACKENDS = {backend.name: backend for backend in registry.every()}
HERE = {name: Probe({"version": "1.0"}) for name in (*doctor._PACKAGES, *BACKENDS)} | {
    "onnxruntime": Probe(
        {"version": "1.31", "works": ["CPUExecutionProvider"], "installed": ["onnxruntime"]}
    ),
    "tensorrt-rtx": Probe({"version": "1.7", "targets": ["sm86"]}),
    "tensorrt": Probe({"version": "10.13", "strongly_typed": True}),
    "gpu": Probe(
        {
            "error": "cudaSuccess",
            "count": 1,
            "sm": "86",
            "name": "NVIDIA A10",
            "driver": 13000,
            "bindings": 13050,
        }
    ),
}
OLD = {"error": "cudaErrorInsufficientDriver", "count": 0, "sm": None, "name": None, "bindings": 13050}
NO_GPU = Probe(OLD | {"driver": 0})  # the bindings' error is the same without any driver


@pytest.fixture(autouse=True)
def no_gpu_but_the_one_told(monkeypatch):
    monkeypatch.setattr(gpu, "here", lambda: None)


def test_a_gpu_that_tensorrt_rtx_does_not_serve_runs_none_of_its_engines(monkeypatch):
    assert any("TensorRT-RTX engines" in line for line in conclude(HERE).can_run)
    monkeypatch.setattr(gpu, "here", lambda: gpu.Gpu("NVIDIA H100", 90, 3352.0))
    assert not any("TensorRT-RTX engines" in line for line in conclude(HERE).can_run)
    assert any("TensorRT engines" in line for line in conclude(HERE).can_run)


def conclude(found, **facts):
    return doctor.conclude(found, BACKENDS, **facts)


def states(diagnosis):
    return {check.name: check.state for check in diagnosis.checks}


def test_where_everything_is_everything_can_be_done():
    found = conclude(HERE)
    assert set(states(found).values()) == {"ok"}
    assert any("TensorRT 10.13" in line for line in found.can_build)
    assert {"TensorRT-RTX engines", "TensorRT engines"} <= set(found.can_run)


def test_without_a_gpu_rtx_still_builds_and_nothing_pretends_to_run_it():
    found = conclude(HERE | {"gpu": NO_GPU})
    assert states(found)["gpu"] == "missing"
    assert len(found.can_build) == 1
    assert "without a GPU" in found.can_build[0]
    assert not any("engines" in line for line in found.can_run)


@pytest.mark.parametrize("name", HERE)
def test_what_is_missing_comes_with_its_command(name):
    found = conclude(HERE | {name: GONE})
    check = next(check for check in found.checks if check.name == name)
    assert check.state == "missing"
    assert check.fix


def test_what_is_there_but_broken_is_said_to_be():
    found = conclude(HERE | {"torch": Probe(None, "ImportError: libcudnn.so.9: cannot open")})
    check = next(check for check in found.checks if check.name == "torch")
    assert (check.state, check.detail) == ("broken", "ImportError: libcudnn.so.9: cannot open")


def test_an_old_driver_is_told_from_none():
    without = next(check for check in conclude(HERE | {"gpu": NO_GPU}).checks if check.name == "gpu")
    assert (without.state, without.detail) == ("missing", "no NVIDIA driver")
    old = conclude(HERE | {"gpu": Probe(OLD | {"driver": 12060})})
    check = next(check for check in old.checks if check.name == "gpu")
    assert check.state == "broken"
    assert "CUDA up to 12.6" in check.detail
    assert "CUDA 13.5" in check.detail
    assert "cuda-bindings==12.*" in check.fix
    assert not any("engines" in line for line in old.can_run)


def test_two_distributions_in_one_folder_are_said_to_exclude_each_other():
    both = {
        "version": "1.31",
        "works": ["CPUExecutionProvider"],
        "installed": ["onnxruntime", "onnxruntime-gpu"],
    }
    check = next(
        check for check in conclude(HERE | {"onnxruntime": Probe(both)}).checks if check.name == "onnxruntime"
    )
    assert check.state == "broken"
    assert "onnxruntime and onnxruntime-gpu write into one folder" in check.detail
    assert check.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_an_old_tensorrt_builds_nothing():
    found = conclude(HERE | {"tensorrt": Probe({"version": "8.6.1", "strongly_typed": False})})
    assert states(found)["tensorrt"] == "broken"
    assert not any("TensorRT 8.6" in line for line in found.can_build)


def test_on_jetson_tensorrt_comes_from_jetpack(tmp_path):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n")
    jetson = doctor._jetpack(release)
    assert jetson == "JetPack 6 (L4T 36.4.3)"
    found = conclude(HERE | {"tensorrt": GONE}, jetson=jetson)
    check = next(check for check in found.checks if check.name == "tensorrt")
    assert "system-site-packages" in check.fix
    assert jetson in found.checks[0].detail


def test_no_release_file_is_no_jetson_and_an_odd_one_is_said_so(tmp_path):
    assert doctor._jetpack(tmp_path / "none") is None
    (tmp_path / "odd").write_text("something else")
    assert doctor._jetpack(tmp_path / "odd") == "Jetson of an unknown release"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import no_such_module", "No module named"),
        ("import os; os.abort()", "exit status"),
        ("raise SystemExit(3)", "3"),
    ],
)
def test_a_package_that_fails_or_crashes_is_a_line(code, complaint):
    probe = doctor._probe(code)
    assert probe.answer is None
    assert complaint in probe.complaint


def test_the_probes_answer_on_this_machine():
    codes = {name: BACKENDS[name].check.code for name in ("onnxruntime", "tensorrt-rtx")}
    codes |= {"onnx": doctor._PACKAGES["onnx"][0], "gpu": doctor._GPU_PROBE}
    for name, code in codes.items():
        probe = doctor._probe(code)
        assert probe.answer is not None or "No module named" in probe.complaint, name


def test_json_has_one_entry_for_each_check():
    found = schema.builtins(conclude(HERE))
    assert set(found) == {"schema", "tool_version", "warnings", "checks", "can_build", "can_run", "gpus"}
    assert set(found["checks"][0]) == {"name", "state", "detail", "fix"}


@pytest.mark.parametrize(
    ("gone", "then"),
    [
        ((), "demo"),
        (("tensorrt", "gpu"), "demo"),  # TensorRT-RTX builds without a GPU
        (("torch",), "inspect"),
        (("onnxscript",), "inspect"),
        (("safetensors",), "inspect"),
        (("onnxruntime",), "inspect"),
        (("tensorrt", "tensorrt-rtx"), "inspect"),  # nothing builds
    ],
)
def test_what_it_says_to_type_next_runs_here(gone, then, monkeypatch, capsys):
    found = conclude(HERE | dict.fromkeys(gone, GONE))
    monkeypatch.setattr(doctor, "doctor", lambda: found)
    assert not main(["doctor"], standalone_mode=False)
    assert f"next: se-deploy {then} " in capsys.readouterr().err
