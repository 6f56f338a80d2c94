#!/usr/bin/env python
"""Measure this machine in a few seconds, so that a ratio taken on it can be read beside one taken elsewhere.

Every benchmark prints this table above its own numbers:

    from calibrate import interleave, print_calibration
    print_calibration()

Run by itself: ``python benchmarks/calibrate.py [--json] [--rounds N]``.
"""
from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

FEATURES = {  # what decides the speed of a matmul: our word -> the flags by which Linux and macOS report it
    "avx2": ("avx2", "AVX2"),
    "avx512": ("avx512f", "AVX512F"),
    "amx": ("amx_tile",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16", "FEAT_BF16"),
}
MIB = 2**20


def interleave(
    functions: dict[str, Callable[[], object]], rounds: int, synchronize: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Time functions turn by turn, so that a slow second of the machine falls on all of them alike.

    The order is drawn anew for each round: what a function leaves behind (memory handed back, caches filled) is not always met by the same other.

    Parameters
    ----------
    functions : dict of name -> callable without arguments
    rounds : int, >= 1
        Timed calls of each, after one untimed call of each.
    synchronize : callable, optional
        Called before the clock is read (``torch.cuda.synchronize`` where the work is on a GPU).

    Returns
    -------
    dict of name -> `rounds` durations, seconds; entry i of every list is from the same round

    Raises
    ------
    ValueError
        `rounds` is below one.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    wait = synchronize or (lambda: None)
    for function in functions.values():
        function()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in random.sample(list(functions.items()), len(functions)):
            start = time.perf_counter()
            function()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def in_fresh_process(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Call a function of a benchmark's file in a new interpreter and return what it returned: figure -> value."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def medians(measured: list[dict[str, float]], note: str = "", digits: int = 3) -> list[tuple[str, float, str]]:
    """Return rows (what, median, note) of what several processes measured; the note begins with the least and the largest value and the number of processes."""
    rows = []
    for name in measured[0]:
        values = sorted(m[name] for m in measured)
        said = f"{values[0]:.{digits}g} to {values[-1]:.{digits}g}, {len(values)} processes" + f", {note}" * bool(note)
        rows.append((name, statistics.median(values), said))
    return rows


def report(rows: list[tuple[str, float, str]], path: Path | None = None, digits: int = 3) -> None:
    """Print rows (what, value, note) in columns, and write them to a CSV file if one is given: to a temporary name, then renamed.

    Rows of a GPU that the file has stay where this machine has none.
    """
    width = max(len(what) for what, _, _ in rows)
    for what, value, note in rows:
        print(f"{what:{width}} {value:10.{digits}g}   {note}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.is_file() and not torch.cuda.is_available():
            with path.open(encoding="utf-8", newline="") as file:
                kept = [row for row in csv.reader(file) if "GPU" in row[0]]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("what", "value", "note"), *((what, f"{value:.{digits}g}", note) for what, value, note in rows), *kept])
        temporary.replace(path)


def cpu_model() -> str:
    """Return the processor's name as the operating system gives it."""
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Return the instruction-set flags that the operating system reports; empty where it reports none (Windows)."""
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return set(line.split(":", 1)[1].split())
    if platform.system() == "Darwin":
        out = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=True).stdout
        flags = {line.split(".")[-1].split(":")[0] for line in out.splitlines() if line.startswith("hw.optional.arm.") and line.endswith("1")}
        return flags | {word for line in out.splitlines() if line.startswith("machdep.cpu") for word in line.split()[1:]}
    return set()


def _row(seconds: list[float], work: float, unit: str) -> dict[str, float | str]:
    """Summarise one measurement: `work` is in the unit's own scale (GFLOP, GB); without a rate the unit is ms."""
    rates = sorted(1e3 * s for s in seconds) if unit == "ms" else sorted(work / s for s in seconds)
    return {"median": statistics.median(rates), "min": rates[0], "max": rates[-1], "unit": unit}


def _measure(device: torch.device, rounds: int) -> dict[str, dict[str, float | str]]:
    """Time two matmuls, a copy and an allocation on one device."""
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 512                      # small on a CPU: without a bf16 unit 512 already takes 0.2 s
    copy_bytes = (1024 if on_gpu else 256) * MIB     # larger than the last-level cache of most CPUs
    alloc_bytes = 64 * MIB
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, device=device, generator=generator)
    b = torch.randn(n, n, device=device, generator=generator)
    a16, b16 = a.bfloat16(), b.bfloat16()
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def allocate() -> None:
        if on_gpu:
            torch.cuda.empty_cache()                 # else the caching allocator hands back the last block
        torch.empty(alloc_bytes, dtype=torch.uint8, device=device)[::4096].fill_(1)  # touch each page: until then it is only a promise

    labels = {
        f"matmul float32 {n}": (lambda: a @ b, 2e-9 * n**3, "GFLOP/s"),
        f"matmul bf16 {n}": (lambda: a16 @ b16, 2e-9 * n**3, "GFLOP/s"),
        f"memory copy {copy_bytes // MIB} MiB": (lambda: target.copy_(source), 2e-9 * copy_bytes, "GB/s"),  # read + written
        "allocate and touch 64 MiB": (allocate, 0.0, "ms"),
    }
    seconds = interleave({k: f for k, (f, _, _) in labels.items()}, rounds, torch.cuda.synchronize if on_gpu else None)
    return {k: _row(seconds[k], work, unit) for k, (_, work, unit) in labels.items()}


def calibrate(rounds: int = 9) -> dict:
    """Describe and time this machine: the CPU with torch's present thread count, and the GPU where there is one.

    Parameters
    ----------
    rounds : int, >= 1
        Interleaved rounds; each figure is the median over them.

    Returns
    -------
    dict, ready for ``json.dumps``
        ``cpu`` (model, features, threads, cores, load of the last minute, torch, ``measured``) and ``gpu``
        (model, memory in GiB, tf32, ``measured``) or None. ``measured`` maps a label to median, min, max and unit.

    Raises
    ------
    ValueError
        `rounds` is below one.
    """
    flags = cpu_flags()
    features = {word: any(flag in flags for flag in names) for word, names in FEATURES.items()}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None   # before we add to it ourselves
    result: dict = {
        "cpu": {
            "model": cpu_model(),
            "features": features,
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load_1min": load,
            "torch": torch.__version__,
            "measured": _measure(torch.device("cpu"), rounds),
        },
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        result["gpu"] = {
            "model": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "measured": _measure(torch.device("cuda", 0), rounds),
        }
    return result


def print_calibration(result: dict | None = None) -> dict:
    """Print the table of `calibrate` (measured now unless `result` is given) and return what it was made from."""
    result = calibrate() if result is None else result
    cpu, gpu = result["cpu"], result["gpu"]
    have = ", ".join(word if there else f"no {word}" for word, there in cpu["features"].items())
    load = "unknown" if cpu["load_1min"] is None else f"{cpu['load_1min']:.2f}"
    print(f"CPU  {cpu['model']} ({have}), torch {cpu['torch']} with {cpu['torch_capability']}")
    print(f"     {cpu['threads']} threads of {cpu['cores']} cores, load before the run {load}")
    _print_rows(cpu["measured"])
    if gpu is None:
        print("GPU  none")
    else:
        print(f"GPU  {gpu['model']}, {gpu['memory_gib']:.0f} GiB, float32 matmul {'with' if gpu['tf32'] else 'without'} TF32")
        _print_rows(gpu["measured"])
    return result


def _print_rows(measured: dict[str, dict[str, float | str]]) -> None:
    for label, row in measured.items():
        print(f"     {label:<26} {row['median']:>10.4g} {row['unit']:<8} ({row['min']:.4g} to {row['max']:.4g})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time this machine: matmuls, a memory copy, an allocation.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds per figure (default 9)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: what torch would take)")
    args = parser.parse_args()
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.json:
        print(json.dumps(calibrate(args.rounds), indent=1))
    else:
        print_calibration(calibrate(args.rounds))


if __name__ == "__main__":
    main()
