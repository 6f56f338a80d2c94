"""Shared pytest set-up: where the data is, and nbval beside nbdev_clean."""
import os
from pathlib import Path

SHARED = Path(__file__).resolve().parent.parent / "shared"
if "PAPERLIB_DATA" not in os.environ and (SHARED / "data").is_dir():
    os.environ["PAPERLIB_DATA"] = str(SHARED / "data")


def pytest_collection_modifyitems(items):
    """nbdev_clean drops execution counts, and nbval takes a cell without one for a cell that never ran."""
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("outputs") and cell.get("execution_count") is None:
            cell["execution_count"] = 1
