"""The energy solver beside scipy.sparse: the same IRLS, the same systems, the same tolerance; then memory, and a map of 1088 x 1376.

    python benchmarks/bench_depthsr.py                    # every ratio over five fresh processes, some minutes each
    python benchmarks/bench_depthsr.py --processes 1 --spsolve-size 64 80
    python benchmarks/bench_depthsr.py --record           # writes results/bench/depthsr.csv as well

Peers: ``scipy.sparse.linalg.cg`` plain and with a Jacobi preconditioner, each on the assembled matrix, warm-started from the map before; a
peer's time counts its own assembly of each system from a product A'A that is built once beforehand and not counted. ``spsolve`` is run on a
smaller map (its fill-in grows too fast) for one system. All in float64 on both sides; ours is timed in float32 as well, its default for float32 maps.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report
from scipy.sparse.linalg import cg, spsolve

from paperlib.core.images import imresize
from paperlib.core.scenes import RoomConfig, SceneStream
from paperlib.superres.depth_energy import irls, local_weights, refine, sparse_system

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
LAMBDA, EPS = 0.7, 0.1


def problem(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rendered room's inverse depth at bicubic x4, 0..255, and its picture, float64."""
    frame = SceneStream(RoomConfig(), height, width, 1, seed=5)[0]
    exact = 255 * frame.depth.double().min() / frame.depth.double()
    return imresize(imresize(exact, 1 / 4), 4)[0, 0], frame.rgb[0].double()


class Peer:
    """IRLS with matrices: A'A and P once, then a system a step."""

    def __init__(self, depth: torch.Tensor, weights: torch.Tensor):
        self.A, self.P = sparse_system(weights)
        self.star = depth.numpy().ravel()
        self.fixed = (sp.eye_array(len(self.star)) + 2 * LAMBDA * (self.A.T @ self.A)).tocsr()
        self.right_side = self.star + 2 * LAMBDA * (self.A.T @ self.star)
        self.on = np.asarray(abs(self.P).sum(1)).ravel() > 0

    def system(self, d: np.ndarray) -> sp.csr_array:
        """Return H at a map."""
        return (self.fixed + LAMBDA * (self.P.T @ sp.diags_array(self.on / np.maximum(np.abs(self.P @ d), EPS)) @ self.P)).tocsr()

    def energy(self, d: np.ndarray) -> float:
        """Return the rounded energy."""
        t = np.abs(self.P @ d)[self.on]
        tv = np.where(t < EPS, (t * t / EPS + EPS) / 2, t).sum()
        return 0.5 * ((d - self.star) ** 2).sum() + LAMBDA * ((self.A @ d - self.star) ** 2).sum() + LAMBDA * tv

    def run(self, iters: int, rtol: float, jacobi: bool) -> np.ndarray:
        """Return the map after some IRLS steps."""
        d = self.star
        for _ in range(iters):
            H = self.system(d)
            d, _ = cg(H, self.right_side, d, rtol=rtol, M=sp.diags_array(1 / H.diagonal()) if jacobi else None)
        return d


