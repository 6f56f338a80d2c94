"""docs/conventions.md for pictures: what every score refuses, the grid, the border and the rounding of a resize, crops, patches, tiles."""
import math
import re

import numpy as np
import pytest
import torch

from paperlib.core import metrics
from paperlib.core.images import imresize, modcrop, patches, rgb_to_y, rgb_to_ycbcr, tiled, to_uint8

SR = ("psnr_y_crop", "ssim_y_crop", "psnr_rgb_crop", "ssim_rgb_crop", "psnr_b")
VIDEO = ("mse_sum_frame", "mae_sum_frame", "ssim", "ssim_legacy", "psnr", "psnr_uint8_wrapped")
DEPTH = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10_error", "silog", "delta_1", "delta_2", "delta_3")


def inputs(name, n=3):
    """Return (pred, target, further arguments) in the layout of a metric."""
    g = torch.Generator().manual_seed(0)
    shape = {**dict.fromkeys(SR, (n, 3, 24, 32)), **dict.fromkeys(VIDEO, (n, 2, 3, 24, 32)), **dict.fromkeys(DEPTH, (n, 1, 24, 32))}[name]
    target, noise = torch.rand(shape, generator=g) * 0.8 + 0.1, torch.randn(shape, generator=g)
    return target * (0.4 * noise).exp() if name in DEPTH else target + 0.05 * noise, target, (2,) if name in SR else ()


# ---- every score, by its name ----

def test_convention_every_protocol_belongs_to_a_layout():
    assert set(metrics.PROTOCOLS) == {*SR, *VIDEO, *DEPTH}


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
def test_convention_the_direction_of_a_score_is_stated(name):
    pred, target, more = inputs(name)
    fn, protocol = metrics.metric(name), metrics.PROTOCOLS[name]
    worse = target * (pred / target) ** 2 if name in DEPTH else target + 3 * (pred - target)
    gain = fn(pred, target, *more).mean() - fn(worse, target, *more).mean()
    assert gain > 0 if protocol.higher_is_better else gain < 0


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
def test_convention_the_batch_axis_is_never_dropped(name):
    pred, target, more = inputs(name)
    with pytest.raises(ValueError, match="expected .*" + re.escape(str(tuple(pred.shape[1:])))):
        metrics.metric(name)(pred[0], target[0], *more)


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
def test_convention_shapes_do_not_broadcast(name):
    pred, target, more = inputs(name)
    with pytest.raises(ValueError, match="one shape"):
        metrics.metric(name)(pred[:1], target, *more)


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
def test_convention_pictures_are_float(name):
    pred, target, more = inputs(name)
    with pytest.raises(ValueError, match="float tensor"):
        metrics.metric(name)((pred * 255).clamp(0, 255).byte(), (target * 255).byte(), *more)


@pytest.mark.parametrize("name", [*SR, "ssim", "ssim_legacy", "psnr", "psnr_uint8_wrapped"])
def test_convention_pictures_are_in_zero_to_one(name):
    pred, target, more = inputs(name)
    with pytest.raises(ValueError, match=r"expected target in \[0, 1\]"):
        metrics.metric(name)(pred * 255, target * 255, *more)
    with pytest.raises(ValueError, match=r"expected pred in \[0, 1\]"):
        metrics.metric(name)(pred * 255, target, *more)


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_convention_a_fault_names_its_image(name, value):
    pred, target, more = inputs(name)
    pred[(2, 1, 0, 3, 4) if name in VIDEO else (2, 0, 3, 4)] = value
    with pytest.raises(ValueError, match="clip 2, frame 1" if name in VIDEO else "image 2"):
        metrics.metric(name)(pred, target, *more)


@pytest.mark.parametrize("name", metrics.PROTOCOLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convention_half_precision_inputs_are_scored_in_float64(name, dtype):
    pred, target, more = inputs(name)
    low = [(v.clamp(0.1, 1) * 64).round() / 64 for v in (pred, target)]       # exact in both dtypes
    value = metrics.metric(name)(*(v.to(dtype) for v in low), *more)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, metrics.metric(name)(*low, *more), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", metrics.PROTOCOLS)
def test_convention_a_score_is_the_same_on_a_gpu(name):
    pred, target, more = inputs(name)
    value = metrics.metric(name)(pred.cuda(), target.cuda(), *more)
    assert value.is_cuda
    torch.testing.assert_close(value.cpu(), metrics.metric(name)(pred, target, *more), rtol=1e-10, atol=1e-10)


def test_convention_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="nearest: psnr_y_crop"):
        metrics.metric("psnr_ycrop")
    with pytest.raises(ValueError, match="abs_rel"):
        metrics.metric("zzz")


