"""The rasterizer of Gaussians beside what one writes in PyTorch: forward, and forward with backward, on two threads.

    python benchmarks/bench_rasterize.py                   # medians over five fresh processes, about a minute each on an idle machine
    python benchmarks/bench_rasterize.py --processes 1 --rounds 3
    python benchmarks/bench_rasterize.py --record          # writes results/bench/rasterize.csv as well

Scene one: 10,000 Gaussians, degree 3, at 256 x 256; drawn with a fixed seed. The peer is `composite_tiles`: tiles of similar length batched, autograd.
Scene two: the garden crop, 111,785 points of a photographed garden with max |coordinate| <= 2, at 648 x 420; the file holds positions and colours,
so scales (uniform to 0.02), quaternions and opacities (uniform) are drawn with a fixed seed. Where there is a GPU, Triton is timed there, and beside gsplat if installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from pathlib import Path

import numba
import numpy as np
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.render import rasterize_kernels as kernels
from paperlib.render.rasterize import rasterize

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
NAMES = ("means", "quats", "scales", "opacities", "sh_coeffs")


def box(n: int, width: int, height: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, int, int]:
    """Return n Gaussians in a box, w2c, K and the size: synthetic."""
    rng = np.random.default_rng(0)
    arrays = (rng.uniform(-1, 1, (n, 3)), rng.standard_normal((n, 4)), np.exp(rng.normal(np.log(0.04), 0.5, (n, 3))), rng.uniform(0.05, 0.95, n), 0.3 * rng.standard_normal((n, 16, 3)))
    w2c = torch.eye(4)
    w2c[2, 3] = 4
    K = torch.tensor([[1.3 * width, 0, width / 2], [0, 1.3 * width, height / 2], [0, 0, 1]])
    return [torch.tensor(a, dtype=torch.float32) for a in arrays], w2c, K, width, height


def garden() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, int, int]:
    """Return the crop of the garden seen by its first camera."""
    z = np.load(Path(os.environ["PAPERLIB_DATA"]) / "gsplat_garden" / "test_garden.npz")
    keep = np.abs(z["means3d"]).max(1) <= 2
    rng, n = np.random.default_rng(0), int(keep.sum())
    sh = np.zeros((n, 16, 3))
    sh[:, 0] = (z["colors"][keep] / 255 - 0.5) / kernels.K0
    arrays = (z["means3d"][keep], rng.standard_normal((n, 4)), rng.uniform(0, 0.02, (n, 3)), rng.uniform(0, 1, n), sh)
    return [torch.tensor(a, dtype=torch.float32) for a in arrays], torch.tensor(z["viewmats"][0]), torch.tensor(z["Ks"][0]), int(z["width"]), int(z["height"])


def calls(scene, backend: str, device: str = "cpu"):
    """Return two functions: draw, and draw and differentiate by everything."""
    gaussians, w2c, K, width, height = scene
    gaussians, w2c, K = [g.to(device) for g in gaussians], w2c.to(device), K.to(device)
    background, weight = torch.zeros(3, device=device), torch.randn(height, width, 3, generator=torch.Generator().manual_seed(0)).to(device)
    leaves = [g.clone().requires_grad_() for g in gaussians]

    def forward():
        with torch.no_grad():
            return rasterize(*gaussians, w2c, K, width, height, background, backend)

    def both():
        r = rasterize(*leaves, w2c, K, width, height, background, backend)
        return torch.autograd.grad((r.image * weight).sum(), leaves)

    return forward, both


def pairs(scene) -> int:
    """Return how many pairs of splat and tile the compiled lists hold."""
    gaussians, w2c, K, width, height = scene
    n = len(gaussians[0])
    splats, radii, counts = np.zeros((n, 12), np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    cam = kernels.camera_array(w2c.double().numpy(), K.double().numpy(), width, height)
    kernels.project_all(*(g.numpy() for g in gaussians), np.zeros((n, 2), np.float32), cam, 16, False, width, height, splats, radii, counts)
    return int(counts.sum())


def measure(threads: int, rounds: int, with_garden: bool) -> dict[str, float]:
    """Measure everything once in this process."""
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    found, small = {}, box(10_000, 256, 256)
    ours, peer = calls(small, "numba"), calls(small, "tiles")
    for (a, b) in zip(ours[1](), peer[1]()):
        assert (a - b).norm() < 1e-3 * b.norm(), "the back ends disagree"
    milliseconds = {}
    for k, name in enumerate(("forward", "forward and backward")):
        seconds = interleave({"ours": ours[k], "tiles": peer[k]}, rounds)
        found[f"10k at 256x256, {name}: PyTorch tiles / numba"] = statistics.median(p / o for p, o in zip(seconds["tiles"], seconds["ours"]))
        seconds = interleave({"ours": ours[k]}, 10 * rounds)                 # by itself: after a peer that fills all memory the caches are cold
        milliseconds[name] = 1e3 * statistics.median(seconds["ours"])
        found[f"10k at 256x256, {name}: ms"] = milliseconds[name]
    found["10k at 256x256: frames a second"] = 1e3 / milliseconds["forward"]
    found["10k at 256x256: pairs"] = few = pairs(small)
    if with_garden:
        large = garden()
        found["garden at 648x420: Gaussians"], found["garden at 648x420: pairs"] = len(large[0][0]), (many := pairs(large))
        for k, name in enumerate(("forward", "forward and backward")):
            found[f"garden at 648x420, {name}: ms"] = ms = 1e3 * statistics.median(interleave({"ours": calls(large, "numba")[k]}, rounds)["ours"])
            found[f"garden / 10k, {name}: time a pair"] = (ms / many) / (milliseconds[name] / few)
            if k == 0:
                found["garden at 648x420: frames a second"] = 1e3 / ms
    if torch.cuda.is_available():
        found |= on_gpu(rounds)
    return found


def on_gpu(rounds: int) -> dict[str, float]:
    """Time Triton on the GPU, and gsplat beside it where it is installed."""
    found = {}
    for n in (1_000_000, 3_000_000):
        scene = box(n, 1920, 1080)
        scene[0][2].mul_((10_000 / n) ** (1 / 3))
        functions = {b: calls(scene, b, "cuda") for b in ("triton", "gsplat") if importlib.util.find_spec(b)}
        for k, name in enumerate(("forward", "forward and backward")):
            seconds = interleave({b: f[k] for b, f in functions.items()}, rounds, torch.cuda.synchronize)
            found[f"{n:,} at 1920x1080 on the GPU, {name}: frames a second"] = 1 / statistics.median(seconds["triton"])
            if "gsplat" in seconds:
                found[f"{n:,} at 1920x1080, {name}: gsplat / triton"] = statistics.median(p / o for p, o in zip(seconds["gsplat"], seconds["triton"]))
    found["GPU memory at most, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes that the medians are over (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds in each (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of numba and torch (default 2)")
    parser.add_argument("--record", action="store_true", help="write results/bench/rasterize.csv")
    args = parser.parse_args()
    print_calibration()
    with_garden = "PAPERLIB_DATA" in os.environ and (Path(os.environ["PAPERLIB_DATA"]) / "gsplat_garden").is_dir()
    if not with_garden:
        print("the garden is left out: PAPERLIB_DATA has no gsplat_garden/")
    measured = [in_fresh_process(measure, args.threads, args.rounds, with_garden) for _ in range(args.processes)]
    report(medians(measured, f"{args.threads} threads"), RESULTS / "rasterize.csv" if args.record else None)


if __name__ == "__main__":
    main()