def measure(height: int, width: int, small: tuple[int, int], n_threads: int, rounds: int) -> dict[str, float]:
    """Measure everything once in this process."""
    torch.set_num_threads(n_threads)
    depth, color = problem(height, width)
    found: dict[str, float] = {}
    for rtol in (1e-4, 1e-6):
        weights = local_weights(depth, color)
        peer = Peer(depth, weights)
        ours = lambda dtype, rtol=rtol: irls(depth, weights.to(dtype), LAMBDA, LAMBDA, 10, "notes", EPS, rtol)  # noqa: B023
        light = local_weights(depth.float(), color.float())
        kept = {"ours": ours(torch.float64)[1][-1].item(), "float32": irls(depth, light, LAMBDA, LAMBDA, 10, "notes", EPS, rtol)[1][-1].item(),
                "cg": peer.energy(peer.run(10, rtol, False)), "jacobi": peer.energy(peer.run(10, rtol, True))}
        spread = (max(kept.values()) - min(kept.values())) / kept["ours"]
        assert spread < 1e-3, f"the solvers end at different energies: {kept}"
        found[f"rtol {rtol:g}: energies differ by at most"] = spread
        seconds = interleave({"ours": lambda: irls(depth, weights, LAMBDA, LAMBDA, 10, "notes", EPS, rtol),  # noqa: B023
                              "float32": lambda: irls(depth, light, LAMBDA, LAMBDA, 10, "notes", EPS, rtol),  # noqa: B023
                              "cg": lambda: peer.run(10, rtol, False), "jacobi": lambda: peer.run(10, rtol, True)}, rounds)  # noqa: B023
        ratio = lambda a, b: statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))  # noqa: B023
        for name, label in (("cg", "scipy cg"), ("jacobi", "scipy cg with Jacobi")):
            found[f"rtol {rtol:g}, ten steps: {label} / ours (float64)"] = ratio(name, "ours")
            found[f"rtol {rtol:g}, ten steps: {label} / ours (float32)"] = ratio(name, "float32")
        found[f"rtol {rtol:g}, ten steps: seconds of ours (float64)"] = statistics.median(seconds["ours"])
        found[f"rtol {rtol:g}, ten steps: seconds of ours (float32)"] = statistics.median(seconds["float32"])
        H = peer.system(depth.numpy().ravel())
        jacobi = sp.diags_array(1 / H.diagonal())
        one = interleave({"ours": lambda: irls(depth, weights, LAMBDA, LAMBDA, 1, "notes", EPS, rtol),  # noqa: B023
                          "cg": lambda: cg(H, peer.right_side, peer.star, rtol=rtol), "jacobi": lambda: cg(H, peer.right_side, peer.star, rtol=rtol, M=jacobi)},  # noqa: B023
                         rounds)
        for name, label in (("cg", "scipy cg"), ("jacobi", "scipy cg with Jacobi")):
            found[f"rtol {rtol:g}, first system, matrix given: {label} / one whole step of ours"] = statistics.median(p / o for p, o in zip(one[name], one["ours"]))
    depth, color = problem(*small)
    weights = local_weights(depth, color)
    peer = Peer(depth, weights)
    clock = time.perf_counter()
    spsolve(peer.system(peer.star).tocsc(), peer.right_side)
    direct = time.perf_counter() - clock
    one = interleave({"ours": lambda: irls(depth, weights, LAMBDA, LAMBDA, 1, "notes", EPS, 1e-6)}, rounds)
    found[f"{small[0]} x {small[1]}, one system: spsolve / ours at rtol 1e-6"] = direct / statistics.median(one["ours"])
    return found


def memory(height: int, width: int, n_threads: int) -> dict[str, float]:
    """Refine a map in float32 and return the time, and the most memory that it took beyond what stood before."""
    torch.set_num_threads(n_threads)
    generator = torch.Generator().manual_seed(0)
    depth = imresize(200 * torch.rand(height // 8, width // 8, generator=generator), 8)
    color = imresize(torch.rand(3, height // 8, width // 8, generator=generator), 8).clamp(0, 1)
    refine(depth[:32, :32], color[:, :32, :32])
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    clock = time.perf_counter()
    refine(depth, color)
    seconds = time.perf_counter() - clock
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held when it started this process
    grown = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) - before
    label = f"{height} x {width}, float32, weights and ten steps"
    return {f"{label}: seconds": seconds, f"{label}: bytes a pixel": grown / (height * width)}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320))
    parser.add_argument("--spsolve-size", type=int, nargs=2, default=(96, 128))
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/depthsr.csv")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print_calibration()
    measured = [in_fresh_process(measure, *args.size, tuple(args.spsolve_size), args.threads, args.rounds) for _ in range(args.processes)]
    rows = medians(measured, digits=4)
    for height, width in ((272, 344), (544, 688), (1088, 1376)):
        rows += [(name, value, "one process") for name, value in in_fresh_process(memory, height, width, args.threads).items()]
    report(rows, RESULTS / "depthsr.csv" if args.record else None, digits=4)


if __name__ == "__main__":
    main()
