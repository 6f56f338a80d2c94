"""The calibration that every benchmark prints: its figures are positive, its rounds interleave, its output is JSON."""
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import calibrate


@pytest.fixture(scope="module")
def measured():
    return calibrate.calibrate(rounds=2)


def test_figures(measured):
    cpu = measured["cpu"]
    assert cpu["model"] and cpu["threads"] == torch.get_num_threads()
    assert set(cpu["features"]) == {"avx2", "avx512", "amx", "bf16"}
    assert len(cpu["measured"]) == 4
    for label, row in cpu["measured"].items():
        assert 0 < row["min"] <= row["median"] <= row["max"], label
        assert row["unit"] in ("GFLOP/s", "GB/s", "ms")
    assert (measured["gpu"] is None) == (not torch.cuda.is_available())


def test_features_agree_with_torch(measured):
    capability, features = measured["cpu"]["torch_capability"], measured["cpu"]["features"]
    if capability == "AVX512":
        assert features["avx512"] and features["avx2"]
    elif capability == "AVX2":
        assert features["avx2"]


def test_table_shows_what_was_measured(measured, capsys):
    assert calibrate.print_calibration(measured) is measured
    text = capsys.readouterr().out
    for label, row in measured["cpu"]["measured"].items():
        assert f"{label} " in text and row["unit"] in text
    assert measured["cpu"]["model"] in text
    assert json.loads(json.dumps(measured)) == measured


def test_rounds_interleave_each_in_an_order_of_its_own():
    calls = []
    seconds = calibrate.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=60, synchronize=lambda: calls.append("."))
    text = "".join(calls)
    rounds = {text[at : at + 4] for at in range(3, len(text), 4)}
    assert text.startswith("ab.") and rounds == {"a.b.", "b.a."}
    assert {name: len(s) for name, s in seconds.items()} == {"a": 60, "b": 60}


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="got 0"):
        calibrate.calibrate(rounds=0)


def test_rows_of_a_gpu_survive_a_record_without_one(tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.csv"
    file.write_text("what,value,note\nstep,1,old\n\"GPU, step\",9,an H200\n1 M on the GPU,7,an H200\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calibrate.report([("step", 2.0, "new")], file)
    assert file.read_text() == "what,value,note\nstep,2,new\n\"GPU, step\",9,an H200\n1 M on the GPU,7,an H200\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    calibrate.report([("step", 2.0, "new")], file)
    assert "GPU" not in file.read_text()