# ---- pictures: colour, crop, rounding ----

def test_convention_y_is_linear_in_grey_and_not_rounded():
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    np.testing.assert_allclose(rgb_to_y(grey)[0], 16 + np.arange(256) * 219 / 255, rtol=0, atol=1e-9)
    np.testing.assert_allclose(rgb_to_ycbcr(grey)[..., 1:], 128, rtol=0, atol=1e-9)     # grey has no colour


def test_convention_colour_refuses_other_layouts():
    u = np.zeros((5, 7, 3), np.uint8)
    t = torch.zeros(3, 5, 7)
    for wrong in (u.transpose(2, 0, 1), u[..., 0], u[None], t[:1], t[0]):
        with pytest.raises(ValueError, match="a grey picture is its own Y"):
            rgb_to_y(wrong)
    assert rgb_to_y(t.expand(2, 4, 3, 5, 7)).shape == (2, 4, 1, 5, 7)


def test_convention_one_channel_is_taken_as_y():
    pred, target, _ = inputs("psnr_y_crop")
    for name in ("psnr_y_crop", "ssim_y_crop"):
        fn = metrics.metric(name)
        torch.testing.assert_close(fn(pred, target, 2), fn(rgb_to_y(pred.double()), rgb_to_y(target.double()), 2), rtol=0, atol=1e-9)


def test_convention_crop_is_on_every_side():
    target = torch.full((1, 1, 40, 50), 0.5)
    pred = target.clone()
    pred[..., :3, :] = pred[..., -3:, :] = pred[..., :, :3] = pred[..., :, -3:] = 0.9
    assert metrics.psnr_y_crop(pred, target, 3).isinf().all() and metrics.psnr_y_crop(pred, target, 2).isfinite().all()
    assert metrics.ssim_y_crop(pred, target, 3).item() == 1 and metrics.ssim_y_crop(pred, target, 2).item() < 1
    for crop in (-1, 1.5, None, True):
        with pytest.raises(ValueError, match="whole crop"):
            metrics.psnr_y_crop(pred, target, crop)


def test_convention_eight_bits_round_halves_up():
    np.testing.assert_array_equal(to_uint8((np.arange(255) + 0.5) / 255), np.arange(1, 256))
    np.testing.assert_array_equal(to_uint8(np.arange(256, dtype=np.float32) / 255), np.arange(256))


# ---- resizing ----

@pytest.mark.parametrize("scale, atol", [(1 / 4, 1e-9), (1 / 3, 1e-9), (1 / 2, 1e-9), (0.7, 0.03), (2, 1e-9), (3, 1e-9), (4, 1e-9)])
def test_convention_pixel_edges_align(scale, atol):
    """A ramp that holds each pixel's own coordinate comes back holding (i + 1/2) / scale - 1/2, away from the mirrored border.

    Exactly so for whole factors; a kernel stretched by 1 / 0.7 weighs its two sides unevenly, by up to 0.03 of a pixel.
    """
    ramp = np.broadcast_to(np.arange(60.0), (8, 60))
    y = imresize(ramp, scale)[0]
    i = np.arange(len(y))
    inside = slice(math.ceil(4 * max(1, scale)), -math.ceil(4 * max(1, scale)))
    np.testing.assert_allclose(y[inside], ((i + 0.5) / scale - 0.5)[inside], rtol=0, atol=atol)


@pytest.mark.parametrize("scale", [1 / 3, 1 / 2, 2, 3])
def test_convention_resizing_has_no_preferred_side(scale):
    x = np.random.default_rng(0).random((24, 36))
    for turn in (np.flipud, np.fliplr, np.transpose):
        np.testing.assert_allclose(imresize(np.ascontiguousarray(turn(x)), scale), turn(imresize(x, scale)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 2, 3])
def test_convention_the_border_mirrors_with_the_edge_pixel_repeated(scale):
    x = np.random.default_rng(0).random((24, 36))
    border = round(12 * scale)
    padded = imresize(np.pad(x, 12, mode="symmetric"), scale)
    np.testing.assert_allclose(imresize(x, scale), padded[border:-border, border:-border], rtol=0, atol=1e-12)
    reflected = imresize(np.pad(x, 12, mode="reflect"), scale)[border:-border, border:-border]
    assert np.abs(reflected - imresize(x, scale)).max() > 1e-3


