"""Shared pytest set-up: where the data is, and nbval beside nbdev_clean."""
import json
import os
import tempfile
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent / "shared"
if "PAPERLIB_DATA" not in os.environ and (SHARED / "data").is_dir():
    os.environ["PAPERLIB_DATA"] = str(SHARED / "data")


def pytest_collection_modifyitems(items):
    """nbdev_clean drops execution counts, and nbval takes a cell without one for a cell that never ran."""
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("outputs") and cell.get("execution_count") is None:
            cell["execution_count"] = 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A paper's notebook under test has a folder of its own to work in, as it has when `paperlib run` executes it: two trainings of one name stop it here too."""
    if not hasattr(item, "cell"):
        if getattr(item.config, "_work_of", None):                            # a plain test after a notebook
            item.config._work_of = os.environ.pop("PAPERLIB_WORK", None) and None
    elif getattr(item.config, "_work_of", None) != item.path:
        item.config._work_of = item.path
        os.environ.pop("PAPERLIB_WORK", None)
        cells = json.loads(item.path.read_text(encoding="utf-8"))["cells"]
        if any("parameters" in cell["metadata"].get("tags", ()) for cell in cells):
            os.environ["PAPERLIB_WORK"] = tempfile.mkdtemp(prefix=f"{item.path.stem}-", dir=_work(item.config).name)


def _work(config):
    """One temporary folder a session, removed at its end."""
    if not hasattr(config, "_work"):
        config._work = tempfile.TemporaryDirectory(prefix="paperlib-nbval-", ignore_cleanup_errors=True)
        config.add_cleanup(config._work.cleanup)
    return config._work
