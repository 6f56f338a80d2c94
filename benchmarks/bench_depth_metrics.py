"""Depth scores and the scale-invariant loss on batches of 480 x 640 beside vectorised NumPy twins.

    python benchmarks/bench_depth_metrics.py                     # every ratio over five fresh processes
    python benchmarks/bench_depth_metrics.py --processes 2 --batch 4
    python benchmarks/bench_depth_metrics.py --record            # writes results/bench/depth_metrics.csv as well
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.metrics import depth_scores
from paperlib.depth.eigen import scale_invariant_loss

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def scores_twin(pred: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return all depth scores of each image in plain vectorised NumPy, in float64 as ours are, each shared term computed once."""
    p, t = (np.where(mask, x, 1).astype(np.float64) for x in (pred, target))
    n = mask.sum((1, 2, 3))
    mean = lambda v: np.where(mask, v, 0).sum((1, 2, 3)) / n
    e, ratio = p - t, p / t
    d = np.log(ratio)
    far, centre = np.maximum(ratio, t / p), mean(d)
    return {"abs_rel": mean(np.abs(e) / t), "sq_rel": mean(e**2 / t), "rmse": np.sqrt(mean(e**2)), "rmse_log": np.sqrt(mean(d**2)),
            "log10_error": mean(np.abs(d)) / np.log(10), "silog": 100 * np.sqrt(mean((d - centre[:, None, None, None]) ** 2)),
            **{f"delta_{k}": mean(far < 1.25**k) for k in (1, 2, 3)}}


def loss_twin(pred: np.ndarray, target: np.ndarray, mask: np.ndarray, gradient: bool, lam: float = 0.5) -> tuple[np.float32, np.ndarray | None]:
    """Return the loss with the official weighting, and its gradient by hand, in plain vectorised NumPy, float32 as ours."""
    one = np.float32(1)
    d = np.log(np.where(mask, pred, one) / np.where(mask, target, one))
    n, s = mask.sum((1, 2, 3)).astype(np.float32), d.sum((1, 2, 3))
    weight = (n * n).sum()
    loss = (n * (d * d).sum((1, 2, 3)) - np.float32(lam) * s * s).sum() / weight
    if not gradient:
        return loss, None
    wide = lambda v: v[:, None, None, None]
    return loss, np.where(mask, 2 * (wide(n) * d - np.float32(lam) * wide(s)) / (weight * np.where(mask, pred, one)), 0)


def loss_and_gradient(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our loss and its gradient by autograd."""
    pred = pred.detach().requires_grad_()
    loss = scale_invariant_loss(pred, target, mask)
    return loss, torch.autograd.grad(loss, pred)[0]


def ratios(rounds: int, batch: int) -> dict[str, float]:
    """Return twin / ours in this process, median of paired rounds, and the seconds of the first calls."""
    g = torch.Generator().manual_seed(0)
    target = 1 + 9 * torch.rand(batch, 1, 480, 640, generator=g)
    pred, mask = target * torch.exp(0.2 * torch.randn(target.shape, generator=g)), torch.rand(target.shape, generator=g) > 0.1
    arrays = [x.numpy() for x in (pred, target, mask)]
    clock = time.perf_counter()
    scores, (loss, slope) = depth_scores(pred, target, mask), loss_and_gradient(pred, target, mask)
    first = time.perf_counter() - clock
    twin_scores, (twin_loss, twin_slope) = scores_twin(*arrays), loss_twin(*arrays, gradient=True)
    assert all(np.allclose(v.numpy(), twin_scores[k], rtol=1e-9) for k, v in scores.items())
    assert abs(loss.item() - twin_loss) < 1e-5 * twin_loss and np.allclose(slope.numpy(), twin_slope, rtol=1e-3, atol=1e-5 * np.abs(twin_slope).max())
    pairs = {"all scores": (lambda: depth_scores(pred, target, mask), lambda: scores_twin(*arrays)),
             "loss": (lambda: scale_invariant_loss(pred, target, mask), lambda: loss_twin(*arrays, gradient=False)),
             "loss and gradient": (lambda: loss_and_gradient(pred, target, mask), lambda: loss_twin(*arrays, gradient=True))}
    found = {}
    for name, (ours, twin) in pairs.items():
        seconds = interleave({"ours": ours, "twin": twin}, rounds)
        found[f"{batch} x 480 x 640, {name}: NumPy / ours"] = statistics.median(t / o for t, o in zip(seconds["twin"], seconds["ours"]))
    return found | {"seconds of the first calls (loading compiled code, or compiling it)": first}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds in each")
    parser.add_argument("--batch", type=int, default=8, help="images of 480 x 640")
    parser.add_argument("--record", action="store_true", help="write results/bench/depth_metrics.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.rounds, args.batch) for _ in range(args.processes)]
    rows = medians(measured, f"{torch.get_num_threads()} threads")
    report(rows, RESULTS / "depth_metrics.csv" if args.record else None)


if __name__ == "__main__":
    main()
