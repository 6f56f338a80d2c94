"""VisionTS forecasting beside its plain twin and beside exponential smoothing, and how many windows of ETTh1's shape it forecasts in a second.

    python benchmarks/bench_visionts.py                      # five fresh processes
    python benchmarks/bench_visionts.py --processes 2 --threads 1
    python benchmarks/bench_visionts.py --record             # writes results/bench/visionts.csv as well

Contexts are random, 2,880 steps of seven channels, the shape of ETTh1's windows; the twin paints the whole canvas in three colours, as the released code does.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.masked.mae import MAE
from paperlib.masked.vit import VARIANTS
from paperlib.sequence.visionts import VisionTS, painter_of, phase_mean, smoothing_forecast

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def ratios(rounds: int, threads: int) -> dict[str, float]:
    """Return the twin's time over ours for both painters, forward and a step of tuning, and what others take over the shipped painter's forward."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(8, 2880, 7)
    found = {}
    for name, painter, part in (("shipped painter", painter_of("shipped"), x), ("ViT-B, random weights", MAE(**VARIANTS["vit_base"]).eval(), x[:1])):
        models = {"ours": VisionTS(painter, 2880, 96, 24), "twin": VisionTS(painter, 2880, 96, 24, fast=False)}

        def forward(key: str, models: dict = models, part: torch.Tensor = part) -> torch.Tensor:
            with torch.no_grad():
                return models[key](part)

        assert torch.allclose(forward("ours"), forward("twin"), atol=1e-4)
        times = interleave({k: (lambda k=k: forward(k)) for k in models}, rounds)
        found[f"forward, {name}: twin / ours"] = statistics.median(a / b for a, b in zip(times["twin"], times["ours"]))
        if name == "shipped painter":
            found["windows of 7 channels a second, shipped painter"] = len(part) / statistics.median(times["ours"])
            others = interleave({"ours": lambda: forward("ours"), "mean": lambda: phase_mean(x.numpy(), 96, 24, 30),
                                 "smoothing": lambda: smoothing_forecast(x[:1].numpy().astype(np.float64), 96, 24)}, max(3, rounds // 3))
            found["exponential smoothing of statsmodels (last 10 days) / ours, one window"] = statistics.median(len(x) * a / b for a, b in zip(others["smoothing"], others["ours"]))
            found["ours / mean of 30 days"] = statistics.median(a / b for a, b in zip(others["ours"], others["mean"]))
    return found


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/visionts.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.rounds, args.threads) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads")
    report(rows, RESULTS / "visionts.csv" if args.record else None)


if __name__ == "__main__":
    main()
