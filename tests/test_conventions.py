"""docs/conventions.md where a rule is about several functions: one value per image or frame, the channel axis, luma."""
from functools import partial

import numpy as np
import pytest
import torch

from paperlib.core import images, metrics

SR = {name: partial(getattr(metrics, name), crop=2) for name in ("psnr_y_crop", "psnr_rgb_crop", "ssim_y_crop", "ssim_rgb_crop")}
DEPTH = {name: getattr(metrics, name) for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10_error", "silog", "delta")}
VIDEO = {name: getattr(metrics, name) for name in ("mse_sum_frame", "mae_sum_frame", "ssim", "ssim_legacy", "psnr", "psnr_uint8_wrapped")}


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and its target in (0, 1), both float32, the prediction off by up to 0.2."""
    generator = torch.Generator().manual_seed(0)
    target = 0.2 + 0.6 * torch.rand(shape, generator=generator)
    return target + 0.4 * (torch.rand(shape, generator=generator) - 0.5), target


def separate_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pair`, the first image nearer to its target, so that values differ from image to image."""
    pred, target = pair(*shape)
    pred[0] = target[0] + 0.1 * (pred[0] - target[0])
    return pred, target


@pytest.mark.parametrize("name", [*SR, *DEPTH])
def test_convention_one_value_per_image(name):
    pred, target = separate_pair(3, 3 if name in SR else 1, 24, 20)
    values = (SR | DEPTH)[name](pred, target)
    assert values.shape == (3,)
    assert values[0] != values[1]
    alone = torch.cat([(SR | DEPTH)[name](pred[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=1e-12, atol=0)  # same arithmetic in float64; only the order of sums may differ


@pytest.mark.parametrize("name", VIDEO)
def test_convention_one_value_per_frame(name):
    pred, target = separate_pair(2, 3, 1, 24, 20)
    values = VIDEO[name](pred, target)
    assert values.shape == (2, 3)
    alone = VIDEO[name](pred[1:, 2:], target[1:, 2:])
    torch.testing.assert_close(values[1:, 2:], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", DEPTH)
def test_convention_no_valid_pixel_raises(name):
    pred, target = pair(2, 1, 12, 10)
    target[1] = 0
    with pytest.raises(ValueError, match="image 1 has no valid pixel"):
        DEPTH[name](pred, target)


def test_convention_sums_over_a_frame():
    pred, target = (x.double() for x in pair(2, 3, 2, 8, 6))
    torch.testing.assert_close(metrics.mse_sum_frame(pred, target), 2 * 8 * 6 * (pred - target).square().mean((2, 3, 4)))
    torch.testing.assert_close(metrics.mae_sum_frame(pred, target), 2 * 8 * 6 * (pred - target).abs().mean((2, 3, 4)))


@pytest.mark.parametrize("rgb, y", [((0, 0, 0), 16.0), ((255, 255, 255), 235.0), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553), ((0, 0, 255), 40.966)])
def test_convention_luma(rgb, y):
    pixel = np.array(rgb, np.uint8).reshape(1, 1, 3)
    assert images.rgb_to_y(pixel).item() == pytest.approx(y, abs=1e-4)             # float32 at 235 resolves 1.5e-5
    assert images.rgb_to_y(pixel / 255).item() == pytest.approx(y / 255, abs=1e-6)


def test_convention_channel_axis():
    picture = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    first = torch.from_numpy(picture).permute(2, 0, 1)
    assert images.rgb_to_y(picture).shape == (9, 8)
    assert images.rgb_to_y(first[None]).shape == (1, 1, 9, 8)
    np.testing.assert_allclose(images.rgb_to_y(first)[0].numpy(), images.rgb_to_y(picture), rtol=1e-6)  # torch answers in float32
    np.testing.assert_array_equal(images.imresize(first, 0.5).permute(1, 2, 0).numpy(), images.imresize(picture, 0.5))
