"""BayeSR's forward and training step with the operator folded into one kernel beside the chain that the paper has, and beside the plain network.

    python benchmarks/bench_bayesr.py                      # the ratios over five fresh processes
    python benchmarks/bench_bayesr.py --processes 2 --side 48 --threads 1
    python benchmarks/bench_bayesr.py --record             # writes results/bench/bayesr.csv as well
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.superres.bayesr import PAPER, BayeSR, bayesian_loss, prior_of, settings
from paperlib.superres.bayesr_layers import Downsampling, PlainSR, draw_noise, warm_start

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def pair(**config) -> tuple[BayeSR, BayeSR]:
    """Return the twin with the official chain, and the same networks with the chain folded into one kernel of 14 x 14: equal away from the border."""
    torch.manual_seed(0)
    twin = warm_start(BayeSR(2, **config), 1e6).eval()
    folded = warm_start(BayeSR(2, kernel_size=14, **config), 1e6).eval()
    folded.load_state_dict({k: v for k, v in twin.state_dict().items() if not k.startswith("down.")} | {"down.weight": F.pad(twin.down.kernel(), (0, 1, 0, 1))})
    return twin, folded


def agree(twin: BayeSR, folded: BayeSR, y: torch.Tensor) -> None:
    """Assert that chain and kernel do the same to a picture, away from the border, where the chain pads with zeros."""
    u = F.interpolate(y, scale_factor=2)
    a, b = twin.down(u)[..., 4:-4, 4:-4], folded.down(u)[..., 4:-4, 4:-4]
    assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max())), (a - b).abs().max()


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast]))


@torch.no_grad()
def forwards(rounds: int, threads: int, side: int) -> dict[str, float]:
    """Return ratios of forward passes of the official size at x2, colour."""
    torch.set_num_threads(threads)
    twin, folded = pair()
    assert isinstance(folded.down, Downsampling)
    y = torch.rand(1, 3, side, side)
    agree(twin, folded, y)
    times = interleave({"twin, sampled": lambda: twin(y, noise=draw_noise(twin, y)), "ours, sampled": lambda: folded(y, noise=draw_noise(folded, y)), "ours, mean": lambda: folded(y)}, rounds)
    return {"forward, sampled path: chain / one kernel": ratio(times, "twin, sampled", "ours, sampled"), "forward, one kernel: sampled / mean path": ratio(times, "ours, sampled", "ours, mean"),
            "forward: chain and sampled / ours": ratio(times, "twin, sampled", "ours, mean")}


def steps(rounds: int, threads: int) -> dict[str, float]:
    """Return ratios of training steps of the preset `small`."""
    torch.set_num_threads(threads)
    preset = PAPER.presets["small"]
    y, u = torch.rand(preset.batch_size, 1, preset.patch, preset.patch), torch.rand(preset.batch_size, 1, 2 * preset.patch, 2 * preset.patch)
    twin, folded = pair(**{k: v for k, v in settings(preset).items() if k not in ("scale", "kernel_size")})
    agree(twin, folded, y)
    plain = PlainSR(**settings(PAPER.preset("small", {"mode": "plain"})))
    loss = bayesian_loss(preset, prior_of(preset))

    def step(model: torch.nn.Module) -> None:
        model.zero_grad()
        (F.l1_loss(model(y), u) if model is plain else loss(model, (y, u))[0]).backward()

    times = interleave({"twin": lambda: step(twin), "ours": lambda: step(folded), "plain": lambda: step(plain)}, rounds)
    return {"training step, preset small: chain / one kernel": ratio(times, "twin", "ours"), "training step, preset small: BayeSR / plain network": ratio(times, "ours", "plain")}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=96, help="of the small picture")
    parser.add_argument("--record", action="store_true", help="write results/bench/bayesr.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(forwards, args.rounds, args.threads, args.side) | in_fresh_process(steps, 3 * args.rounds, args.threads) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads; forward passes on {args.side} x {args.side}")
    report(rows, RESULTS / "bayesr.csv" if args.record else None)


if __name__ == "__main__":
    main()
