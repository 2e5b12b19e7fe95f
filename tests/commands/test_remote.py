"""`--remote` over a real sshd: what runs there is as if it ran here."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading

import fake_device
import loopback
import numpy as np
import pytest
import test_predict_kinds as kinds
import use_graphs

from se_deploy.backends import manifest as manifests
from se_deploy.cli import main
from se_deploy.deploy import ssh
from se_deploy.errors import BadInput

SLOW = pytest.mark.slow


def call(*words):
    """Run a command in this process: its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, words)], standalone_mode=False)
    return code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with loopback.device(tmp_path_factory.mktemp("device")) as made:
        yield made


@pytest.fixture
def device(running):
    yield running
    assert not running.temporary


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a network and data, in a name that a shell would take apart."""
    folder = tmp_path / "it's; $(touch broken) here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    use_graphs.save(folder / "net.onnx")
    use_graphs.save(folder / "o'the r.onnx")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32))
    (folder / "red photos").mkdir()
    use_graphs.image(folder / "red photos" / "a b.png")
    return folder


@loopback.NEEDED
@SLOW
def test_parity_there_is_parity_here(device, work):
    words = ("parity", "net.onnx", "o'the r.onnx", "--data", "x.npy", "--json", "--atol", "y:1e-3")
    code, out, err = call(*words, *device.words)
    assert (code, json.loads(out)["remote"]) == (0, loopback.HOST), err
    here = json.loads(call(*words)[1])
    assert json.loads(out) == here | {"remote": loopback.HOST}
    assert not list(work.glob("broken"))
    photos = ("parity", "net.onnx", "net.onnx", "--data", "red photos", "--json")
    code, out, _ = call(*photos, *device.words)
    assert (code, json.loads(out)["candidates"][0]["samples"]) == (0, 1)


@loopback.NEEDED
@SLOW
def test_a_gate_that_fails_there_is_exit_3_here(device, work):
    use_graphs.save(work / "other.onnx", use_graphs.SE)
    code, out, err = call("parity", "net.onnx", "other.onnx", "--data", "x.npy", *device.words)
    assert code == 3
    assert "failed: other.onnx:" in err
    assert "Parity with net.onnx" in out


@loopback.NEEDED
@SLOW
def test_its_junit_names_the_files_as_given(device, work):
    words = ("parity", "net.onnx", "o'the r.onnx", "--data", "x.npy", "--junit")
    assert call(*words, "there.xml", *device.words)[0] == call(*words, "here.xml")[0] == 0
    assert (work / "there.xml").read_text() == (work / "here.xml").read_text()
    code, _, err = call(*words, "there.xml", *device.words)
    assert (code, "'there.xml' exists already" in err) == (1, True)
    assert call(*words, "there.xml", "--overwrite", *device.words)[0] == 0


@loopback.NEEDED
@SLOW
def test_an_empty_folder_is_called_empty(device, work):
    (work / "empty").mkdir()
    words = ("parity", "net.onnx", "net.onnx", "--data", "empty")
    code, _, err = call(*words, *device.words)
    assert (code, err) == (1, call(*words)[2].replace("error: ", f"error: {loopback.HOST}: "))


@pytest.fixture
def login(device):
    """The script that the device's login shell reads first, which is bash here."""
    yield device.folder / ".bashrc"
    (device.folder / ".bashrc").unlink()


@loopback.NEEDED
@SLOW
def test_a_shell_that_greets_changes_nothing(device, work, login):
    login.write_text("echo hello; echo '{}'; echo warning >&2\n")
    words = ("parity", "net.onnx", "o'the r.onnx", "--data", "x.npy", "--json")
    code, out, err = call(*words, *device.words)
    assert (code, json.loads(out)) == (0, json.loads(call(*words)[1]) | {"remote": loopback.HOST}), err
    assert "hello" not in err


@loopback.NEEDED
def test_a_shell_that_runs_nothing_is_an_error(device, work, login):
    login.write_text("echo This account is closed.; exit 0\n")
    code, _, err = call("profile", "net.onnx", *device.words)
    assert (code, "its login shell runs no command: This account is closed." in err) == (1, True)


@loopback.NEEDED
@pytest.mark.parametrize("printed", ["[1]", "1", "oops"])
def test_a_device_that_answers_no_object_is_an_error(own, work, printed):
    own.install(f"#!/bin/sh\necho '{printed}'\n")
    code, _, err = call("profile", "net.onnx", *own.words)
    assert (code, "exit code 0 and no result" in err) == (1, True)
    assert not own.temporary


