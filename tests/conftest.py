"""What several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; without it a test skips, in CI it fails."""
    if not SHARED.is_dir():
        message = "needs the reference data in ../shared"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the contract's papers to the workers one by one and keep every other file whole, whose fixtures are then made once (``--dist loadgroup``)."""
    for item in items:
        slug = getattr(item, "callspec", None) and item.callspec.params.get("slug")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{slug}" if slug and item.path.stem == "test_contract" else item.path.stem))
