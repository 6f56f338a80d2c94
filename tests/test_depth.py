"""core.depth and the depth protocols of core.metrics: compiled against plain, every protocol against its definition, edge cases."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from paperlib.core import metrics as M
from paperlib.core.depth import boundary_scores, depth_edges, log_ratio_moments, log_ratio_moments_plain, mean_log_map, render_set
from paperlib.core.metrics import DEPTH_PROTOCOLS, depth_scores
from paperlib.core.scenes import RoadConfig, crop_mask

NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10_error", "silog", "delta_1", "delta_2", "delta_3")


def maps(shape=(3, 1, 20, 30), seed=0, dtype=torch.float32, spread=0.3):
    g = torch.Generator().manual_seed(seed)
    target = (0.3 + 12 * torch.rand(shape, generator=g)).to(dtype)
    pred = target * torch.exp(spread * torch.randn(shape, generator=g).to(dtype))
    return pred, target, torch.rand(shape, generator=g) < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_all_at_once_equals_one_by_one(dtype, compiled, monkeypatch):
    monkeypatch.setattr(M, "_COMPILED_FROM", 0 if compiled else 10**9)
    pred, target, mask = maps(dtype=dtype)
    found = depth_scores(pred, target, mask)
    assert tuple(found) == NAMES
    for name in NAMES:
        assert torch.allclose(found[name], M.PROTOCOLS[name].fn(pred, target, mask=mask), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("protocol", sorted(DEPTH_PROTOCOLS))
@pytest.mark.parametrize("pooled", [False, True])
def test_compiled_equals_plain_under_every_protocol(protocol, pooled, monkeypatch):
    shape = (2, 1, 480, 640) if protocol == "nyu" else (2, 1, 375, 1242)
    pred, target, mask = maps(shape, spread=2.0)
    target = 7 * target                                                                    # some beyond the caps
    results = []
    for start in (0, 10**12):
        monkeypatch.setattr(M, "_COMPILED_FROM", start)
        results.append(depth_scores(pred, target, mask, protocol, pooled))
    for name in NAMES:
        assert results[0][name].shape == (1 if pooled else 2,)
        assert torch.allclose(results[0][name], results[1][name], rtol=1e-9), name


@pytest.mark.parametrize("protocol", ["kitti_garg", "kitti_eigen", "kitti_garg_median"])
def test_a_kitti_protocol_by_its_definition(protocol):
    pred, target, mask = maps((2, 1, 375, 1242), seed=3, spread=0.5)
    target, rule = 10 * target, DEPTH_PROTOCOLS[protocol]
    found = depth_scores(pred, target, mask, protocol)
    for i in range(2):
        keep = (mask[i] & (target[i] > 1e-3) & (target[i] < 80) & crop_mask(rule.crop, 375, 1242)[0]).numpy()
        p, t = pred[i].double().numpy()[keep], target[i].double().numpy()[keep]
        p = np.clip(p * (np.median(t) / np.median(p) if rule.scaling == "median" else 1), 1e-3, 80)
        assert found["abs_rel"][i].item() == pytest.approx(np.mean(np.abs(p - t) / t), rel=1e-9)
        assert found["rmse"][i].item() == pytest.approx(np.sqrt(np.mean((p - t) ** 2)), rel=1e-9)
        assert found["delta_1"][i].item() == pytest.approx(np.mean(np.maximum(p / t, t / p) < 1.25), rel=1e-9)


def test_crops_have_the_published_corners():
    mask = crop_mask("garg", 375, 1242)[0, 0]
    target = torch.full((1, 1, 375, 1242), 10.0)
    pred = torch.where(mask, 10.0, 5.0)[None, None]
    assert depth_scores(pred, target, protocol="kitti_garg")["abs_rel"].item() == 0
    pred[..., 153, 44] = 20.0                                                               # rows 153 to 370, columns 44 to 1196
    pred[..., 371, 600] = pred[..., 200, 1197] = 20.0
    assert depth_scores(pred, target, protocol="kitti_garg")["abs_rel"].item() == pytest.approx(1 / (218 * 1153))
    with pytest.raises(ValueError, match="480 x 640 only"):
        depth_scores(pred, target, protocol="nyu")


def test_pooled_weighs_pixels_and_not_images():
    target = torch.ones(2, 1, 2, 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool().view(2, 1, 2, 2)
    pred = torch.tensor([1.1, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    each, both = depth_scores(pred, target, mask), depth_scores(pred, target, mask, pooled=True)
    assert each["abs_rel"].tolist() == pytest.approx([0.1, 1.0], rel=1e-6)
    assert both["abs_rel"].item() == pytest.approx(1.4 / 5, rel=1e-6) and both["rmse"].item() == pytest.approx(math.sqrt(1.04 / 5), rel=1e-6)
    assert both["delta_1"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("spoil, message", [
    (lambda p, t, m: m.__setitem__(1, False), "image 1 has no valid pixel"),
    (lambda p, t, m: p.__setitem__((2, 0, 0, 0), -1.0), "image 2 has a prediction that is not above 0"),
    (lambda p, t, m: p.__setitem__((2, 0, 0, 0), torch.nan), "image 2 has a prediction that is not finite"),
    (lambda p, t, m: p.__setitem__((0, 0, 0, 0), torch.inf), "image 0 has a prediction that is not finite"),
    (lambda p, t, m: t.__setitem__((1, 0, 0, 0), torch.nan), "image 1 has a target that is not finite and above 0"),
    (lambda p, t, m: (t.__setitem__((1, 0, 0, 0), -2.0), p.__setitem__((1, 0, 0, 0), -2.0)), "image 1 has a target that is not finite and above 0"),
    (lambda p, t, m: t.__setitem__((0, 0, 0, 0), torch.inf), "image 0 has a target that is not finite and above 0"),
])
def test_what_cannot_be_scored_is_named(compiled, spoil, message, monkeypatch):
    monkeypatch.setattr(M, "_COMPILED_FROM", 0 if compiled else 10**9)
    pred, target, mask = maps()
    mask[..., 0, 0] = True
    spoil(pred, target, mask)
    with pytest.raises(ValueError, match=message):
        depth_scores(pred, target, mask)


@pytest.mark.parametrize("compiled", [False, True])
def test_masked_pixels_may_hold_anything(compiled, monkeypatch):
    monkeypatch.setattr(M, "_COMPILED_FROM", 0 if compiled else 10**9)
    pred, target, mask = maps()
    want = depth_scores(pred, target, mask)
    for bad in (torch.nan, torch.inf, -1.0, 0.0):
        p, t = pred.clone(), target.clone()
        p[~mask] = t[~mask] = bad
        assert all(torch.equal(v, want[k]) for k, v in depth_scores(p, t, mask).items())


def test_median_of_an_even_number_is_the_mean_of_the_middle_two():
    target = torch.tensor([1.0, 2, 4, 8]).view(1, 1, 1, 4)
    pred = torch.tensor([1.0, 1, 1, 3]).view(1, 1, 1, 4)
    assert depth_scores(pred, target, protocol="median")["abs_rel"].item() == pytest.approx((2 + 0.5 + 0.25 + 1 / 8) / 4)     # scaled by 3


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 5), (2, 1, 130, 253), (5, 1, 64, 256)])
def test_moments_of_any_size(shape):
    pred, target, mask = maps(shape)
    for a, b in zip(log_ratio_moments(pred, target, mask), log_ratio_moments_plain(pred.double(), target.double(), mask)):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-6)


def test_moments_survive_extreme_ratios():
    target = torch.tensor([1e-6, 1.0, 1e6, 3.0]).view(1, 1, 1, 4)
    pred = torch.tensor([1e6, 1.0, 1e-6, 3.0]).view(1, 1, 1, 4)
    n, mean, variance = log_ratio_moments(pred, target, torch.ones_like(target).bool())
    assert n.item() == 4 and mean.item() == pytest.approx(0, abs=1e-5) and variance.item() == pytest.approx((12 * math.log(10)) ** 2 / 2, rel=1e-6)


def test_moments_do_not_copy_what_is_not_contiguous():
    pred, target, mask = maps((2, 1, 40, 60))
    turned = [v.mT for v in (pred, target, mask)]
    for a, b in zip(log_ratio_moments(*turned), log_ratio_moments(pred, target, mask)):
        assert torch.allclose(a, b, rtol=1e-5)


def test_rendered_sets_do_not_depend_on_workers():
    one, two = (render_set(300, (12, 16), 7, workers=w) for w in (0, 2))
    assert torch.equal(one.rgb, two.rgb) and torch.equal(one.depth, two.depth)
    more = render_set(330, (12, 16), 7, workers=0)
    assert torch.equal(more.rgb[:300], one.rgb) and not torch.equal(render_set(8, (12, 16), 8, workers=0).rgb, one.rgb[:8])


def test_roads_can_be_rendered_too():
    assert (render_set(2, (24, 40), 0, RoadConfig(), workers=0).depth > 0).any()


def test_mean_map_takes_cells_and_a_limit():
    pool = render_set(6, (12, 16), 0, workers=0)
    few = mean_log_map(pool, lambda d: d[..., ::4, ::4], limit=2)
    assert few.shape == (1, 1, 3, 4) and torch.allclose(few, pool.depth[:2, :, ::4, ::4].float().log().mean(0, keepdim=True), atol=1e-4)


def test_edges_need_known_neighbours_and_their_jump():
    depth = torch.tensor([1.0, 1.2, 2.0, 2.0, 0.0, 4.0]).view(1, 1, 1, 6)
    assert depth_edges(depth, depth > 0)[0, 0, 0].tolist() == [False, True, False, False, False, False]
    assert depth_edges(depth, depth > 0, jump=1.19)[0, 0, 0].tolist() == [True, True, False, False, False, False]
    flat = torch.ones(1, 1, 4, 4)
    assert all(v == 0 for v in boundary_scores(flat, flat, flat > 0).values())


def test_edge_contrast_has_a_sign():
    step = torch.ones(1, 1, 4, 6)
    step[..., 3:] = 2.0
    assert boundary_scores(1 / step, step, step > 0)["edge_contrast"].item() == pytest.approx(-1)
    assert boundary_scores(step.sqrt(), step, step > 0)["edge_contrast"].item() == pytest.approx(0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("protocol", ["plain", "oracle", "median"])
def test_scores_on_a_gpu_equal_the_cpu(protocol):
    pred, target, mask = maps((4, 1, 120, 160))
    here, there = depth_scores(pred, target, mask, protocol), depth_scores(pred.cuda(), target.cuda(), mask.cuda(), protocol)
    assert all(torch.allclose(v, there[k].cpu(), rtol=1e-9) for k, v in here.items())


def test_scores_leave_the_threads_of_the_caller():
    # Numba's start sets torch's threads where the two share OpenMP; sums would then be cut otherwise, and a second run with the same seed end in other digits
    program = "import torch; torch.set_num_threads(1); from paperlib.core.metrics import depth_scores as s; t = torch.rand(2, 1, 400, 400) + 1; s(t + 1, t); print(torch.get_num_threads())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
