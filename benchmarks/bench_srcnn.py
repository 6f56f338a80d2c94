"""SRCNN beside what a user would otherwise take, and the memory of a 24-megapixel picture.

    python benchmarks/bench_srcnn.py                     # every ratio over five fresh processes, then the large picture
    python benchmarks/bench_srcnn.py --processes 2 --side 1200
    python benchmarks/bench_srcnn.py --record            # writes results/bench/srcnn.csv as well
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

import paperlib
from paperlib.core.data import dataset
from paperlib.core.images import imresize
from paperlib.superres.srcnn import SRCNN, upscale

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def per_patch(model: SRCNN, y: torch.Tensor) -> torch.Tensor:
    """Compute the network as patch pipelines do, by unfolding and matrix products: the peer of the convolution."""
    for i, layer in enumerate(model.layers):
        f = layer.kernel_size[0]
        columns = F.unfold(F.pad(y, (f // 2,) * 4, mode="replicate") if f > 1 else y, f)
        y = (layer.weight.flatten(1) @ columns + layer.bias[:, None]).unflatten(-1, y.shape[-2:])
        y = y.relu() if i < 2 else y
    return y


def ratios(rounds: int) -> dict[str, float]:
    """Return peer / ours in this process, median of paired rounds."""
    model = paperlib.load("srcnn", "915_x3")
    low = imresize(torch.rand(1, 1, 85, 85, generator=torch.Generator().manual_seed(0)), 3)
    photo = np.tile(dataset("photos", split="test")["astronaut"], (2, 2, 1))[:600, :600]
    with torch.inference_mode():
        assert torch.allclose(model(low), per_patch(model, low), atol=1e-5)
        net = interleave({"ours": lambda: model(low), "peer": lambda: per_patch(model, low)}, rounds)
    assert np.array_equal(upscale(photo, model, 3), upscale(photo, model, 3, tile=10**6))
    tiles = interleave({"ours": lambda: upscale(photo, model, 3), "peer": lambda: upscale(photo, model, 3, tile=10**6)}, max(2, rounds // 3))
    paired = lambda t: statistics.median(p / o for p, o in zip(t["peer"], t["ours"]))
    return {"255 x 255: patch pipeline / convolution": paired(net), "600 x 600 to x3: one piece / tiles": paired(tiles)}


def large_picture(side: int) -> dict[str, float]:
    """Enlarge side x side pixels x3 into a file on disk; return seconds, and peak memory before and after in GiB."""
    photo = dataset("photos", split="test")["chelsea"]
    picture = np.tile(photo, (-(-side // photo.shape[0]), -(-side // photo.shape[1]), 1))[:side, :side]
    model = paperlib.load("srcnn", "915_x3")
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with tempfile.NamedTemporaryFile() as file:
        out = np.memmap(file.name, np.uint8, "w+", shape=(side * 3, side * 3, 3))
        upscale(picture[:320, :320], model, 3)
        before, clock = peak(), time.perf_counter()
        upscale(picture, model, 3, out=out, progress=True)
        return {"seconds": time.perf_counter() - clock, "GiB after a small picture": before, "GiB after the large one": peak(), "GiB of the result": out.nbytes / 2**30}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each ratio")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds in each")
    parser.add_argument("--side", type=int, default=4899, help="of the large picture: 4899 squared is 24 megapixels")
    parser.add_argument("--record", action="store_true", help="write results/bench/srcnn.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.rounds) for _ in range(args.processes)]
    rows = medians(measured)
    for name, value in in_fresh_process(large_picture, args.side).items():
        rows.append((f"{args.side} x {args.side} to x3 on disk: {name}", value, "pages of the file on disk count as memory while they are cached"))
    report(rows, RESULTS / "srcnn.csv" if args.record else None)


if __name__ == "__main__":
    main()