@loopback.NEEDED
@SLOW
def test_images_of_a_folder_are_predicted_there(device, work):
    words = ("predict", "net.onnx", "red photos/a b.png", "--json", "--top", "1")
    code, out, err = call(*words, *device.words)
    assert code == 0, err
    assert json.loads(out)["predictions"] == json.loads(call(*words)[1])["predictions"]
    assert json.loads(out)["predictions"][0]["image"] == "red photos/a b.png"


@loopback.NEEDED
@SLOW
def test_masks_that_are_drawn_there_come_here(device, work):
    kinds.save(work / "mask.onnx", kinds.TWO_CLASSES, "float[N,2,8,8] scores")
    words = ("predict", "mask.onnx", "red photos/a b.png", "--json")
    code, out, err = call(*words, *device.words)
    assert code == 0, err
    there = (work / "a b.mask.png").read_bytes()
    code, refused, _ = call(*words, *device.words)
    assert (code, "exists already" in json.loads(refused)["error"]["message"]) == (1, True)
    assert json.loads(out)["predictions"] == json.loads(call(*words, "--overwrite")[1])["predictions"]
    assert there == (work / "a b.mask.png").read_bytes()
    code, out, err = call(*words, "--masks", "drawn here", *device.words)
    assert (code, json.loads(out)["predictions"][0]["mask"]) == (0, "drawn here/a b.mask.png"), err
    assert (work / "drawn here" / "a b.mask.png").read_bytes() == there


@loopback.NEEDED
@SLOW
def test_profile_names_the_file_as_given_and_the_host(device, work):
    words = ("profile", "net.onnx", "--warmup-ms", "1", "--duration-s", "0.05", "--json", "-v")
    code, out, err = call(*words, *device.words)
    assert code == 0, err
    said = json.loads(out)
    assert (said["artifacts"][0]["path"], said["remote"]) == ("net.onnx", loopback.HOST)
    assert "profile ..." in err  # -v, as it is said there


@loopback.NEEDED
@SLOW
def test_an_engine_built_there_comes_back_whole(device, work):
    pytest.importorskip("tensorrt_rtx")
    (work / "out").mkdir()
    words = ("build-engine", "net.onnx", "-o", "out/net.engine", "--no-rewrites", "--calib-cache", "c.json")
    code, out, err = call(*words, "--json", *device.words)
    assert code == 0, err
    assert json.loads(out)["engine"] == "net.engine"
    names = {path.name for path in (work / "out").iterdir()}
    assert names == {"net.engine", "net.engine.json", "net.engine.onnx"}
    assert call("inspect", "out/net.engine")[0] == 0  # the hashes agree
    code, _, err = call(*words, *device.words)
    assert (code, "exists already" in err) == (1, True)
    assert call(*words, "--overwrite", *device.words)[0] == 0


@loopback.NEEDED
@SLOW
def test_an_error_there_is_an_error_here(device, work):
    (work / "bad.onnx").write_bytes(b"junk")
    (work / "x.png").write_bytes(b"no image")
    code, out, _ = call("predict", "net.onnx", "x.png", "--json", *device.words)
    error = json.loads(out)["error"]
    assert (code, error["kind"]) == (1, "BadData")
    assert error["message"].startswith(f"{loopback.HOST}: the image 'x.png' cannot be read")
    code, _, err = call("profile", "bad.onnx", *device.words)
    assert (code, "bad.onnx" in err) == (1, True)


@loopback.NEEDED
@SLOW
def test_a_device_without_the_tool_says_what_to_do(device, work):
    words = ("--remote", loopback.HOST, "--ssh-config", device.config, "--remote-program", "/no/such program")
    code, _, err = call("profile", "net.onnx", *words)
    assert code == 1
    assert "'/no/such program' was not found there" in err


@loopback.NEEDED
@fake_device.CC
@SLOW
def test_without_the_tool_a_bundle_s_script_runs_an_engine(tmp_path, work):
    onnx = use_graphs.save(work / "net.engine.onnx")
    (work / "net.engine").write_bytes(b"a plan")
    described = use_graphs.manifest(work / "net.engine", onnx, runtime="tensorrt")
    manifests.write(described, work / "net.engine.json")
    there = fake_device.make(tmp_path / "hardware")
    python = tmp_path / "hardware" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    there["PATH"] = f"{tmp_path / 'hardware'}:{os.defpath}"
    (tmp_path / "machine").mkdir()
    with loopback.device(tmp_path / "machine", **there) as machine:
        words = ("--remote", loopback.HOST, "--ssh-config", machine.config)
        images = ("red photos/a b.png", "--json", "--top", "2")
        code, out, _ = call("predict", "net.engine", *images, *words, "--remote-program", "/none")
        assert code == 0, out
        said = json.loads(out)
        assert (said["runtime"], said["device"], said["remote"]) == ("tensorrt", "device", "device")
        assert "the bundle's own run_engine.py ran the engine" in said["warnings"][0]
        here = json.loads(call("predict", "net.engine.onnx", *images)[1])["predictions"]
        assert said["predictions"][0]["image"] == "red photos/a b.png"
        for got, want in zip(said["predictions"][0]["top"], here[0]["top"], strict=True):
            assert got == want | {"probability": pytest.approx(want["probability"], rel=1e-5)}
        (tmp_path / "hardware" / "tensorrt.py").write_text("__version__ = '10.7.0'\n")
        code, out, _ = call("predict", "net.engine", *images, *words, "--remote-program", "/none")
        assert (code, machine.temporary) == (1, [])
        assert "here is 10.7.0" in json.loads(out)["error"]["message"]


