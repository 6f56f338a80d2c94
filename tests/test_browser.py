"""One notebook in a real browser: every cell runs, and a control changes its picture."""
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))  # for browser.py beside this file
NOTEBOOK = "superres/srcnn.ipynb"
BUDGET_S = 240
KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}

SMALL = '''
import matplotlib.pyplot as plt
import numpy as np
import ipywidgets

def wave(shape, periods):
    t = np.linspace(0, 1, 200)
    figure, ax = plt.subplots(figsize=(4, 1.5))
    ax.plot(t, np.sign(np.sin(2 * np.pi * periods * t)) if shape == "square" else np.sin(2 * np.pi * periods * t))
    plt.show()

ipywidgets.interactive(wave, shape=["sine", "square"], periods=(1, 9))
'''


def _missing(what: str) -> None:
    """Skip with a reason; in CI a missing tool is a failure, or nobody would notice that the test is gone."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI is set: install it, this test must run there")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def tools():
    """The helper module and the path of Chromium."""
    if importlib.util.find_spec("playwright") is None:
        _missing("the package playwright")
    import browser

    chromium = browser.find_chromium()
    if chromium is None:
        _missing(f"Chromium (looked for {', '.join(browser.CHROMIUM_NAMES)} on the PATH)")
    return browser, chromium


def drive(tools, nbs: Path, notebook: str, state: Path, screenshot: Path) -> tuple[str, str, str]:
    """Run a notebook of the folder `nbs` in the browser; return for its first exploration the pictures before, moved, back."""
    browser, chromium = tools
    state.mkdir()
    deadline = browser.Deadline(BUDGET_S)
    screenshot.parent.mkdir(parents=True, exist_ok=True)
    with browser.open_lab(nbs, state, deadline) as lab, browser.open_browser(chromium) as window:
        page = browser.run_all(window, lab, notebook, deadline)
        try:
            assert browser.failures(nbs / notebook) == []
            assert browser.unrun(nbs / notebook) == []
            assert browser.explorations(page).count() >= 1, "no output with a control and a picture"
            return browser.move_control(browser.explorations(page).first, deadline)
        finally:
            page.screenshot(path=screenshot)


def test_controls_of_a_small_notebook(tools, tmp_path):
    """The helper itself, on a notebook whose picture stands in an Output widget."""
    nbs = tmp_path / "nbs"
    nbs.mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1"), new_code_cell(SMALL)], metadata=KERNEL), nbs / "small.ipynb")
    before, moved, back = drive(tools, nbs, "small.ipynb", tmp_path / "state", tmp_path / "small.png")
    assert moved != before
    assert back == before


def test_an_error_is_seen(tools, tmp_path):
    """A notebook that fails must fail here too, and name its cell."""
    browser, chromium = tools
    nbs, state, deadline = tmp_path / "nbs", tmp_path / "state", browser.Deadline(BUDGET_S)
    nbs.mkdir()
    state.mkdir()
    bad = new_code_cell("1 / 0")
    nbformat.write(new_notebook(cells=[bad, new_code_cell("2")], metadata=KERNEL), nbs / "bad.ipynb")
    with browser.open_lab(nbs, state, deadline) as lab, browser.open_browser(chromium) as window:
        browser.run_all(window, lab, "bad.ipynb", deadline)
    assert browser.failures(nbs / "bad.ipynb") == [f"{bad.id}: ZeroDivisionError: division by zero"]


def test_exploration_of_a_paper(tools, tmp_path):
    """The page that a reader opens first: Run All, then a key on a control, and the same key back."""
    nbs = tmp_path / "nbs"
    shutil.copytree(ROOT / "nbs", nbs, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    screenshot = ROOT / "out" / "browser" / f"{Path(NOTEBOOK).stem}.png"
    before, moved, back = drive(tools, nbs, NOTEBOOK, tmp_path / "state", screenshot)
    assert moved != before, "the picture did not follow its control"
    assert back == before, "one step there and back gave another picture: the drawing is not a pure function of its controls"
