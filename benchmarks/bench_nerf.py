"""The network's training step beside the plain twin that mirrors the official code; what the grid saves; a 100 x 100 picture.

    python benchmarks/bench_nerf.py                        # the ratios over five fresh processes, two threads
    python benchmarks/bench_nerf.py --processes 2 --rounds 3 --threads 1
    python benchmarks/bench_nerf.py --record               # writes results/bench/nerf.csv as well
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.scenes import orbit_cameras
from paperlib.render.nerf import PAPER, NeRF, amx, build, encode, render_view, shots, view_rays

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
RAYS, SAMPLES = 256, 64  # 16,384 points


def plain(model: NeRF, pts: torch.Tensor, viewdirs: torch.Tensor, chunk: int = 65_536) -> torch.Tensor:
    """Ask the network as the official code does: everything at every sample, inputs concatenated, 65,536 points at once."""
    flat, spread = pts.reshape(-1, 3), viewdirs[:, None].expand(pts.shape).reshape(-1, 3)
    both = torch.cat([encode(flat, model.octaves), encode(spread, model.view_octaves)], -1)
    out = []
    for part in both.split(chunk):
        place, view = part.split([3 + 6 * model.octaves, 3 + 6 * model.view_octaves], -1)
        h = place
        for i, layer in enumerate(model.pts_linears):
            h = F.relu(layer(h))
            if i in model.skips:
                h = torch.cat([place, h], -1)
        sigma = model.alpha_linear(h)
        h = F.relu(model.views_linears[0](torch.cat([model.feature_linear(h), view], -1)))
        out.append(torch.cat([model.rgb_linear(h), sigma], -1))
    return torch.cat(out).view(*pts.shape[:2], 4)


def ours(model: NeRF, pts: torch.Tensor, viewdirs: torch.Tensor) -> torch.Tensor:
    """Ask the network as the library does."""
    return model(pts, viewdirs)


def step(ask, model: NeRF, pts: torch.Tensor, dirs: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    """Return loss and gradients of one training step."""
    model.zero_grad()
    loss = (ask(model, pts, dirs) - target).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def ratios(rounds: int, threads: int) -> dict[str, float]:
    """Return the twin's time over ours for the full and the small network, in this process: median of paired rounds; gradients have to agree."""
    torch.set_num_threads(threads)
    found = {}
    for name, sizes in (("8 x 256", {}), ("4 x 128", {"depth": 4, "width": 128, "skips": ()})):
        torch.manual_seed(0)
        model = NeRF(**sizes)
        pts, dirs, target = torch.randn(RAYS, SAMPLES, 3), F.normalize(torch.randn(RAYS, 3), dim=-1), torch.randn(RAYS, SAMPLES, 4)
        for a, b in zip(step(ours, model, pts, dirs, target), step(plain, model, pts, dirs, target)):
            assert (a - b).norm() <= 1e-4 * b.norm() + 1e-9, name                # sums over 16,384 points in another order
        run = {"plain": lambda m=model, x=(pts, dirs, target): step(plain, m, *x), "ours": lambda m=model, x=(pts, dirs, target): step(ours, m, *x)}
        if amx():
            run["bf16"] = lambda m=model, x=(pts, dirs, target): half(step, ours, m, *x)
        times = interleave(run, rounds)
        found[f"forward + backward, {name}, 16,384 points: twin / ours"] = statistics.median(a / b for a, b in zip(times["plain"], times["ours"]))
        found[f"thousand points a second, {name}, ours"] = RAYS * SAMPLES / statistics.median(times["ours"]) / 1e3
        if "bf16" in times:
            found[f"forward + backward, {name}, 16,384 points: ours in float32 / ours in bf16"] = statistics.median(a / b for a, b in zip(times["ours"], times["bf16"]))

        def forward(ask, m=model, p=pts, d=dirs) -> None:
            with torch.no_grad():
                ask(m, p, d)

        times = interleave({"plain": lambda f=forward: f(plain), "ours": lambda f=forward: f(ours)}, rounds)
        found[f"forward, {name}, 16,384 points: twin / ours"] = statistics.median(a / b for a, b in zip(times["plain"], times["ours"]))
    return found


def half(function, *arguments):
    """Call a function with bf16 matrices."""
    with torch.autocast("cpu", torch.bfloat16):
        return function(*arguments)


def grid_saves(rounds: int, threads: int) -> dict[str, float]:
    """Return how much longer a training step and a picture take without the grid, for the small network on the synthetic still life."""
    torch.set_num_threads(threads)
    preset = PAPER.preset("small", {"data": "still_life"})
    given, _ = shots(preset)
    torch.manual_seed(0)
    field = build(preset, given)
    rays, rgb = view_rays(given.camera), given.on("white").reshape(-1, 3)
    at = torch.randint(len(rgb), (preset.rays,))
    batch, grid = [r.reshape(-1, 3)[at] for r in rays], field.grid
    view = tuple(r[0].float() for r in view_rays(orbit_cameras(1, 100, 100, radius=3.0, fov=45.0)))

    def train(kept) -> None:
        field.grid = kept
        field.zero_grad()
        F.mse_loss(field(*batch).rgb, rgb[at]).backward()

    def show(kept) -> None:
        field.grid = kept
        render_view(field, view, stop=1e-4 if kept is not None else 0.0)

    found = {}
    for name, call in (("training step of 512 rays x 64 samples", train), ("picture of 100 x 100", show)):
        times = interleave({"without": lambda c=call: c(None), "with": lambda c=call: c(grid)}, rounds)
        found[f"{name}, 4 x 128, still life: without the grid / with it"] = statistics.median(a / b for a, b in zip(times["without"], times["with"]))
    field.grid = grid
    return found


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/nerf.csv")
    args = parser.parse_args()
    if min(args.processes, args.rounds, args.threads) < 1:
        parser.error("--processes, --rounds and --threads must be at least 1")
    print_calibration()
    rows = []
    for function in (ratios, grid_saves):
        rows += medians([in_fresh_process(function, args.rounds, args.threads) for _ in range(args.processes)], f"{args.threads} threads")
    report(rows, RESULTS / "nerf.csv" if args.record else None)


if __name__ == "__main__":
    main()
