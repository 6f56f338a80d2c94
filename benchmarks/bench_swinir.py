"""Window attention in pieces beside the twin that mirrors the paper, training time beside SRCNN's, and four megapixels in tiles.

    python benchmarks/bench_swinir.py                      # the ratios over five fresh processes, then the large picture
    python benchmarks/bench_swinir.py --processes 2 --side 512 --threads 1
    python benchmarks/bench_swinir.py --record             # writes results/bench/swinir.csv as well
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

import paperlib
from paperlib.core.data import dataset
from paperlib.core.layers import WindowAttention
from paperlib.superres import swinir
from paperlib.superres.swinir import VARIANTS, SwinIR, as_tensor, own_config

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
KERNELS = ("explicit", "baddbmm", "sdpa", "pieces")  # the first is the twin


def peak() -> float:
    """Return this process's largest resident size in GiB; on Linux without what its parent had before it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def baddbmm(self: WindowAttention, x: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """Attend with bias and mask folded in and added by the product, all windows at once: the peer that needs no function of its own."""
    B, H, W, C = x.shape
    M, h, n = self.window_size, self.num_heads, self.window_size**2
    qkv = self.qkv(torch.roll(x, (-shift, -shift), (1, 2)))
    folded, kind = self.folded(H // M, W // M, shift)
    split = qkv.view(B, H // M, M, W // M, M, 3, h, C // h).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = split.reshape(3, -1, n, C // h)
    scores = torch.baddbmm(folded[kind.repeat(B)].view(-1, n, n), q, k.transpose(1, 2), alpha=self.scale)
    out = (scores.softmax(-1) @ v).view(B, H // M, W // M, h, M, M, -1).permute(0, 1, 4, 2, 5, 3, 6).reshape(B, H, W, C)
    return torch.roll(self.proj(out), (shift, shift), (1, 2))


def use(model: SwinIR, kernel: str) -> None:
    """Make every attention of a model compute in one way."""
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.kernel = "auto" if kernel == "baddbmm" else kernel
            module.__dict__.pop("forward", None)
            if kernel == "baddbmm":
                module.forward = baddbmm.__get__(module)


def lightweight() -> tuple[SwinIR, torch.Tensor]:
    """Return the released lightweight x2 configuration with seeded weights, and a picture of 64 x 64."""
    torch.manual_seed(0)
    return SwinIR(**own_config(VARIANTS["lightweight_x2"].config | {"drop_path_rate": 0.0})), torch.rand(1, 3, 64, 64)


def ratios(rounds: int, threads: int) -> dict[str, float]:
    """Return, for forward and training step, the twin's time over each kernel's in this process: median of paired rounds."""
    torch.set_num_threads(threads)
    model, x = lightweight()
    found = {}
    for what in ("forward", "step"):
        results: dict[str, list[torch.Tensor]] = {}

        def call(kernel: str, what: str = what, results: dict = results) -> None:
            use(model, kernel)
            if what == "forward":
                with torch.no_grad():
                    results[kernel] = [model.eval()(x)]
            else:
                model.train().zero_grad()
                loss = model(x).abs().mean()
                loss.backward()
                results[kernel] = [loss.detach(), *(p.grad.clone() for p in model.parameters())]

        times = interleave({k: (lambda k=k: call(k)) for k in KERNELS}, rounds)
        for kernel in KERNELS[1:]:
            for got, expected in zip(results[kernel], results["explicit"]):
                assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item() + 1e-8), (what, kernel)
            found[f"{what}, lightweight x2, 64 x 64: twin / {kernel}"] = statistics.median(a / b for a, b in zip(times["explicit"], times[kernel]))
    return found


def growth(kernel: str, threads: int) -> dict[str, float]:
    """Return by how much one inference of 192 x 192 raises this process's peak memory, in GiB."""
    torch.set_num_threads(threads)
    model, x = lightweight()
    use(model.eval(), kernel)
    with torch.no_grad():
        model(x)
        before = peak()
        model(torch.rand(1, 3, 192, 192))
    return {kernel: peak() - before}


def race(rounds: int, threads: int) -> dict[str, float]:
    """Return how long SRCNN's recorded training at x2 takes over ours."""
    torch.set_num_threads(threads)
    return {"training, preset small, x2: SRCNN's / ours": swinir.race(replace(swinir.PAPER.presets["small"], rounds=rounds), torch.device("cpu"))}


def large_picture(side: int, threads: int) -> dict[str, float]:
    """Restore side x side pixels x2 in tiles with the small model of this library; return seconds, memory and seams."""
    torch.set_num_threads(threads)
    model = paperlib.load("swinir", "lightweight_x2_t91")
    photo = as_tensor(dataset("photos", split="test")["chelsea"]).float()
    x = photo.repeat(1, 1, -(-side // photo.shape[2]), -(-side // photo.shape[3]))[..., :side, :side]
    model.restore(x[..., :192, :192], 96, 32)
    before, clock = peak(), time.perf_counter()
    y = model.restore(x, 96, 32, progress=True)
    found = {"seconds": time.perf_counter() - clock, "GiB before": before, "GiB at the peak": peak()}
    part = x[..., :320, :320]                                                # against the cores of tiles with all the context they could ask for
    reference = model.restore(part)
    found["largest seam against the untiled corner of 256 x 256"] = (y[..., :512, :512] - reference[..., :512, :512]).abs().max().item()
    return found


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=2048, help="of the large picture: 2048 squared is 4 megapixels; 0 leaves it out")
    parser.add_argument("--record", action="store_true", help="write results/bench/swinir.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.rounds, args.threads) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads")
    memory = {k: in_fresh_process(growth, k, args.threads)[k] for k in KERNELS}
    rows += [(f"peak of inference at 192 x 192: {k} / twin", memory[k] / memory["explicit"], f"{memory[k]:.2f} of {memory['explicit']:.2f} GiB") for k in KERNELS[1:]]
    rows += [(name, value, f"{args.rounds} rounds") for name, value in in_fresh_process(race, args.rounds, args.threads).items()]
    if args.side:
        for name, value in in_fresh_process(large_picture, args.side, args.threads).items():
            rows.append((f"{args.side} x {args.side} to x2, tiles of 96, overlap 32: {name}", value, "weights lightweight_x2_t91"))
    report(rows, RESULTS / "swinir.csv" if args.record else None)


if __name__ == "__main__":
    main()
