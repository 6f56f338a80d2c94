"""The command line as a user meets it: results, one clear line for a wrong call, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paperlib
from paperlib import cli
from paperlib.core import data
from paperlib.core import notebooks as nb_tools
from paperlib.core import paper as registry
from tests.conftest import ROOT

SHORT = ["-o", "steps=4", "-o", "batch_size=2", "-o", "widths=4,2"]


def call(*words: str, env: dict | None = None, timeout: float = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run ``paperlib`` as a process of its own."""
    return subprocess.run([sys.executable, "-m", "paperlib", *words], capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False,
                          env=os.environ | {"PYTHONPATH": str(cwd)} | (env or {}))


def one_line(done: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    """Assert one line on stderr, nothing on stdout, and an exit code."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not done.stdout.strip()
    for part in parts:
        assert part in done.stderr


def test_import_is_light_and_fast():
    probe = "import time; t = time.process_time(); import paperlib; s = time.process_time() - t; import sys; print(s, 'torch' in sys.modules)"
    seconds, torch_there = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert torch_there == "False"
    assert float(seconds) < 0.3


@pytest.mark.parametrize("words, parts", [
    (["run", "srcn"], ["'srcn'", "did you mean 'srcnn'?"]),
    (["run", "srcnn", "-p", "smal"], ["'smal'", "did you mean 'small'?"]),
    (["run", "srcnn", "-o", "step=3"], ["'step'", "did you mean 'steps'?"]),
    (["run", "srcnn", "-o", "steps=many"], ["steps='many'", "expected int"]),
    (["run", "srcnn", "-o", "lr=nan"], ["lr=", "expected float, got one that is not finite"]),
    (["run", "srcnn", "-o", "lr=-inf"], ["lr='-inf'", "expected float, got one that is not finite"]),
    (["run", "srcnn", "-o", "filters=9,5"], ["filters=", "expected tuple[int, int, int]"]),
    (["run", "srcnn", "-o", "steps"], ["-o steps", "expected key=value"]),
    (["run", "srcnn", "-s", "-1"], ["--seed -1"]),
    (["run", "srcnn", "-d", "tpu"], ["tpu"]),
    (["show", "swin"], ["no paper named 'swin'"]),
    (["data", "get", "set55"], ["set55"]),
    (["check", "nothing.ipynb"], ["nothing.ipynb"]),
    (["check", "--notes", "absent.tsv"], ["absent.tsv"]),
    (["new", "Bad-Slug", "-f", "superres"], ["'Bad-Slug'"]),
    (["new", "srcnn", "-f", "superres"], ["exists already"]),
    (["weights", "convert", "srcnn", "absent.mat", "x.safetensors"], ["absent.mat"]),
    (["weights", "convert", "srcnn", "absent.mat", "x.pt"], ["x.pt", ".safetensors"]),
])
def test_wrong_call_is_one_line(words, parts):
    one_line(call(*words), 2, *parts)


UNSOUND = {  # paper -> an override that its `require_sound` (or its preset) refuses, and no rule of types does
    "perspective": "booster=trees", "diffusiondepth": "truth=foo", "swinir": "loss=l3", "bayesr": "mode=loud", "mae": "mask=stripes", "simvp": "data=foo", "swinlstm": "data=foo",
    "phydnet": "data=foo", "visionts": "data=foo", "nerf": "lr=0", "gaussian_splatting": "start=middle", "eigen": "optimizer=lion", "srcnn": "data=foo", "srforest": "data=foo", "depthsr": "data=foo",
}


@pytest.mark.parametrize("slug", [p.slug for p in paperlib.papers()])
def test_a_value_that_cannot_work_is_refused_before_a_kernel_starts(slug, monkeypatch, capsys, tmp_path):
    key, _, value = UNSOUND[slug].partition("=")
    began = lambda *a, **k: pytest.fail("work was begun")
    monkeypatch.setattr(nb_tools, "_execute", began)
    monkeypatch.setattr(registry, "perform", began)
    monkeypatch.setattr(cli.signal, "signal", lambda *a: None)
    monkeypatch.setattr(sys, "argv", ["paperlib", "run", slug, "-o", UNSOUND[slug], "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 2 and not said.out and len(said.err.strip().splitlines()) == 1, said.err
    assert said.err.startswith("paperlib: ") and f"{key}={value}" in said.err.replace("'", "").replace("=0.0", "=0")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"{key}="):
        paperlib.reproduce(slug, **{key: value})


@pytest.mark.parametrize("slug, change", [
    ("eigen", {}), ("eigen", {"data": "kitti", "layout": "kitti"}), ("perspective", {}), ("diffusiondepth", {}), ("diffusiondepth", {"data": "nyu"}), ("srcnn", {}),
    ("srcnn", {"data": "authors"}), ("srforest", {}), ("depthsr", {}), ("swinir", {}), ("bayesr", {}), ("mae", {}), ("simvp", {}), ("simvp", {"data": "kth"}), ("swinlstm", {"data": "taxibj"}),
    ("phydnet", {"data": "human36m"}), ("visionts", {}), ("nerf", {}), ("gaussian_splatting", {}),
])
def test_a_set_that_is_not_here_is_named_before_a_kernel_starts(slug, change, monkeypatch, tmp_path):
    monkeypatch.setattr(nb_tools, "_execute", lambda *a, **k: pytest.fail("work was begun"))
    monkeypatch.setattr(data, "data_roots", lambda: {"data": tmp_path})
    with pytest.raises((FileNotFoundError, ValueError), match="was not found|no such folder"):
        nb_tools.run_notebook(registry.paper(slug), preset="paper", overrides=change, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_usage_errors_exit_2():
    for words in (["run"], ["run", "srcnn", "--sed", "1"], ["frobnicate"], ["run", "srcnn", "-s", "one"]):
        assert call(*words).returncode == 2


@pytest.mark.parametrize("words", [[], ["run"], ["report"], ["check"], ["new"], ["data", "get"], ["weights", "convert"]])
def test_help_has_an_example(words):
    done = call(*words, "--help")
    assert done.returncode == 0
    assert not words or "Example" in done.stdout


def test_list_show_report_speak_json():
    listed = json.loads(call("list", "--json").stdout)
    assert [row["paper"] for row in listed] == [p.slug for p in paperlib.papers()]
    shown = json.loads(call("show", "srcnn", "--json").stdout)
    assert [c["claim"] for c in shown["claims"]] == [c.id for c in paperlib.paper("srcnn").claims]
    rows = json.loads(call("report", "--claims", "--json").stdout)
    assert {row["verdict"] for row in rows} <= set(registry.VERDICTS)
    assert call("report", "--csv").stdout.splitlines()[0].startswith("family,paper,")
    assert {row["name"] for row in json.loads(call("data", "list", "--json").stdout)} >= {"photos", "t91", "set5"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The out folder of one short run."""
    out = tmp_path_factory.mktemp("out")
    done = call("run", "srcnn", *SHORT, "-s", "3", "-d", "cpu", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["seed"], made["overrides"]) == (3, {"batch_size": 2, "steps": 4, "widths": [4, 2]})
    return out


def test_run_leaves_notebook_page_card_and_nothing_else(finished):
    (folder,) = (finished / "srcnn").iterdir()
    assert folder.name == "smoke-cpu-s3-batch_size=2-steps=4-widths=4,2"
    names = {p.name for p in folder.iterdir()}
    assert names == {"srcnn.ipynb", "srcnn.html", "run.json", "weights"}
    assert not [p for p in finished.iterdir() if p.name not in ("srcnn", ".work")]
    card = json.loads((folder / "run.json").read_text())
    nb = nb_tools.read_notebook(folder / "srcnn.ipynb")
    assert nb_tools.find_run(nb).metrics == card["metrics"]
    page = (folder / "srcnn.html").read_text()
    assert "<math" in page and "<script src" not in page and "data:image/png;base64" in page


def test_finished_run_is_kept_when_the_next_fails(finished):
    (folder,) = [p for p in (finished / "srcnn").iterdir() if p.is_dir()]
    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = call("run", "srcnn", *SHORT, "-s", "3", "-d", "cpu", "-o", "filters=9,1,4", "--out", str(finished))
    assert done.returncode == 1
    assert "filters=(9, 1, 4)" in done.stderr and ".failed.ipynb" in done.stderr.replace("\n", "")
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_there(finished, how):
    (folder,) = [p for p in (finished / "srcnn").iterdir() if p.is_dir()]
    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    words = [sys.executable, "-m", "paperlib", "run", "srcnn", *SHORT, "-s", "3", "-d", "cpu", "--out", str(finished)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with SIGINT ignored, CI among them
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert "cell" in process.stderr.readline()  # the kernel is at work
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert [line for line in said.splitlines() if ": cell " not in line] == [line for line in said.splitlines() if "interrupted" in line] != []
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not list(finished.glob(".work/srcnn/*.made"))


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    one_line(call("run", "srcnn", *SHORT, "--out", str(tmp_path / "out")), 1, "out")


def test_disk_full_leaves_the_old_run(finished, monkeypatch, tmp_path):
    (folder,) = [p for p in (finished / "srcnn").iterdir() if p.is_dir()]
    out = tmp_path / "out"
    shutil.copytree(folder, out / "srcnn" / folder.name)
    before = {p.name: p.read_bytes() for p in (out / "srcnn" / folder.name).rglob("*") if p.is_file()}

    def executed(source, target, *_):
        shutil.copy(folder / "srcnn.ipynb", target)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run.json")

    monkeypatch.setattr(nb_tools, "_execute", executed)
    monkeypatch.setattr(nb_tools, "write_card", full)
    run = lambda: nb_tools.run_notebook(paperlib.paper("srcnn"), "smoke", 3, "cpu", {"steps": 4, "batch_size": 2, "widths": (4, 2)}, out)
    with pytest.raises(OSError, match="No space left"):
        run()
    monkeypatch.undo()
    monkeypatch.setattr(nb_tools, "_execute", executed)
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: full() if str(a).endswith(".made") else rename(a, b))
    with pytest.raises(OSError, match="No space left"):
        run()
    assert {p.name: p.read_bytes() for p in (out / "srcnn" / folder.name).rglob("*") if p.is_file()} == before
    assert [p.name for p in (out / "srcnn").iterdir()] == [folder.name]
    assert not list(out.glob(".work/srcnn/*.made"))
    monkeypatch.setattr(os, "rename", rename)
    assert run()[1] == out / "srcnn" / folder.name


def test_a_second_equal_run_waits_for_nobody(finished, tmp_path):
    name = "smoke-cpu-s3-batch_size=2-steps=4-widths=4,2"
    with nb_tools._locked(tmp_path / ".work" / "srcnn" / f"{name}.lock"):
        one_line(call("run", "srcnn", *SHORT, "-s", "3", "-d", "cpu", "--out", str(tmp_path)), 1, "another run of", name)


@pytest.mark.parametrize("value", ["/x", "../../up", "a b", "数据", "x" * 300])
def test_an_override_never_becomes_a_path(value):
    name = registry.run_name("smoke", "cpu", 0, {"data": value})
    assert Path(name).name == name and len(name) < 160
    assert registry.run_name("smoke", "cpu", 0, {"data": value + "y"}) != name


def test_a_folder_without_our_stamp_is_never_emptied(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with nb_tools._work(tmp_path, "abc"):
        pass
    with nb_tools._work(tmp_path, "abc"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": []}', '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
                                     '{"cells": [{"cell_type": "code", "source": "x = (", "metadata": {"tags": ["parameters"]}, "outputs": [],'
                                     ' "execution_count": null}], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}'])
def test_odd_notebooks_are_judged_or_refused_in_a_line(tmp_path, content):
    path = tmp_path / "superres" / "odd.ipynb"
    path.parent.mkdir()
    path.write_text(content)
    done = call("check", str(path))
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 1
    assert "odd.ipynb" in done.stdout + done.stderr


def test_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    words = ["run", "srcnn", "-o", "steps=900", "-o", "batch_size=2", "-o", "widths=4,2", "-d", "cpu"]
    whole = call(*words, "--out", str(tmp_path / "whole"), "--json")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([sys.executable, "-m", "paperlib", *words, "--out", str(tmp_path / "cut")], cwd=ROOT, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (found := list((tmp_path / "cut").glob(".work/srcnn/*/*.pt"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert found, "no checkpoint was written"
    assert not (tmp_path / "cut" / "srcnn").exists()
    again = call(*words, "--out", str(tmp_path / "cut"), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["metrics"] == json.loads(whole.stdout)["metrics"]
    weights = [next((tmp_path / name).glob("srcnn/*/weights/*.safetensors")).read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_recording_and_reporting(finished, tmp_path, monkeypatch):
    (folder,) = [p for p in (finished / "srcnn").iterdir() if p.is_dir()]
    monkeypatch.setenv("PAPERLIB_RESULTS", str(tmp_path))
    run = registry.Run.from_dict(json.loads((folder / "run.json").read_text()) | {"figures": {}})
    kept = nb_tools.record_run(run, folder)
    assert [r.name for r in registry.recorded("srcnn")] == [kept.name] == [folder.name]
    (kept / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run.json cannot be read"):
        registry.recorded("srcnn")
    one_line(call("list", env={"PAPERLIB_RESULTS": str(tmp_path)}), 2, "run.json cannot be read")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A checkout of its own, to write into."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md", "nbs", "paperlib", "data", "results"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / name)
    return root


def test_report_check_sees_a_changed_result(copy):
    assert call("report", "--check", cwd=copy).returncode == 0
    card = next((copy / "results" / "srcnn").glob("*data=authors/run.json"))
    plain = json.loads(card.read_text())
    for values in plain["samples"].values():
        values.update({k: v + 0.5 for k, v in values.items()})
    plain["metrics"] = {k: v + 0.5 for k, v in plain["metrics"].items()}
    card.write_text(json.dumps(plain))
    done = call("report", "--check", cwd=copy)
    assert done.returncode == 1
    assert "README.md" in done.stderr and "srcnn.ipynb" in done.stderr


def test_new_paper_exports_runs_and_names_what_is_left(copy):
    done = call("new", "demo", "-f", "superres", "-t", 'A "demo"\\', "--title-zh", '演"示"', cwd=copy)
    assert done.returncode == 0, done.stderr
    exporter = Path(sys.executable).with_name("nbdev_export")
    subprocess.run([exporter], cwd=copy, check=True, capture_output=True)
    assert "demo" in call("list", cwd=copy).stdout
    done = call("run", "demo", "-d", "cpu", cwd=copy)
    assert done.returncode == 0, done.stderr
    problems = call("check", "demo", cwd=copy).stdout
    assert "[unfinished]" in problems and "[size]" in problems
    assert "[parameters]" not in problems and "[default-exp]" not in problems and "[imports]" not in problems


def test_check_names_file_cell_and_rule(copy):
    path = copy / "nbs" / "superres" / "srcnn.ipynb"
    nb = json.loads(path.read_text())
    cell = next(c for c in nb["cells"] if c["id"] == "srcnn")
    cell["source"] = "x = 1\n" * 50
    path.write_text(json.dumps(nb))
    done = call("check", cwd=copy)
    assert done.returncode == 1
    assert "superres/srcnn.ipynb  cell srcnn  [cell-length]" in done.stdout
    assert "[outputs]" in done.stdout
    assert "paperlib/superres/srcnn.py  cell -  [exports]" in done.stdout


def test_notes_without_a_cell_are_named(tmp_path):
    table = tmp_path / "points.tsv"
    table.write_text("id\tkind\tlines\tbegins\nsrcnn.4.1\ttext\t1\tone\nsrcnn.9.9\ttext\t2\tnowhere\nother.1.1\ttext\t3\tother\n")
    done = call("check", "srcnn", "--notes", str(table))
    assert "no cell holds srcnn.9.9: nowhere" in done.stdout
    assert "srcnn.4.1:" not in done.stdout and "other.1.1" not in done.stdout


def test_weights_convert(shared, tmp_path):
    source = shared / "data" / "srcnn_weights" / "9-1-5_t91_x3.mat"
    done = call("weights", "convert", "srcnn", str(source), str(tmp_path / "w.safetensors"))
    assert done.returncode == 0, done.stderr
    from paperlib.core.training import load_weights

    state, card = load_weights(tmp_path / "w.safetensors")
    assert card["model"] == "SRCNN" and state["layers.0.weight"].shape == (64, 1, 9, 9)


def test_weights_convert_a_state_dict_with_settings(tmp_path):
    import torch

    from paperlib.core.training import load_weights
    from paperlib.sequence.phydnet import PhyDNet
    from paperlib.sequence.swinlstm import SwinLSTM

    def converted(slug, state, *settings):
        torch.save(state, tmp_path / "official.pth")
        done = call("weights", "convert", slug, str(tmp_path / "official.pth"), str(tmp_path / "w.safetensors"), *settings)
        return done.stderr.strip() or load_weights(tmp_path / "w.safetensors")

    net = PhyDNet(hidden=(128, 128, 64))
    state, card = converted("phydnet", net.to_official())
    assert card["model"] == "PhyDNet" and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    small = SwinLSTM(16, 2, 1, 16, (2,), None, (2,), 4)
    state, card = converted("swinlstm", small.to_official(), "-o", "img_size=16", "-o", "patch_size=2", "-o", "embed_dim=16", "-o", "depths=(2,)", "-o", "num_heads=(2,)")
    assert card["config"]["depths"] == [2] and all(torch.equal(v, state[k]) for k, v in small.state_dict().items())
    assert "does not tell shape_in: give -o shape_in=" in converted("simvp", {"a": torch.zeros(1)})
    assert "'width': NeRF" not in converted("nerf", {"a": torch.zeros(1)}, "-o", "width")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    done = call("weights", "convert", "phydnet", str(tmp_path / "bad.pth"), str(tmp_path / "x.safetensors"))
    assert done.returncode != 0 and "bad.pth: no weights that can be read" in done.stderr and not (tmp_path / "x.safetensors").exists()
