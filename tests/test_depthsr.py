"""Depth super-resolution: the solver over readings, shapes and types, the protocol's bicubic rows, and input that should be refused."""

import math
import shutil

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg

import paperlib
from paperlib.core.data import dataset
from paperlib.core.images import imresize, modcrop
from paperlib.superres import depth_energy, depthsr
from paperlib.superres.depth_energy import Chebyshev, Sweeps, energy, irls, local_weights, refine, refine_sparse, sparse_system
from paperlib.superres.depthsr import ProgressiveSR, evaluate, fill_holes, scores

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def scene(height=40, width=52, dtype=torch.float64):
    """A slope, a step and noise in 0..255, and a picture with its own edges."""
    g = torch.Generator().manual_seed(0)
    depth = torch.linspace(60, 120, width, dtype=torch.float64).repeat(height, 1)
    depth[height // 3 :, width // 2 :] += 90
    color = torch.rand(3, height, width, generator=g, dtype=torch.float64) * 0.2
    color[:, height // 3 :, width // 2 + 1 :] += 0.6
    return (depth + 2 * torch.randn(height, width, generator=g, dtype=torch.float64)).to(dtype), color.to(dtype)


@pytest.mark.parametrize("name, rows", [
    ("middlebury_a", {"art": (2.572, 3.849, 5.521, 8.368), "books": (1.007, 1.562, 2.253, 3.351), "moebius": (0.908, 1.384, 2.045, 2.953)}),
    ("middlebury_c", {"cones": (2.508, 3.834, 5.514, 7.642), "teddy": (1.933, 2.841, 4.018, 6.019), "tsukuba": (5.818, 8.566, 12.332, 16.566),
                      "venus": (1.302, 1.908, 2.747, 3.890)})])
def test_bicubic_rows(shared, name, rows):
    mae = {"art": (0.481, 0.991, 1.906), "books": (0.136, 0.295, 0.581), "moebius": (0.151, 0.321, 0.633)}
    held = dataset("middlebury_depthsr", path=shared / "data" / "middlebury_depthsr", split=name[-1])
    assert held.names == tuple(rows)
    for title, (z, _) in held:
        for scale, expected in zip((2, 4, 8, 16), rows[title]):
            truth = modcrop(torch.from_numpy(z)[None, None], scale)
            found = scores(imresize(imresize(truth, 1 / scale), scale), truth)
            assert round(found["rmse"], 3) == expected
            if title in mae and scale < 16:
                assert round(found["mae"], 3) == mae[title][(2, 4, 8).index(scale)]


@pytest.mark.parametrize("window", [3, 5, 9])
@pytest.mark.parametrize("shape", [(1, 9), (7, 1), (2, 3), (9, 14), (21, 8)])
@pytest.mark.parametrize("reading", depth_energy.READINGS)
def test_the_twin_agrees_for_every_shape_and_window(reading, shape, window):
    depth, color = (x[..., : shape[0], : shape[1]].contiguous() for x in scene(30, 30))
    weights = local_weights(depth, color, window)
    assert torch.allclose(weights.sum(0), torch.ones(shape, dtype=torch.float64)) and (weights[window**2 // 2] == 0).all()
    twin, fall = refine_sparse(depth, weights, iters=3, reading=reading)
    ours, energies = refine(depth, color, iters=3, reading=reading, rtol=1e-12, window=window)
    assert np.allclose(ours.numpy(), twin, atol=1e-6)
    assert np.allclose(energies.numpy(), fall, rtol=1e-10)
    assert energies[-1].item() == pytest.approx(energy(ours, depth, weights, reading=reading, eps=0.1).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lambdas", [(0.7, 0.7), (0.0, 3.0), (5.0, 0.0), (0.7, 50.0)])
@pytest.mark.parametrize("eps", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("reading", depth_energy.READINGS)
def test_energy_never_rises_and_is_that_of_a_tight_solution(reading, eps, lambdas, dtype):
    depth, color = scene(20, 26, dtype)
    loose, tight = (refine(depth, color, *lambdas, reading=reading, eps=eps, rtol=r)[1] for r in (1e-4, 1e-6))
    assert loose[-1].item() == pytest.approx(tight[-1].item(), rel=1e-3)
    raw = np.array(refine_sparse(depth, local_weights(depth, color), *lambdas, 10, reading, eps)[1])  # the twin takes no step back
    assert (np.diff(raw) < 1e-9 * raw[-1]).all()
    for e in (loose, tight):  # `refine` takes a step back that raises the energy, so a wrong one would show as a plateau above the twin
        assert e[1] < e[0] and np.allclose(e, raw, rtol=1e-3)


def test_the_note_minimises_twice_the_weight():
    depth, color = scene()
    weights = local_weights(depth, color)
    noted, rising = irls(depth, weights, 0.7, 0.7, 8, "notes", 0.1, 1e-10, halved=False)
    double, falling = irls(depth, weights, 0.7, 1.4, 8, "notes", 0.1, 1e-10)
    assert torch.allclose(noted, double, atol=1e-7)
    assert (falling.diff() < 0).all() and (rising[1:].diff() > 0).any()


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
def test_the_polynomial_is_symmetric_and_positive(eps):
    depth, color = scene(9, 11)
    sweeps = Sweeps(local_weights(depth, color), "notes")
    w = tuple(0.7 / t.abs().clamp(min=eps) * link for t, link in zip(sweeps.gradients(sweeps.pack(depth)), sweeps.links))
    apply = Chebyshev(sweeps, w, 2.4)
    columns = [sweeps.unpack(apply(sweeps.pack(e.reshape(9, 11)))).flatten() for e in torch.eye(99, dtype=torch.float64)]
    B = torch.stack(columns)
    assert torch.allclose(B, B.T, atol=1e-12) and torch.linalg.eigvalsh(B).min() > 0
    _, P = sparse_system(local_weights(depth, color))
    M = 2.4 * np.eye(99) + 0.7 * (P.T @ np.diag(1 / np.maximum(abs(P @ depth.numpy().ravel()), eps)) @ P)
    assert np.linalg.norm(B.numpy() @ M - np.eye(99), 2) < 0.3


def test_strips_change_nothing(monkeypatch):
    depth, color = scene()
    whole = refine(depth, color)[0]
    monkeypatch.setattr(depth_energy, "STRIP", 300)
    assert torch.allclose(refine(depth, color)[0], whole, atol=1e-10)


def test_batch_is_maps_one_by_one():
    depth, color = scene(dtype=torch.float32)
    both, energies = refine(torch.stack([depth, depth.flip(0)])[:, None], torch.stack([color, color.flip(1)]))
    assert both.shape == (2, 1, 40, 52) and energies.shape == (11, 2) and both.dtype == torch.float32
    for i, (d, c) in enumerate([(depth, color), (depth.flip(0), color.flip(1))]):
        one, e = refine(d, c)
        assert torch.equal(both[i, 0], one) and torch.equal(energies[:, i], e)
    assert torch.allclose(both[1, 0].flip(0), both[0, 0], atol=1e-2)


def test_float32_solves_what_float64_solves():
    depth, color = scene(96, 128)
    tight = refine(depth, color, rtol=1e-6)
    single = refine(depth.float(), color.float(), rtol=1e-6)
    assert torch.allclose(single[0].double(), tight[0], atol=2e-2)
    assert single[1][-1].item() == pytest.approx(tight[1][-1].item(), rel=1e-5)


def test_a_fixed_point_cannot_be_improved_by_moving_pixels():
    depth, color = scene(16, 20)
    weights = local_weights(depth, color)
    best = refine(depth, color, iters=400, rtol=1e-10, eps=1e-4)[0]
    least = energy(best, depth, weights)
    g = torch.Generator().manual_seed(1)
    for size in (1e-2, 1.0):
        for _ in range(20):
            assert energy(best + size * torch.randn(16, 20, generator=g, dtype=torch.float64), depth, weights) > least


def test_loose_conjugate_gradients_reach_the_twin_solved_by_conjugate_gradients():
    depth, color = scene()
    twin, fall = refine_sparse(depth, local_weights(depth, color), solve=lambda H, b, x: cg(H, b, x, rtol=1e-4)[0])
    assert refine(depth, color)[1][-1].item() == pytest.approx(fall[-1], rel=1e-3)


def test_any_weights_count_as_they_stand():
    """A weight of the pixel itself is used, and a view cut out of a wider tensor is not taken for the padded layout."""
    depth, _ = scene(20, 26)
    depth, g = depth.double(), torch.Generator().manual_seed(0)
    wide = torch.rand(49, 20, 29, generator=g, dtype=torch.float64)
    wide = wide / wide.sum(0)
    view = wide[:, :, :26]
    padded = torch.nn.functional.pad(depth, (3, 3, 3, 3))
    patches = padded.unfold(0, 7, 1).unfold(1, 7, 1).reshape(20, 26, 49).movedim(-1, 0)      # zeros outside of the map
    for reading, gap in (("notes", (view * patches).sum(0) - depth), ("ar", depth - (view * patches).sum(0))):
        steps = depth.diff(dim=0).abs().sum() + depth.diff(dim=1).abs().sum()
        assert energy(depth, depth, view, reading=reading).item() == pytest.approx((0.7 * gap.square().sum() + 0.7 * steps).item(), rel=1e-9)


def test_refine_leaves_no_graph():
    depth, color = scene()
    found, energies = refine(depth.clone().requires_grad_(), color.clone().requires_grad_(), iters=2)
    assert not found.requires_grad and not energies.requires_grad


def test_a_frozen_unit_stays_frozen():
    model = ProgressiveSR(4).train()
    model.units[0].eval()
    model(torch.rand(1, 1, 9, 9))
    assert [unit.training for unit in model.units] == [False, True] and model.training


@pytest.mark.parametrize("change", [{"scale": 3}, {"arrangement": "x"}, {"data": "nyu"}, {"iters": -1}, {"lambda1": -1.0}, {"tests": ()}, {"tests": ("nope",)},
                                    {"widths": (0, 3)}, {"noises": (-1.0,)}, {"joint": True, "scale": 2}, {"steps": 0}])
def test_presets_that_cannot_run_are_refused(change):
    with pytest.raises(ValueError) as error:
        depthsr.PAPER.preset("smoke", change)
    assert next(iter(change)) in str(error.value)


def test_damaged_and_missing_maps_are_named(tmp_path, shared):
    root = tmp_path / "middlebury_depthsr"
    shutil.copytree(shared / "data" / "middlebury_depthsr", root)
    (root / "C_cones.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="C_cones.npz"):
        dataset("middlebury_depthsr", path=root, split="c")["cones"]
    np.savez(root / "C_teddy.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="C_teddy.npz"):
        dataset("middlebury_depthsr", path=root, split="c")["teddy"]
    np.savez(root / "C_venus.npz", depth=np.zeros((2000, 3)))
    with pytest.raises(ValueError, match="C_venus.npz has 2000 x 3"):
        dataset("middlebury_depthsr", path=root, split="c")["venus"]
    (root / "train_depth_only" / "Df_61.npz").unlink()
    with pytest.raises(FileNotFoundError, match="Df_61.npz"):
        dataset("middlebury_depthsr", path=root, split="train")


@pytest.mark.parametrize("call, message", [
    (lambda d, c: refine(torch.rand(2, 1, 1, 1)), "at least two pixels"), (lambda d, c: refine(d * 1e30), "all below"), (lambda d, c: refine(d.to(torch.complex64)), "real depth"),
    (lambda d, c: refine(d, eps="a"), "eps='a'"), (lambda d, c: refine(d, c[None]), f"got {(1, *scene()[1].shape)}"),
    (lambda d, c: energy(d, d, 7 * local_weights(d)), "add up to 1"), (lambda d, c: energy(d, d, torch.full((16, *d.shape), 1 / 16)), "odd window"),
    (lambda d, c: energy(d, d, local_weights(d).numpy()), "torch tensors"), (lambda d, c: local_weights(d, window=4), "window=4"),
    (lambda d, c: local_weights(d[:1, :1]), "two pixels"), (lambda d, c: local_weights(d.to(torch.uint8)), "uint8"), (lambda d, c: local_weights(d, c[..., :-1]), "lies on the map"),
    (lambda d, c: refine(d.numpy(), c), "torch tensors"), (lambda d, c: refine(d[None], c), "expected depth_cnn"), (lambda d, c: refine(d, c[:, :-1]), "lies on the map"),
    (lambda d, c: refine(d, c[:2]), "3 or 1"), (lambda d, c: refine(d, c * 255), "divide 8-bit pictures"), (lambda d, c: refine(d, lambda1=-1.0), "lambda1=-1.0"),
    (lambda d, c: refine(d, lambda2=math.nan), "lambda2=nan"), (lambda d, c: refine(d, reading="yang"), "'yang'"), (lambda d, c: refine(d, iters=-1), "iters=-1"),
    (lambda d, c: refine(d, iters=2.5), "iters=2.5"), (lambda d, c: refine(d, rtol=0.0), "rtol=0.0"), (lambda d, c: refine(d, eps=0.0), "eps=0.0"),
    (lambda d, c: refine(d, window=4), "window=4"), (lambda d, c: refine(d[:1, :1]), "at least two pixels"), (lambda d, c: refine(d * math.inf), "without NaN"),
    (lambda d, c: energy(d, d[:-1], local_weights(d)), "expected two maps"), (lambda d, c: energy(d, d, local_weights(d)[:48]), "window^2"),
    (lambda d, c: ProgressiveSR(3), "expected 2, 4 or 8"), (lambda d, c: ProgressiveSR(4, "both"), "one-stage"), (lambda d, c: ProgressiveSR(4)(d), "(B, 1, h, w)"),
    (lambda d, c: depthsr.training_maps("nyu", 1, 4), "'rooms' or 'middlebury'"), (lambda d, c: fill_holes(np.full((2, 3), np.nan)), "known pixel")])
def test_calls_that_are_refused(call, message):
    with pytest.raises(ValueError) as error:
        call(*scene())
    assert message in str(error.value)


def test_presets_that_are_refused():
    paper = depthsr.PAPER
    for overrides, message in [({"steps": 0}, "steps=0"), ({"joint": True, "arrangement": "one-stage"}, "no chain")]:
        with pytest.raises(ValueError, match=message):
            paper.preset("smoke", overrides)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("arrangement", depthsr.ARRANGEMENTS)
@pytest.mark.parametrize("residual", [True, False])
def test_every_chain_enlarges_by_its_factor(scale, arrangement, residual):
    model = ProgressiveSR(scale, arrangement, (8, 4), residual)
    assert len(model.units) == (round(math.log2(scale)) if arrangement == "progressive" else 1)
    with torch.no_grad():
        assert model(torch.rand(2, 1, 5, 7)).shape == (2, 1, 5 * scale, 7 * scale)
        assert len(model.stages(torch.rand(1, 1, 5, 7))) == len(model.units)


def test_evaluation_of_an_untrained_chain_is_bicubic_twice():
    pair = next(depthsr.rooms(1, 64, 96, seed=9))
    found = evaluate(ProgressiveSR(4), [pair], depthsr.PAPER.presets["smoke"], torch.device("cpu"), variants=("", "depth_only"))
    twice = imresize(imresize(imresize(pair.depth, 1 / 4), 2), 2)
    assert found["rmse_cnn"][pair.name] == pytest.approx(scores(twice, pair.depth)["rmse"], abs=1e-3)
    assert set(found) >= {"rmse", "mae", "ssim", "rmse_depth_only", "rmse_bicubic", "overshoot_first"}


def test_middlebury_parts(shared, tmp_path):
    root = shared / "data" / "middlebury_depthsr"
    counts = {split: len(dataset("middlebury_depthsr", path=root, split=split)) for split in ("a", "b", "c", "train")}
    assert counts == {"a": 3, "b": 6, "c": 4, "train": 32}
    for split in "abc":
        for name, (depth, rgb) in dataset("middlebury_depthsr", path=root, split=split):
            assert rgb is None and name in ("dolls", "laundry", "reindeer") or rgb.shape[:2] == depth.shape
    with pytest.raises(ValueError, match="split must be"):
        dataset("middlebury_depthsr", path=root, split="d")
    for name in ("cones", "teddy", "tsukuba", "venus"):
        np.savez(tmp_path / f"C_{name}.npz", depth=np.ones((4, 5), np.uint8))
    with pytest.raises(FileNotFoundError, match="incomplete"):
        dataset("middlebury_depthsr", path=tmp_path)


@GPU
@pytest.mark.parametrize("reading", depth_energy.READINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solver_on_a_gpu(reading, dtype):
    depth, color = scene(96, 128, dtype)
    on_cpu, on_gpu = refine(depth, color, reading=reading, rtol=1e-6), refine(depth.cuda(), color.cuda(), reading=reading, rtol=1e-6)
    assert on_gpu[0].is_cuda and torch.allclose(on_gpu[0].cpu(), on_cpu[0], atol=1e-2)
    assert torch.allclose(on_gpu[1], on_cpu[1], rtol=1e-5)


def test_upscale_beats_interpolation_and_refuses_by_name(shared):
    model = paperlib.load("depthsr", "progressive_x4")
    pair = next(depthsr.load_pairs("middlebury_a"))
    truth = modcrop(pair.depth, 4)
    color, small = pair.color[..., : truth.shape[-2], : truth.shape[-1]].float(), imresize(truth, 1 / 4).clamp(0, 255)
    error = lambda x: scores(x.reshape(truth.shape), truth)["rmse"]
    plain, alone, guided = imresize(small, 4), depthsr.upscale(small, model), depthsr.upscale(small[0, 0], model, color[0])
    assert guided.shape == truth.shape[-2:] and alone.shape == truth.shape and guided.min() >= 0 and guided.max() <= 255
    assert error(guided) < error(alone) < 0.85 * error(plain)
    for bad in (np.zeros((8, 8)), torch.full((8, 8), 300.0), torch.full((8, 8), torch.nan), torch.zeros(3, 8, 8)):
        with pytest.raises(ValueError, match=r"0\.\.255"):
            depthsr.upscale(bad, model)
    for bad in (np.zeros((1, 1, 8, 8)), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, 8)):
        with pytest.raises(ValueError, match=r"\(B, 1, h, w\)"):
            model(bad)
    with pytest.raises(ValueError, match="ndarray"):
        local_weights(np.zeros((8, 8)))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_chain_leaves_out_what_its_loss_says(scale):
    model, side = ProgressiveSR(scale), {2: 20, 4: 16, 8: 14}[scale]
    rim = depthsr.chain_rim(model, side)
    low, high = torch.rand(2, 1, side, side), torch.zeros(2, 1, side * scale, side * scale)
    high[..., rim:-rim, rim:-rim] = torch.nan
    assert depthsr.chain_loss(model.train(), (low, high)).isnan()
    high[..., rim - 1 : 1 - rim or None, rim - 1 : 1 - rim or None], high[..., rim:-rim, rim:-rim] = torch.nan, 0.0
    assert depthsr.chain_loss(model, (low, high)).isfinite()
