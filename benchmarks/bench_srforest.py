"""Super-resolution forests beside what a user would otherwise take: training and inference at x3, all of T91, two threads.

    python benchmarks/bench_srforest.py                   # every ratio over five fresh processes, about two minutes each on an idle machine
    python benchmarks/bench_srforest.py --pictures 12 --processes 1
    python benchmarks/bench_srforest.py --record          # writes results/bench/srforest.csv as well

Training: one tree on all patches, ours against the NumPy twin and against scikit-learn's ExtraTreesRegressor on the stacked objective (whose
leaves then get the same ridge models). Inference: Set5, ten trees, against the twin (plain routing and one matrix product a leaf) and SRCNN 9-1-5.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report
from sklearn.ensemble import ExtraTreesRegressor

import paperlib
from paperlib.core.data import dataset
from paperlib.core.images import imresize, merge_patches, modcrop
from paperlib.superres.srcnn import luma
from paperlib.superres.srforest import (
    Forest,
    SuperResolutionForest,
    Trees,
    grow,
    growth_of,
    ridge_plain,
    score,
    threads,
    training_pairs,
)

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def extra_trees(X: np.ndarray, Y: np.ndarray, n_trees: int) -> Trees:
    """Grow scikit-learn's forest on [Y / sqrt(D), X / sqrt(F)], whose summed variance is our objective, and fit ridge models in its leaves."""
    stacked = np.hstack([Y / np.sqrt(Y.shape[1]), X / np.sqrt(X.shape[1])]).astype(np.float32)
    model = ExtraTreesRegressor(n_trees, max_depth=16, min_samples_leaf=64, max_features="sqrt", random_state=0, n_jobs=-1).fit(X, stacked)
    tables, offset, leaves = [], n_trees, 0
    where = model.apply(X)
    for t, tree in enumerate(e.tree_ for e in model.estimators_):
        # node 0 goes to place t, the others behind one another in an order that puts the right child after the left
        place, order = np.full(tree.node_count, -1), [0]
        place[0] = t
        for node in order:
            if tree.children_left[node] >= 0:
                pair = tree.children_left[node], tree.children_right[node]
                place[list(pair)] = offset, offset + 1
                offset += 2
                order.extend(pair)
        ends = [n for n in order if tree.children_left[n] < 0]
        rows = np.argsort(where[:, t], kind="stable")
        bounds = np.searchsorted(where[rows, t], ends), np.searchsorted(where[rows, t], ends, side="right")
        weights = np.stack([ridge_plain(X[rows[i:j]], Y[rows[i:j]], 0.01) for i, j in zip(*bounds)]).astype(np.float32)
        tables.append((tree, place, order, ends, leaves, weights, bounds[1] - bounds[0]))
        leaves += len(ends)
    features, thresholds = np.full((offset, 2), -1, np.int32), np.zeros(offset, np.float32)
    child, leaf = np.full(offset, -1, np.int32), np.full(offset, -1, np.int32)
    for tree, place, order, ends, first, _, _ in tables:
        inner = [n for n in order if tree.children_left[n] >= 0]
        features[place[inner], 0], child[place[inner]] = tree.feature[inner], place[tree.children_left[inner]]
        thresholds[place[inner]] = np.nextafter(tree.threshold[inner].astype(np.float32), np.float32(np.inf))  # theirs is x <= t, ours x < t
        leaf[place[ends]] = first + np.arange(len(ends))
    return Trees(features, thresholds, child, leaf, np.concatenate([t[5] for t in tables]), np.concatenate([t[6] for t in tables]).astype(np.int32), n_trees)


def plain_predict(model: SuperResolutionForest, low: np.ndarray) -> np.ndarray:
    """Restore a picture in NumPy: routing level by level, then one matrix product for each leaf and tree."""
    forest, s = model.forest_, model.scale
    middle = imresize(torch.from_numpy(low)[None, None], s)[0, 0].numpy()
    X = forest.inputs(middle)
    phi, leaves = np.insert(X, X.shape[1], 1, axis=1), forest.trees.leaves(X)
    total = np.zeros((len(X), 9 * s * s), np.float32)
    for t in range(forest.trees.n_trees):
        rows = np.argsort(leaves[:, t], kind="stable")
        for group in np.split(rows, np.flatnonzero(np.diff(leaves[rows, t])) + 1):
            total[group] += phi[group] @ forest.trees.weights[leaves[group[0], t]]
    merged = merge_patches(torch.from_numpy(total / forest.trees.n_trees).reshape(1, -1, 1, 3 * s, 3 * s), middle.shape[0] - 2 * s, middle.shape[1] - 2 * s, s)
    return middle + np.pad(merged[0, 0].numpy(), s)


