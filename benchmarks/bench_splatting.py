"""A whole training step of Gaussian splatting, fused, beside the same step left to autograd and `torch.optim.Adam`; and frames a second.

    python benchmarks/bench_splatting.py                   # medians over five fresh processes
    python benchmarks/bench_splatting.py --processes 1 --rounds 20
    python benchmarks/bench_splatting.py --record          # writes results/bench/splatting.csv as well

The scene is lego at 200 x 200 where PAPERLIB_DATA has it, else our own still life; 10,000 Gaussians of degree 3 after 300 steps from random points, so that
their sizes are those of a training under way. Where there is a GPU, steps of 100,000 are timed there, and drawing, loss and gradients beside gsplat's if it is installed. Three peers, each with `torch.optim.Adam`, all with the compiled sorting and compositing:
"projection": projection and harmonics by PyTorch and autograd, our fused loss (what the target of 1.6 is against);
"projection and loss": the loss too, as one writes it; "loss": the compiled projection as one node of autograd, the loss as one writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
from pathlib import Path

import numpy as np
import torch
from bench_rasterize import garden
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.captures import capture
from paperlib.render import rasterize_kernels as kernels
from paperlib.render.gaussian_splatting import PAPER, Trainer, learning_rates
from paperlib.render.rasterize import alone, project, rasterize
from paperlib.render.splat_training import EPS, FusedLoss, photometric_loss

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def trained(with_lego: bool, points: int = 10_000, device: str = "cpu") -> Trainer:
    """Return a training of so many Gaussians under way."""
    scene = capture("lego" if with_lego else "still_life", 200).split()[0]
    preset = dataclasses.replace(PAPER.presets["small"], points=points, limit=points, sh_every=100, densify_from=3000, start="random")
    trainer = Trainer(scene, preset, 0, torch.device(device))
    for _ in range(300):
        trainer.step()
    return trainer


@kernels.loop
def count_tiles(splats, width, height, counts):
    """Fill counts (n,) with how many tiles each splat touches."""
    for i in range(len(splats)):
        counts[i] = 0
        first, last = kernels.tile_rows(splats[i], height)
        for row in range(first, last):
            left, right = kernels.tile_columns(splats[i], row, width)
            counts[i] += right - left


class Compositing(torch.autograd.Function):
    """The compiled lists and compositing as a node of autograd, after a projection by PyTorch."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, colors, depths, extents, background, width, height):
        splats = torch.cat([means2d, conics, opacities[:, None], colors, depths[:, None], extents], 1).numpy()
        counts, image, opacity, depth = np.empty(len(splats), np.int32), np.empty((height, width, 3), np.float32), np.empty((height, width), np.float32), np.empty((height, width), np.float32)
        with alone():
            count_tiles(splats, width, height, counts)
            pairs, starts, slots, reach = kernels.bin_pairs(splats, kernels.depth_order(splats[:, 9].copy(), counts), counts, width, height)
            used = np.empty(len(starts) - 1, np.int64)
            kernels.composite(splats, pairs, starts, reach, background.numpy(), width, height, image, opacity, depth, used)
        ctx.drawn = splats, pairs, starts, used, reach, width, height, image, opacity, depth
        ctx.slots, ctx.counts = slots, counts
        return torch.from_numpy(image.copy())

    @staticmethod
    def backward(ctx, g_image):
        splats, pairs, *_ = ctx.drawn
        zeros, pieces, g = np.zeros(g_image.shape[:2], np.float32), np.empty((len(pairs), 10), np.float32), np.zeros((len(splats), 10), np.float32)
        with alone():
            kernels.composite_backward(*ctx.drawn, g_image.contiguous().numpy(), zeros, zeros, pieces)
        some = ctx.counts > 0
        g[some] = np.add.reduceat(pieces, ctx.slots[:-1][some])
        means2d, conics, opacities, colors, depths = torch.from_numpy(g).split([2, 3, 1, 3, 1], 1)
        return means2d, conics, opacities[:, 0], colors, depths[:, 0], None, None, None, None


class Peer:
    """The same step by autograd: harmonics in two parameters with their own rates and Adam as the original has them; the projection and the loss by PyTorch or compiled."""

    def __init__(self, trainer: Trainer, projection: bool, loss: bool):
        self.v, values, self.turn, self.projection, self.loss = trainer.views, trainer.optimizer.views(trainer.optimizer.flat), 0, projection, loss
        self.p = {k: v.clone().requires_grad_() for k, v in values.items() if k != "sh_coeffs"}
        self.p |= {"dc": values["sh_coeffs"][:, :1].clone().requires_grad_(), "rest": values["sh_coeffs"][:, 1:].clone().requires_grad_()}
        rates = learning_rates(trainer.preset, 300, trainer.views.extent)
        rates |= {"dc": rates["sh_coeffs"], "rest": rates["sh_coeffs"] / 20}
        self.adam = torch.optim.Adam([{"params": [p], "lr": rates[k]} for k, p in self.p.items()], eps=EPS)
        self.w2c, self.K, self.fused = self.v.w2c.float(), self.v.K.float(), FusedLoss(*self.v.targets.shape[1:3])

    def gradients(self, view: int) -> float:
        """Leave the gradients of a view in the parameters and return the loss."""
        p, target = self.p, self.v.targets[view]
        height, width = target.shape[:2]
        shifts = torch.zeros(len(p["means"]), 2, requires_grad=True)
        given = p["means"], p["quats"], p["log_scales"].exp(), p["logits"].sigmoid(), torch.cat([p["dc"], p["rest"]], 1), self.w2c[view], self.K[view], width, height
        if self.projection:
            s = project(*given, shifts=shifts)
            image, radii = Compositing.apply(s.means2d, s.conics, s.opacities, s.colors, s.depths, s.extents, self.v.background, width, height), s.radii
        else:
            r = rasterize(*given, self.v.background, shifts=shifts)
            image, radii = r.image, r.radii
        self.adam.zero_grad()
        if self.loss:
            loss = photometric_loss(image, target)
            loss.backward()
        else:
            loss, g = self.fused(image.detach().numpy(), target.numpy())
            image.backward(torch.from_numpy(g))
        _ = (shifts.grad * self.v.ndc).norm(dim=1) * (radii > 0)
        return float(loss.detach()) if isinstance(loss, torch.Tensor) else loss

    def step(self) -> None:
        """Take one step on the next view."""
        self.turn += 1
        self.gradients(self.turn % len(self.v))
        self.adam.step()