STUCK = """#!/bin/sh
echo "one" >&2
touch "{folder}/begun"
while [ ! -e "{folder}/go" ]; do sleep 0.05; done
echo "two" >&2
echo '{{"schema": "se-deploy/profile/1", "tool_version": "1", "warnings": [], "artifacts": []}}'
exit 3
"""


@pytest.fixture
def own(tmp_path_factory):
    """A device of one's own, whose program waits for a file `go`."""
    with loopback.device(tmp_path_factory.mktemp("own")) as made:
        made.install(STUCK.format(folder=made.folder))
        yield made


@loopback.NEEDED
@SLOW
def test_a_line_that_breaks_is_taken_up_again_where_it_broke(own, work):
    def break_it():
        loopback.wait_until((own.folder / "begun").exists)
        loopback.wait_until(own.cut)
        (own.folder / "go").touch()

    helper = threading.Thread(target=break_it)
    helper.start()
    code, out, err = call("profile", "net.onnx", "--json", *own.words)
    helper.join()
    assert (code, json.loads(out)["remote"]) == (3, loopback.HOST)
    assert [line for line in err.splitlines() if line in {"one", "two"}] == ["one", "two"]
    assert not own.temporary


@loopback.NEEDED
@SLOW
def test_a_device_that_is_gone_leaves_no_half_file_and_is_told(own, work, monkeypatch):
    monkeypatch.setattr(ssh, "_PAUSES_S", (0, 0))

    def stop_it():
        loopback.wait_until((own.folder / "begun").exists)
        own.stop()

    helper = threading.Thread(target=stop_it)
    helper.start()
    before = sorted(work.rglob("*"))
    code, _, err = call("build-engine", "net.onnx", "-o", "net.engine", *own.words)
    helper.join()
    (left,) = own.temporary
    assert code == 1
    assert f"{own.folder}/scratch/{left}' is left there" in err
    assert "rm -rf" in err
    assert sorted(work.rglob("*")) == before
    (own.folder / "go").touch()  # lets what was started end


@loopback.NEEDED
@SLOW
def test_an_interrupt_ends_what_runs_there(own, work, monkeypatch):
    def follow(*_):
        loopback.wait_until((own.folder / "begun").exists)
        raise KeyboardInterrupt

    monkeypatch.setattr(ssh.Host, "follow", follow)
    code, _, err = call("profile", "net.onnx", *own.words)
    assert (code, "interrupted" in err) == (130, True)
    assert not own.temporary
    running = subprocess.run(["pgrep", "-f", str(own.program)], check=False, capture_output=True)
    assert running.returncode == 1  # nothing


@loopback.NEEDED
def test_an_unknown_host_key_is_refused(own, work):
    (own.folder / "known").write_text("")
    code, _, err = call("profile", "net.onnx", *own.words)
    assert (code, "Host key verification failed" in err) == (1, True)
    assert not own.temporary


@pytest.mark.parametrize("name", ["-oProxyCommand=touch x", "a b", "user@-x", "", "h;ls", "$(ls)", "a@b@c"])
def test_what_is_no_host_reaches_no_ssh(name):
    with pytest.raises(BadInput, match="is no host"):
        ssh.Host(name)


def test_lists_of_files_and_code_do_not_travel(work):
    (work / "list.txt").write_text("red photos/a b.png 0\n")
    (work / "net.py").write_text("def make(): ...\n")
    words = ("--remote", "nowhere.invalid")
    code, _, err = call("parity", "net.onnx", "net.onnx", "--data", "list.txt", *words)
    assert (code, "lists files by their paths here" in err) == (1, True)
    code, _, err = call("parity", "net.py:make", "net.onnx", "--data", "x.npy", *words)
    assert (code, "does not travel" in err) == (1, True)


def test_outputs_that_exist_are_refused_before_the_device_is_asked(work):
    (work / "net.engine.json").touch()
    code, _, err = call("build-engine", "net.onnx", "-o", "net.engine", "--remote", "nowhere.invalid")
    assert (code, "'net.engine.json' exists already" in err) == (1, True)
