"""Sampling of DiffusionDepth: seconds at 120 x 160, what twenty steps cost over one, and peers where they are installed; and what a step of training costs.

Twenty steps at 120 x 160 are to take 1.5 seconds at most on two threads, with the preset ``small``. The short runs that the page compares have step counts
that were set for about equal time; recorded seconds cannot say whether it is equal, since other jobs shared the machine. So steps of each kind are taken
here in turn, on the same rooms, and each run's step count times its step is set beside that of self-diffusion.

    python benchmarks/bench_diffusiondepth.py                      # medians over five fresh processes
    python benchmarks/bench_diffusiondepth.py --processes 2 --rounds 3 --threads 1
    python benchmarks/bench_diffusiondepth.py --record             # writes results/bench/diffusiondepth.csv as well
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.depth import render_set
from paperlib.depth import eigen
from paperlib.depth.diffusiondepth import PAPER, Jitter, build, train
from paperlib.depth.diffusiondepth_layers import DDIMSchedule, DepthHead

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


SHORT = {"self-diffusion": ({}, 800), "diffusion of the truth": ({"diffusion": "gt"}, 1600), "bins": ({"method": "bins"}, 1600), "regression": ({"method": "regression"}, 2100)}
SHORT_EIGEN = (700, 250)  # steps of its coarse and fine nets


def training(rounds: int, steps: int = 4) -> dict[str, float]:
    """Return how long each short run takes beside that of self-diffusion, by the time of its steps: medians of rounds in turn."""
    cpu, preset, theirs = torch.device("cpu"), PAPER.presets["small"], eigen.PAPER.presets["small"]
    data, model, net = render_set(16, preset.size, 0, workers=0), {}, eigen.build(theirs)[0]
    ours = {name: replace(preset, steps=steps, **change) for name, (change, _) in SHORT.items()}
    for name, p in ours.items():
        model[name] = build(p)[0]
    calls = {name: lambda name=name, p=p: train(model[name], data, p, 0, cpu, Jitter(), progress=False) for name, p in ours.items()}
    calls |= {"coarse": lambda: eigen.train(net, data, theirs, (steps, 0), 0, cpu), "fine": lambda: eigen.train(net, data, theirs, (0, steps), 0, cpu)}
    times = interleave(calls, rounds)
    took = {name: [t / steps * n for t in times[name]] for name, (_, n) in SHORT.items()}
    took["Eigen's net"] = [(a * SHORT_EIGEN[0] + b * SHORT_EIGEN[1]) / steps for a, b in zip(times["coarse"], times["fine"])]
    base = took.pop("self-diffusion")
    return {f"short run by its steps: {name} / self-diffusion": statistics.median(a / b for a, b in zip(values, base)) for name, values in took.items()}


def measure(rounds: int, threads: int) -> dict[str, float]:
    """Return seconds and ratios in this process: medians of interleaved rounds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, head = build(PAPER.presets["small"])[0].eval(), DepthHead((64,)).eval()             # the release's widths, condition and latent at half the picture's size
    lasting = copy.deepcopy(head).to(memory_format=torch.channels_last)
    rgb, c, x_T = torch.rand(1, 3, 120, 160), torch.randn(1, 256, 60, 80), torch.randn(1, 16, 60, 80)
    x, eps, schedule = torch.randn(1, 16, 60, 80), torch.randn(1, 16, 60, 80), DDIMSchedule()
    calls = {"small, 20 steps": lambda: model(rgb, 20), "small, 10 steps": lambda: model(rgb, 10), "small, 1 step": lambda: model(rgb, 1),
             "release, 20 steps": lambda: head.codec.decode(head.sample(c, x_T, 20)), "our step": lambda: [schedule.step(eps, 500, 450, x) for _ in range(50)],
             "release, channels last": lambda: lasting.codec.decode(lasting.sample(c.to(memory_format=torch.channels_last), x_T.to(memory_format=torch.channels_last), 20))}
    if importlib.util.find_spec("diffusers"):
        from diffusers import DDIMScheduler

        theirs = DDIMScheduler(clip_sample=False)
        theirs.set_timesteps(20)
        calls["diffusers"] = lambda: [theirs.step(eps, 500, x) for _ in range(50)]
    with torch.inference_mode():
        times = interleave(calls, rounds)
    seconds = {f"{name}, 120 x 160, seconds": statistics.median(times[name]) for name in ("small, 20 steps", "small, 10 steps", "small, 1 step", "release, 20 steps")}
    ratio = lambda a, b: statistics.median(p / q for p, q in zip(times[a], times[b]))
    found = seconds | {"small: 20 steps / 1 step": ratio("small, 20 steps", "small, 1 step"), "release: channels last / as it is": ratio("release, channels last", "release, 20 steps")}
    found |= training(rounds)
    return found | ({"DDIM step: diffusers / ours": ratio("diffusers", "our step")} if "diffusers" in calls else {})


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/diffusiondepth.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(measure, args.rounds, args.threads) for _ in range(args.processes)]
    report(medians(measured, f"{args.threads} threads"), RESULTS / "diffusiondepth.csv" if args.record else None)
    if not importlib.util.find_spec("diffusers"):
        print("diffusers is not installed: its scheduler was not measured")


if __name__ == "__main__":
    main()