def measure(threads: int, rounds: int, with_lego: bool, with_garden: bool) -> dict[str, float]:
    """Measure everything once in this process."""
    torch.set_num_threads(threads)
    trainer = trained(with_lego)
    peers = {"projection": Peer(trainer, True, False), "projection and loss": Peer(trainer, True, True), "loss": Peer(trainer, False, True)}
    loss = trainer.views.gradients(trainer.optimizer, 5, 16).loss
    ours = trainer.optimizer.views(trainer.optimizer.gradient)["means"].clone()
    for name, peer in peers.items():
        assert abs(peer.gradients(5) - loss) < 1e-4 * loss and (peer.p["means"].grad - ours).norm() < 1e-2 * ours.norm(), f"the sides disagree: {name}"
    seconds = interleave({"ours": trainer.step, **{k: peer.step for k, peer in peers.items()}}, rounds)
    found = {"Gaussians": len(trainer.optimizer)}
    for name in peers:
        found[f"step: {name} by autograd, torch's Adam / fused"] = statistics.median(p / o for p, o in zip(seconds[name], seconds["ours"]))
    found["step, fused, beside the others: ms"] = 1e3 * statistics.median(seconds["ours"])
    found["step, fused, by itself: ms"] = 1e3 * statistics.median(interleave({"ours": trainer.step}, 3 * rounds)["ours"])
    image, target = trainer.views.fused.image.copy(), trainer.views.targets[0]
    fused, leaf = FusedLoss(*image.shape[:2]), torch.from_numpy(image).requires_grad_()
    seconds = interleave({"ours": lambda: fused(image, target.numpy()), "peer": lambda: torch.autograd.grad(photometric_loss(leaf, target), leaf)}, rounds)
    found["loss and its gradient: autograd / fused"] = statistics.median(p / o for p, o in zip(seconds["peer"], seconds["ours"]))
    model, camera = trainer.model(), trainer.views
    K = camera.K[0] * torch.tensor([[1.28], [1.28], [1.0]])
    draw = lambda: rasterize(*(t.detach() for t in model.gaussians().activated()), camera.w2c[0], K, 256, 256, camera.background)
    found["frames a second at 256x256"] = 1 / statistics.median(interleave({"draw": draw}, rounds)["draw"])
    if with_garden:
        gaussians, w2c, K, width, height = garden()
        draw = lambda: rasterize(*gaussians, w2c, K, width, height, torch.zeros(3))
        found[f"frames a second at {width}x{height}, garden crop of {len(gaussians[0]):,}"] = 1 / statistics.median(interleave({"draw": draw}, max(3, rounds // 4))["draw"])
    return found


def on_gpu(rounds: int, with_lego: bool, points: int = 100_000, device: str = "cuda", backends: tuple[str, ...] = ("triton", "gsplat")) -> dict[str, float]:
    """Time a training step on a GPU, and a picture with its loss and gradients by Triton and, where it is installed, by gsplat."""
    trainer = trained(with_lego, points, device)
    wait = torch.cuda.synchronize if device == "cuda" else None
    found = {f"GPU, {points:,} Gaussians: training step, ms": 1e3 * statistics.median(interleave({"ours": trainer.step}, rounds, wait)["ours"])}
    v, model = trainer.views, trainer.model()
    target, given = v.targets[0].to(device), [t.detach().to(device).clone().requires_grad_() for t in model.gaussians().activated()]

    def gradients(backend: str) -> list[torch.Tensor]:
        height, width = target.shape[:2]
        r = rasterize(*given, v.w2c[0].float(), v.K[0].float(), width, height, v.background, backend)
        return torch.autograd.grad(photometric_loss(r.image, target), given)

    seconds = interleave({b: lambda b=b: gradients(b) for b in backends if b != "gsplat" or importlib.util.find_spec(b)}, rounds, wait)
    ours, *peers = seconds
    for peer in peers:
        found[f"GPU, {points:,} Gaussians: picture, loss and gradients: {peer} / {ours}"] = statistics.median(p / o for p, o in zip(seconds[peer], seconds[ours]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes that the medians are over (default 5)")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds in each (default 40)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--record", action="store_true", help="write results/bench/splatting.csv")
    args = parser.parse_args()
    print_calibration()
    data = Path(os.environ.get("PAPERLIB_DATA", "-"))
    with_lego, with_garden = ((data / name).is_dir() for name in ("nerf_lego", "gsplat_garden"))
    print("scene: " + ("lego" if with_lego else "our own still life, synthetic (PAPERLIB_DATA has no nerf_lego/)"))
    measured = [in_fresh_process(measure, args.threads, args.rounds, with_lego, with_garden) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads")
    if torch.cuda.is_available():
        rows += medians([in_fresh_process(on_gpu, args.rounds, with_lego) for _ in range(args.processes)], torch.cuda.get_device_name())
    report(rows, RESULTS / "splatting.csv" if args.record else None)


if __name__ == "__main__":
    main()
