"""Rectangle counts beside cutting out, boosting 200 rounds on 50,000 pixels, and both boosters side by side.

    python benchmarks/bench_perspective.py                      # three fresh processes
    python benchmarks/bench_perspective.py --processes 1 --pixels 5000 --pair 1
    python benchmarks/bench_perspective.py --record             # writes results/bench/perspective.csv as well

Counts: 2,000 questions about 100 pixels of a picture of 96 x 128, words of which there are 64 a descriptor. The twin cuts each rectangle out of the words
and counts in NumPy; twenty times as fast is asked for. Boosting: classes and questions as in the preset ``small`` (2 classes for depth alone, 11 jointly with
labels), and four rows to a pixel, one of its depth and three of others; four minutes on two threads are allowed. Counts are drawn at random so that under a
quarter of them is above the first threshold. The boosters are set side by side in turn, a few rounds each on the 48,000 rows of ``small``: with all of its
2,000 questions, as the page uses them, and with 200. scikit-learn's histogram gradient boosting looks at every question at every split, JointBoost at a
hundred a round, so the number of questions decides. What compiles is called once before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.scenes import RoomConfig, SceneStream
from paperlib.depth.joint_boost import HistBoost, JointBoost
from paperlib.depth.pixel_features import Columns, Vocabulary, draw_columns, rectangle_counts

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def cut_out(words: np.ndarray, points: np.ndarray, columns: Columns) -> np.ndarray:
    """Return what `rectangle_counts` does, rectangle by rectangle."""
    out = np.empty((len(columns), len(points)), np.int32)
    for m, (kind, word, (top, left, bottom, right)) in enumerate(zip(*columns)):
        for n, (y, x) in enumerate(points):
            out[m, n] = np.count_nonzero(words[kind, max(0, y + top):max(0, y + bottom), max(0, x + left):max(0, x + right)] == word)
    return out


def drawn_counts(rng: np.random.Generator, questions: int, rows: int) -> np.ndarray:
    """Return counts (questions, rows), question by question: all at once would take gigabytes."""
    out = np.empty((questions, rows), np.uint16)
    for row in out:
        row[:] = (rng.random(rows) < 0.25) * rng.geometric(0.05, rows)
    return out


def measure(pixels: int, rounds: int, pair: int, n_threads: int) -> dict[str, float]:
    """Measure everything once in this process."""
    torch.set_num_threads(n_threads)
    picture = SceneStream(RoomConfig(fov=(60, 60)), 96, 128, 1, seed=3)[0].rgb[0].movedim(0, -1).numpy()
    words, columns = Vocabulary.fit([picture], 64)(picture), draw_columns(2000, 64, 28)
    rng = np.random.default_rng(0)
    points = np.stack([rng.integers(0, 96, 100), rng.integers(0, 128, 100)], 1)
    assert np.array_equal(rectangle_counts(words, points, columns), cut_out(words, points, columns))
    seconds = interleave({"ours": lambda: rectangle_counts(words, points, columns), "cut out": lambda: cut_out(words, points, columns)}, 3)
    found = {"rectangle counts: cutting out / integral images": statistics.median(a / b for a, b in zip(seconds["cut out"], seconds["ours"]))}
    counts = drawn_counts(rng, 2000, 4 * pixels)
    few = np.ascontiguousarray(counts[:, :48000])
    for classes in (2, 11):
        target = rng.integers(0, classes, 4 * pixels)
        JointBoost(2, 100).fit(counts[:, :500], target[:500])
        clock = time.perf_counter()
        JointBoost(rounds, 100).fit(counts, target)
        found[f"{rounds} rounds, {pixels} pixels, 2000 questions, {classes} classes: seconds of JointBoost"] = time.perf_counter() - clock
        for questions in (2000, 200):
            ask, answer = few[:questions], target[:few.shape[1]]
            seconds = interleave({"trees": lambda: HistBoost(pair).fit(ask, answer), "stumps": lambda: JointBoost(pair, 100).fit(ask, answer)}, 1)  # noqa: B023 (called here)
            found[f"{pair} rounds, {len(answer)} rows, {questions} questions, {classes} classes: scikit-learn's trees of 8 leaves / JointBoost"] = seconds["trees"][0] / seconds["stumps"][0]
    return found


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=50000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--pair", type=int, default=3, help="rounds of the two boosters side by side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write results/bench/perspective.csv")
    given = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(measure, given.pixels, given.rounds, given.pair, given.threads) for _ in range(given.processes)]
    report(medians(measured), RESULTS / "perspective.csv" if given.record else None)


if __name__ == "__main__":
    main()