def ratio(seconds: dict[str, list[float]], peer: str) -> float:
    """Return peer / ours, median of paired rounds."""
    return statistics.median(p / o for p, o in zip(seconds[peer], seconds["ours"]))


def measure(n_pictures: int, n_threads: int, rounds: int) -> dict[str, float]:
    """Measure everything once in this process."""
    pictures, test, found = dataset("t91")[:n_pictures], dataset("set5", scale=3), {}
    os.environ["LOKY_MAX_CPU_COUNT"] = str(n_threads)
    with threads(n_threads):
        X, Y, basis = training_pairs(pictures, 3)
        one = dataclasses.replace(growth_of(SuperResolutionForest()), n_trees=1)
        four = dataclasses.replace(one, n_trees=4)
        kept: dict[str, Trees] = {}
        grow(X[:3000], Y[:3000], one)                                      # compile before the clock starts
        train = interleave({"ours": lambda: kept.update(ours=grow(X, Y, four)[0]), "sklearn": lambda: kept.update(sklearn=extra_trees(X, Y, 4))}, 1)
        found["training, four trees: ExtraTrees / ours"] = ratio(train, "sklearn")
        for name, trees in kept.items():
            model = SuperResolutionForest(n_trees=4)
            model.forest_ = Forest(3, basis, trees)
            found[f"dB on Set5, four trees: {name}"] = statistics.fmean(score(model, test, 3)["psnr"].values())
            found[f"leaves a tree: {name}"] = len(trees.counts) / 4
        clock = time.perf_counter()
        kept["twin"] = grow(X, Y, one, backend="numpy")[0]                 # once: no compilation, no warm-up, and a minute or more
        middle = time.perf_counter()
        kept["ours"] = grow(X, Y, one)[0]
        found["training, one tree: NumPy twin / ours"] = (middle - clock) / (time.perf_counter() - middle)
        assert np.array_equal(kept["ours"].thresholds, kept["twin"].thresholds), "the twin grew another tree"
        clock = time.perf_counter()
        model = SuperResolutionForest(n_jobs=n_threads).fit(pictures)
        found["seconds from pictures to ten trees"] = time.perf_counter() - clock
        net = paperlib.load("srcnn", "915_x3").to(memory_format=torch.channels_last)
        lows = [imresize(modcrop(luma(p), 3), 1 / 3)[0, 0].numpy() for _, p in test]
        assert all(np.allclose(model.predict(low), plain_predict(model, low), atol=1e-3) for low in lows)
        convolve = torch.inference_mode()(lambda low: net(imresize(torch.from_numpy(low)[None, None], 3).float()))
        infer = interleave({"ours": lambda: [model.predict(low) for low in lows], "twin": lambda: [plain_predict(model, low) for low in lows],
                            "SRCNN": lambda: [convolve(low) for low in lows]}, rounds)
    found["Set5, ten trees: NumPy twin / ours"] = ratio(infer, "twin")
    found["Set5, ten trees: SRCNN 9-1-5 / ours"] = ratio(infer, "SRCNN")
    found["seconds a Set5 picture, ten trees"] = statistics.median(infer["ours"]) / len(lows)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "forest.npz")
        found["MiB of the forest's file"] = (Path(folder) / "forest.npz").stat().st_size / 2**20
    return found


def peak_memory(n_pictures: int, scale: int) -> dict[str, float]:
    """Fit ten trees and return this process's peak memory."""
    SuperResolutionForest(scale=scale).fit(dataset("t91")[:n_pictures])
    return {f"GiB at most while ten trees are fitted at x{scale}": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=91, help="of T91 to train on")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each figure")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of inference in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/srforest.csv")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(measure, args.pictures, args.threads, args.rounds) for _ in range(args.processes)]
    rows = medians(measured, digits=4)
    for scale in (2, 3):
        rows += [(name, value, "one process") for name, value in in_fresh_process(peak_memory, args.pictures, scale).items()]
    report(rows, RESULTS / "srforest.csv" if args.record else None, digits=4)


if __name__ == "__main__":
    main()
