"""What several test files share."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton's kernels run on CPU tensors; read when Triton is first imported, by whichever test or library comes first
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; without it a test skips, in CI it fails."""
    if not SHARED.is_dir():
        message = "needs the reference data in ../shared"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


@pytest.fixture
def held_between() -> Callable[..., int]:
    """Return a function that gives by how many bytes the tensors alive grow between two calls of ``net.step`` while something runs without gradients."""
    def measure(net: torch.nn.Module, run: Callable[[], object], first: int, last: int) -> int:
        held, calls, step = {}, iter(range(1, 10**6)), net.step

        def watched(*args, **options):
            if (t := next(calls)) in (first, last):
                gc.collect()
                held[t] = sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gc.get_objects() if type(x) is torch.Tensor}.values())
            return step(*args, **options)

        net.step = watched
        with torch.no_grad():
            run()
        return held[last] - held[first]

    return measure


@pytest.fixture
def blender_lego(tmp_path, monkeypatch) -> tuple[Path, object]:
    """Our own scene in a data folder, in the layout of ``nerf_synthetic/lego`` with a test set, 12 and 3 views of 16 pixels: its folder, and the views."""
    from paperlib.core.captures import own_scene, write_transforms

    whole, root = own_scene(16, views=15, samples=1, n_points=200), tmp_path / "nerf_synthetic" / "lego"
    for part, some in (("train", whole[:12]), ("test", whole[12:])):
        write_transforms(some, root / part)
        frames = json.loads((root / part / "transforms.json").read_text())
        for frame in frames["frames"]:
            frame["file_path"] = f"{part}/{frame['file_path']}"
        (root / f"transforms_{part}.json").write_text(json.dumps(frames))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    return root, whole


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the contract's papers to the workers one by one and keep every other file whole, whose fixtures are then made once (``--dist loadgroup``)."""
    for item in items:
        slug = getattr(item, "callspec", None) and item.callspec.params.get("slug")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{slug}" if slug and item.path.stem == "test_contract" else item.path.stem))