def test_convention_bytes_are_rounded_after_each_pass_rows_first():
    u = np.random.default_rng(0).integers(0, 256, (24, 36), dtype=np.uint8)
    rounded = lambda v: np.floor(v.clip(0, 255) + 0.5)
    rows = np.stack([rounded(imresize(np.repeat(u[:, j : j + 1].astype(float), 3, 1), 1 / 3)[:, 0]) for j in range(36)], 1)
    both = np.stack([rounded(imresize(np.repeat(rows[i : i + 1], 3, 0), 1 / 3)[0]) for i in range(8)])
    np.testing.assert_array_equal(imresize(u, 1 / 3), both)
    assert (rounded(imresize(u.astype(float), 1 / 3)) != both).any()


def test_convention_channels_and_batches_are_resized_each_by_itself():
    x = np.random.default_rng(0).random((12, 18, 3))
    y = imresize(x, 1 / 2)
    for c in range(3):
        np.testing.assert_array_equal(y[..., c], imresize(x[..., c], 1 / 2))
    t = torch.from_numpy(x).permute(2, 0, 1).expand(4, 2, 3, 12, 18)
    np.testing.assert_array_equal(imresize(t, 1 / 2)[3, 1].permute(1, 2, 0).numpy(), y)


@pytest.mark.parametrize("n, scale, size", [(10, 1 / 3, 4), (9, 1 / 3, 3), (49, 1 / 49, 1), (7, 0.5, 4), (5, 1.5, 8), (100, 0.07, 7)])
def test_convention_the_size_of_a_resize_is_rounded_up(n, scale, size):
    assert imresize(np.zeros((n, n)), scale).shape == (size, size)


# ---- crops, patches, tiles ----

def test_convention_modcrop_cuts_right_and_bottom():
    x = np.arange(7 * 8).reshape(7, 8)
    np.testing.assert_array_equal(modcrop(x, 3), x[:6, :6])
    torch.testing.assert_close(modcrop(torch.from_numpy(x)[None], 3)[0], torch.from_numpy(x[:6, :6]))
    with pytest.raises(ValueError, match="smaller than the factor"):
        modcrop(x[:2], 3)
    for scale in (0, 1.5, None):
        with pytest.raises(ValueError, match="whole scale"):
            modcrop(x, scale)


def test_convention_patches_run_row_by_row_from_the_top_left():
    x = torch.arange(2 * 9 * 11.0).reshape(1, 2, 9, 11)
    p = patches(x, 3, 2)
    corners = [(i, j) for i in range(0, 7, 2) for j in range(0, 9, 2)]
    assert p.shape[1] == len(corners)
    for n, (i, j) in enumerate(corners):
        assert torch.equal(p[:, n], x[:, :, i : i + 3, j : j + 3])


def test_convention_cores_of_tiles_start_at_multiples_of_the_tile():
    seen = []
    tiled(lambda v: seen.append(v.shape) or v, np.zeros((70, 40)), tile=32, overlap=4)
    assert seen == [(36, 40), (42, 40)]                     # 70 = 32 + 38 and 40 = 40: strips of 6 and of 8 join their neighbours


# ---- depth and video scores ----

@pytest.mark.parametrize("name", DEPTH)
def test_convention_a_mask_is_bool_and_covers_known_pixels(name):
    pred, target, _ = inputs(name)
    target[0, 0, :5] = math.inf                             # sky
    fn, known = metrics.metric(name), target.isfinite()
    torch.testing.assert_close(fn(pred[:1, :, 5:], target[:1, :, 5:]), fn(pred, target)[:1], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="a bool mask"):
        fn(pred, target, mask=known.float())
    with pytest.raises(ValueError, match="image 0 has a target that is not finite and above 0"):
        fn(pred, target, mask=torch.ones_like(known))


def test_convention_logarithms_and_factors():
    target = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    torch.testing.assert_close(metrics.rmse_log(target * math.e, target), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(metrics.log10_error(target / 10, target), torch.ones(2, dtype=torch.float64))
    halves = torch.where(torch.arange(8) < 4, 1.0, math.e)  # log differences 0 and 1: deviation 1/2
    torch.testing.assert_close(metrics.silog(target * halves, target), torch.full((2,), 50.0, dtype=torch.float64))
    one = torch.ones(1, 1, 2, 2)
    for k in (1, 2, 3):
        assert metrics.delta(one * 1.25**k, one, k).item() == 0                        # strictly below
        for ratio in (1.25**k * 0.999, 0.8**k * 1.001):
            assert metrics.delta(one * ratio, one, k).item() == 1


def test_convention_only_ssim_and_psnr_clip_the_prediction():
    pred, target, _ = inputs("psnr")
    pred = pred + 0.3
    assert (pred > 1).any()
    for name in VIDEO:
        same = torch.equal(metrics.metric(name)(pred, target), metrics.metric(name)(pred.clamp(0, 1), target))
        assert same == (name not in ("mse_sum_frame", "mae_sum_frame"))
