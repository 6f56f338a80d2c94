"""A pre-training step of ViT-B with three quarters of the patches hidden beside the same net seeing all of them, and beside Hugging Face's ViTMAE where it is installed.

    python benchmarks/bench_mae.py                         # over five fresh processes
    python benchmarks/bench_mae.py --processes 1 --rounds 3 --threads 1
    python benchmarks/bench_mae.py --record                # writes results/bench/mae.csv as well
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from pathlib import Path

import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.masked.mae import MAE, VARIANTS, saved_bytes

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def peer(model: MAE) -> torch.nn.Module:
    """Return Hugging Face's ViTMAE of equal size with our weights; its decoder has 16 heads, its normalisations our epsilon."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(ViTMAEConfig(layer_norm_eps=1e-6, mask_ratio=0.75))
    theirs.load_state_dict(model.to_huggingface("module" if any(".q_proj." in k for k in theirs.state_dict()) else "files"))
    return theirs


def ratios(variant: str, batch: int, rounds: int, threads: int) -> dict[str, float]:
    """Return what others take over our step at 75 % hidden in this process: medians of paired rounds, forward and backward."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = MAE(**VARIANTS[variant]).train()
    imgs, noise = torch.randn(batch, 3, 224, 224), torch.rand(batch, model.length)

    def step(ratio: float) -> None:
        model.zero_grad()
        model(imgs, ratio, noise).loss.backward()

    inside = MAE(**VARIANTS[variant], mask_in_encoder=True).train()

    def step_inside() -> None:
        inside.zero_grad()
        inside(imgs, 0.75, noise).loss.backward()

    calls = {"ours": lambda: step(0.75), "all patches seen": lambda: step(0.0), "mask tokens inside": step_inside}
    if importlib.util.find_spec("transformers") and variant == "vit_base":
        theirs = peer(model).train()

        def step_theirs() -> None:
            theirs.zero_grad()
            theirs(imgs, noise=noise).loss.backward()

        with torch.no_grad():
            assert torch.allclose(theirs(imgs, noise=noise).loss, model(imgs, 0.75, noise).loss, rtol=1e-4)
        calls["Hugging Face ViTMAE"] = step_theirs
    times = interleave(calls, rounds)
    found = {f"{variant}, batch {batch}, training step: {name} / ours": statistics.median(a / b for a, b in zip(times[name], times["ours"])) for name in calls if name != "ours"}
    kept = saved_bytes(model, imgs, 0.75)
    return found | {f"{variant}, bytes kept for the backward pass: all patches seen / ours": saved_bytes(model, imgs, 0.0) / kept,
                    f"{variant}, bytes kept for the backward pass: mask tokens inside / ours": saved_bytes(inside, imgs, 0.75) / kept}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--variant", choices=list(VARIANTS), default="vit_base")
    parser.add_argument("--record", action="store_true", help="write results/bench/mae.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.variant, args.batch, args.rounds, args.threads) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads")
    report(rows, RESULTS / "mae.csv" if args.record else None)
    if not importlib.util.find_spec("transformers"):
        print("transformers is not installed: Hugging Face's ViTMAE was not measured")


if __name__ == "__main__":
    main()
