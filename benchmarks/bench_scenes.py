"""How many frames a second the procedural scenes give, beside brute force, and the memory of a large picture.

    python benchmarks/bench_scenes.py                     # five fresh processes, two threads each
    python benchmarks/bench_scenes.py --processes 2 --threads 1
    python benchmarks/bench_scenes.py --record            # writes results/bench/scenes.csv as well

Frames a second are seconds in disguise and belong to one machine; the ratio to brute force travels.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from calibrate import in_fresh_process, interleave, medians, print_calibration, report

from paperlib.core.scenes import RoadConfig, RoomConfig, Scene, SceneStream, Sensor, get_rays, make_view, orbit_cameras, render, still_life

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
CONFIGS = {"rooms": RoomConfig(), "roads": RoadConfig()}


def brute_force(scene: Scene, rays_o: torch.Tensor, rays_d: torch.Tensor) -> torch.Tensor:
    """Return depth on rays (R, 3): all rays against all surfaces of a kind in one tensor operation each, as one would write it first."""
    a = {k: torch.from_numpy(v).float() for k, v in scene.arrays.items()}
    p, b, s, _ = scene.arrays["counts"].cumsum().tolist()
    best = [torch.full_like(rays_d[:, 0], torch.inf)]
    if p:
        slope = rays_d @ a["normal"].T
        t = -(rays_o @ a["normal"].T + a["offset"].T) / slope
        best.append(t.masked_fill((slope >= 0) | (t <= 0), torch.inf).amin(1))
    if b > p:
        frame, half = a["frame"][p:b], a["half"][p:b]
        o = torch.einsum("nij,rnj->rni", frame, rays_o[:, None] - a["center"][p:b])
        d = torch.einsum("nij,rj->rni", frame, rays_d)
        low, high = (-half - o) / d, (half - o) / d
        near, far = torch.minimum(low, high).amax(2), torch.maximum(low, high).amin(2)
        best.append(near.masked_fill((near > far) | (near <= 0), torch.inf).amin(1))
    if s > b:
        o = rays_o[:, None] - a["center"][b:s]
        A, B, C = rays_d.square().sum(1)[:, None], (o * rays_d[:, None]).sum(2), o.square().sum(2) - a["half"][b:s, 0] ** 2
        t = (-B - (B * B - A * C).sqrt()) / A
        best.append(t.masked_fill(~(t > 0), torch.inf).amin(1))
    for v in a["triangles"]:
        n = torch.linalg.cross(v[1] - v[0], v[2] - v[0])
        t = (n @ v[0] - rays_o @ n) / (rays_d @ n)
        q = rays_o + t[:, None] * rays_d
        inside = torch.stack([(q - v[i]) @ torch.linalg.cross(n, v[(i + 1) % 3] - v[i]) >= 0 for i in range(3)]).all(0)
        best.append(t.masked_fill(~inside | (t <= 0), torch.inf))
    return torch.stack(best).amin(0)


def frames_per_second(threads: int, rounds: int) -> dict[str, float]:
    """Return frames a second at 160 x 120 of whole streams (scene, colour, shadows, normals, labels, depth), medians over batches."""
    torch.set_num_threads(threads)
    streams = {**{f"{k}": SceneStream(c, batch_size=16) for k, c in CONFIGS.items()},
               "rooms, colour of 2 x 2 samples": SceneStream(RoomConfig(), batch_size=16, samples=2),
               "rooms, 4 views each": SceneStream(RoomConfig(), batch_size=16, views=4),
               "rooms, structured light": SceneStream(RoomConfig(), batch_size=16, sensor=Sensor.structured_light())}
    index = dict.fromkeys(streams, 0)

    def take(name: str) -> None:
        index[name] += 1
        streams[name][index[name]]

    seconds = interleave({name: partial(take, name) for name in streams}, rounds)
    return {f"{name}: frames/s at 160 x 120": 16 / statistics.median(t) for name, t in seconds.items()}


def ratios(threads: int, rounds: int) -> dict[str, float]:
    """Return brute force / ours for the same frame, median of paired rounds; ours has colour, shadows, normals and labels as well."""
    torch.set_num_threads(threads)
    pairs = {k: make_view(c, 0, 120, 160) for k, c in CONFIGS.items()}
    pairs["still life"] = still_life(0), orbit_cameras(4, 120, 160)[1]
    out = {}
    for name, (scene, camera) in pairs.items():
        o, d = (r[0].reshape(-1, 3).float() for r in get_rays(120, 160, camera.K, camera.c2w))
        ours, plain = render(scene, camera).depth.flatten(), brute_force(scene, o, d)
        agree = (ours - plain.where(plain.isfinite(), torch.zeros(()))).abs() <= 1e-3 * ours.clamp(min=1)
        assert agree.float().mean() > 0.995, name
        t = interleave({"ours": partial(render, scene, camera), "plain": partial(brute_force, scene, o, d)}, rounds)
        out[f"{name}: brute-force depth / ours with everything"] = statistics.median(p / q for p, q in zip(t["plain"], t["ours"]))
    return out


def large_picture(threads: int, rounds: int) -> dict[str, float]:
    """Return seconds and peak memory in GiB of one room at 1088 x 1376, the result included."""
    torch.set_num_threads(threads)
    scene, camera = make_view(RoomConfig(), 0, 120, 160)
    render(scene, camera)
    status = Path("/proc/self/status")                                           # ru_maxrss may be inherited from the parent
    peak = lambda: (int(status.read_text().split("VmHWM:")[1].split()[0]) if status.is_file() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20
    before, clock = peak(), time.perf_counter()
    render(scene, camera.resize(1088, 1376))
    return {"1088 x 1376: seconds": time.perf_counter() - clock, "1088 x 1376: GiB above a small picture": peak() - before}


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each figure")
    parser.add_argument("--threads", type=int, default=2, help="threads of each")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds in each")
    parser.add_argument("--record", action="store_true", help="write results/bench/scenes.csv")
    args = parser.parse_args()
    print_calibration()
    rows = []
    for function in (frames_per_second, ratios, large_picture):
        measured = [in_fresh_process(function, args.threads, args.rounds) for _ in range(args.processes)]
        rows += medians(measured, f"{args.threads} threads")
    report(rows, RESULTS / "scenes.csv" if args.record else None)


if __name__ == "__main__":
    main()
