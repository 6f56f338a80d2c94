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
