"""Recorded runs agree with themselves and with everything that quotes them."""

import json
import statistics
import subprocess

import pytest

import paperlib
from paperlib.core import paper as registry
from tests.conftest import ROOT

RUNS = [run for p in paperlib.papers() for run in registry.recorded(p.slug)]


def test_there_are_runs():
    assert RUNS


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.slug}/{r.name}")
def test_run_agrees_with_itself(run):
    paper = paperlib.paper(run.slug)
    preset = paper.preset(run.preset, run.overrides)
    stated = {k: v for k, v in run.values.items() if k not in registry.DESCRIPTIVE}
    assert stated == {k: getattr(preset, k) for k in stated}, "the preset has changed since this run was recorded"
    assert run.command == registry.command(run.slug, run.preset, run.seed, run.device, run.overrides)
    for metric, values in run.samples.items():
        assert run.metrics[metric] == pytest.approx(statistics.fmean(values.values()), abs=1e-12)
    folder = ROOT / "results" / run.slug / run.name
    assert sorted(p.stem for p in folder.glob("*.png")) == json.loads((folder / "run.json").read_text())["figures"]


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.slug}/{r.name}")
def test_run_comes_from_a_commit_of_this_history(run):
    assert run.dirty is False
    known = subprocess.run(["git", "merge-base", "--is-ancestor", run.commit, "HEAD"], cwd=ROOT, check=False).returncode
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    if shallow == "true":
        pytest.skip("a shallow clone does not hold the history")
    assert known == 0


def test_weights_have_cards_that_load():
    cards = registry.weights_list()
    assert cards
    for card in cards:
        model = paperlib.load(card["paper"], card["name"])
        assert sum(p.numel() for p in model.parameters()) == card["parameters"]
        assert not model.training
    size = sum(f.stat().st_size for f in (ROOT / "data" / "weights").iterdir())
    assert size < 40e6
