"""core.images and core.metrics against the outputs of official codes, official low-resolution files and published baseline rows."""
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from paperlib.core.data import dataset
from paperlib.core.images import bicubic_taps, imresize, modcrop, quantize, rgb_to_y, rgb_to_ycbcr, tiled, to_uint8, ycbcr_to_rgb
from paperlib.core.metrics import (
    mae_sum_frame,
    mse_sum_frame,
    psnr,
    psnr_b,
    psnr_rgb_crop,
    psnr_uint8_wrapped,
    psnr_y_crop,
    ssim_legacy,
    ssim_rgb_crop,
    ssim_y_crop,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
FACTOR = {"down2": 1 / 2, "down3": 1 / 3, "down4": 1 / 4, "up2": 2, "up3": 3, "up4": 4}


def absent(what):
    """Skip with a reason; in CI what is missing is a failure, or nobody would notice that the test is gone."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI this test must run")
    pytest.skip(what)


@lru_cache
def golden(case):
    """Return the arrays and the description of a golden file."""
    path = GOLDEN / f"metrics__{case}.npz"
    if not path.is_file():
        absent(f"golden file {path.name} is missing")
    with np.load(path) as z:
        return {k: z[k] for k in z.files}, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def pictures(name, scale):
    try:
        return dataset(name, scale=scale)
    except FileNotFoundError as missing:
        absent(str(missing).splitlines()[0])


# ---- imresize ----

@pytest.mark.parametrize("factor", FACTOR)
@pytest.mark.parametrize("content", ["random", "gradient"])
def test_parity_imresize_golden(content, factor):
    z, card = golden("imresize")
    x = z[f"input.{content}"]
    for key, antialias in ((f"{content}_{factor}", True), (f"{content}_{factor}_noaa", False)):
        if f"output.{key}" not in z:
            continue
        expected, atol = z[f"output.{key}"], card["suggested_atol"][key]
        for device in DEVICES:
            y = imresize(torch.from_numpy(x[..., 0]).to(device), FACTOR[factor], antialias)
            assert y.dtype == torch.float32 and y.device.type == device
            np.testing.assert_allclose(y.cpu().numpy(), expected[..., 0], rtol=0, atol=atol)
        y = imresize(x, FACTOR[factor], antialias)
        assert y.dtype == x.dtype and y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_parity_imresize_official_low_resolution_files(scale):
    """X2, X3, X4 were made by MATLAB from 8-bit RGB, rounding after each pass; X8 by a floating-point port that rounds once."""
    high = pictures("set5", None)
    low = high.low(scale)
    values = 0
    for name, picture in high:
        picture, official = modcrop(picture, scale), low[name]
        twice, once = imresize(picture, 1 / scale), to_uint8(imresize(picture / 255, 1 / scale))
        same, other = (once, twice) if scale == 8 else (twice, once)
        np.testing.assert_array_equal(same, official, err_msg=name)
        assert (other != official).mean() > 0.01, f"{name}: the two ways of rounding cannot be told apart"
        values += official.size
    assert values == {2: 425592, 3: 187962, 4: 106398, 8: 26535}[scale]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_imresize_every_dtype_device_and_layout_agrees(dtype, device):
    u = np.random.default_rng(0).integers(0, 256, (2, 3, 23, 31), dtype=np.uint8)
    x = torch.from_numpy(u).to(device)
    x = x if dtype == torch.uint8 else (x.double() / 255).to(dtype)
    tolerance = {torch.uint8: 0, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    for scale in (0.37, 1 / 3, 1, 1.5, 4):
        y = imresize(x, scale)
        assert y.dtype == dtype and y.device.type == device
        hwc = u[1].transpose(1, 2, 0) if dtype == torch.uint8 else u[1].transpose(1, 2, 0) / 255
        np.testing.assert_allclose(y[1].permute(1, 2, 0).cpu().to(torch.float64).numpy(), imresize(hwc, scale).astype(float), rtol=0, atol=tolerance)


def test_imresize_reads_what_readers_give():
    x = np.random.default_rng(0).random((12, 18, 3))
    expected = imresize(x, 0.5)
    frozen = x.copy()
    frozen.flags.writeable = False
    flipped = np.ascontiguousarray(x[::-1])[::-1]
    for same in (frozen, flipped, x.astype(">f8"), np.asfortranarray(x)):
        np.testing.assert_array_equal(imresize(same, 0.5), expected)
    assert (x == frozen).all()


def test_imresize_handles_one_pixel_long_axes_and_far_mirrors():
    for shape in ((1, 1), (1, 9), (2, 3)):
        constant = np.full(shape, 0.3)
        for scale in (0.05, 0.5, 3):
            y = imresize(constant, scale)
            assert y.shape == tuple(int(np.ceil(n * scale)) for n in shape)
            np.testing.assert_allclose(y, 0.3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad, message", [
    (np.zeros((4, 4), bool), "got bool"), (np.zeros((4, 4), complex), "got complex128"), (np.zeros((4, 4), np.int64), "got int64"),
    (torch.zeros(4, 4, dtype=torch.int64), "got int64"), (torch.zeros(4, 4, dtype=torch.bool), "got bool"), (np.zeros(4), r"\(H, W\)"),
    (np.zeros((2, 4, 4, 3)), r"\(2, 4, 4, 3\)"), (torch.zeros(4), r"\(\.\.\., H, W\)"), (np.zeros((0, 4)), "at least one pixel"), ([[0.0]], "got list"),
])
def test_imresize_refuses_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        imresize(bad, 2)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "2", None, True, (2, 2)])
def test_imresize_refuses_a_scale(scale):
    with pytest.raises(ValueError, match="finite scale > 0"):
        imresize(np.zeros((4, 4)), scale)


def test_taps_of_a_large_picture_stay_small():
    weights, indices = bicubic_taps(6000, 1 / 3)
    assert weights.nbytes + indices.nbytes < 1e6 and weights.shape == (2000, 9)
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1


# ---- tiles ----

@pytest.mark.parametrize("size", [(5, 300), (64, 64), (65, 95), (96, 97), (128, 33)])
def test_tiled_equals_whole_for_any_size(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def blur(v):
        seen.append(max(v.shape[-2:]))
        return torch.nn.functional.conv2d(torch.nn.functional.pad(v, (3, 3, 3, 3), "replicate"), weight)

    seen = []
    out = tiled(blur, x, tile=32, overlap=3)
    assert max(seen) <= 48 + 6
    torch.testing.assert_close(out, blur(x), rtol=0, atol=1e-12)


def test_tiled_writes_into_a_memory_map(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (70, 45, 3), dtype=np.uint8)
    out = np.memmap(tmp_path / "out.dat", np.uint8, "w+", shape=(140, 90, 3))
    returned = tiled(lambda v: imresize(v, 2), x, scale=2, tile=16, overlap=8, out=out)
    assert returned is out
    np.testing.assert_array_equal(out, imresize(x, 2))


@pytest.mark.parametrize("kwargs, message", [
    (dict(tile=0), "tile >= 1"), (dict(overlap=-1), "overlap >= 0"), (dict(scale=1.5), "whole scale"), (dict(scale=2), "80 x 80"),
    (dict(out=np.zeros((40, 41))), "layout of x"), (dict(out=torch.zeros(40, 40)), "layout of x"),
])
def test_tiled_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiled(lambda v: v, np.zeros((40, 40)), **kwargs)


# ---- colour ----

def test_parity_ycbcr_golden():
    """BasicSR wraps 8-bit RGB that leaves 0..255 and KAIR clips: compared where both are inside, or clipped."""
    z, card = golden("ycbcr")
    byte, unit, atol = z["input.uint8"], z["input.float32"], card["suggested_atol"]
    for code in ("basicsr", "kair"):
        for order, flip in (("rgb", 1), ("bgr", -1)):
            u, f = np.ascontiguousarray(byte[..., ::flip]), np.ascontiguousarray(unit[..., ::flip])
            key = f"{code}_{order}2ycbcr"
            np.testing.assert_array_equal(np.floor(rgb_to_ycbcr(u) + 0.5), z[f"output.{key}_uint8"])
            np.testing.assert_array_equal(np.floor(rgb_to_y(u) + 0.5), z[f"output.{key}_yonly_uint8"])
            for fn, name in ((rgb_to_ycbcr, f"{key}_float32"), (rgb_to_y, f"{key}_yonly_float32")):
                assert fn(f).dtype == np.float32
                np.testing.assert_allclose(fn(f), z[f"output.{name}"], rtol=0, atol=atol[name])
    back = ycbcr_to_rgb(unit)
    np.testing.assert_allclose(back, z["output.basicsr_ycbcr2rgb_float32"], rtol=0, atol=atol["basicsr_ycbcr2rgb_float32"])
    np.testing.assert_allclose(back.clip(0, 1), z["output.kair_ycbcr2rgb_float32"].clip(0, 1), rtol=0, atol=atol["kair_ycbcr2rgb_float32"])
    rounded = np.floor(ycbcr_to_rgb(byte) + 0.5)
    inside = (rounded >= 0) & (rounded <= 255)
    assert 0.2 < inside.mean() < 1
    np.testing.assert_array_equal(rounded[inside], z["output.basicsr_ycbcr2rgb_uint8"][inside])
    np.testing.assert_array_equal(rounded.clip(0, 255), z["output.kair_ycbcr2rgb_uint8"])


@pytest.mark.parametrize("device", DEVICES)
def test_parity_ycbcr_torch_golden(device):
    z, card = golden("ycbcr")
    x = torch.from_numpy(z["input.float32"]).permute(2, 0, 1)[None].to(device)
    for fn, name in ((rgb_to_ycbcr, "basicsr_rgb2ycbcr_pt"), (rgb_to_y, "basicsr_rgb2ycbcr_pt_yonly")):
        np.testing.assert_allclose(fn(x).cpu().numpy(), z[f"output.{name}"], rtol=0, atol=card["suggested_atol"][name])


# ---- metrics ----

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("crop", [0, 2, 4])
def test_parity_sr_scores_golden(crop, device):
    """RGB to the last digits. The codes convert to Y in float32, hence 5e-6 dB there; KAIR's rounded Y is exact again."""
    z, _ = golden("sr_psnr_ssim")
    official = lambda key: z[f"output.{key}"].item()
    a, b = (torch.from_numpy(z[f"input.{k}"][..., ::-1].copy()).permute(2, 0, 1)[None].to(device) / 255.0 for k in ("img1", "img2"))
    a64, b64 = (torch.from_numpy(z[f"input.{k}"][..., ::-1].copy()).permute(2, 0, 1)[None].double().to(device) / 255 for k in ("img1", "img2"))
    for code in ("swinir", "basicsr"):
        assert psnr_rgb_crop(a64, b64, crop).item() == pytest.approx(official(f"{code}_psnr_crop{crop}_rgb"), abs=1e-10)
        assert ssim_rgb_crop(a64, b64, crop).item() == pytest.approx(official(f"{code}_ssim_crop{crop}_rgb"), abs=1e-10)
        assert psnr_y_crop(a, b, crop).item() == pytest.approx(official(f"{code}_psnr_crop{crop}_y"), abs=5e-6)
        assert ssim_y_crop(a, b, crop).item() == pytest.approx(official(f"{code}_ssim_crop{crop}_y"), abs=1e-7)
    assert ssim_rgb_crop(a64, b64, crop).item() == pytest.approx(official(f"basicsr_ssim_pt_crop{crop}_rgb"), abs=1e-8)
    assert psnr_rgb_crop(a64, b64, crop).item() == pytest.approx(official(f"basicsr_psnr_pt_crop{crop}_rgb"), abs=1e-4)   # it adds 1e-8 to the MSE
    assert psnr_b(a64, b64, crop).item() == pytest.approx(official(f"swinir_psnrb_crop{crop}_rgb"), abs=1e-6)
    assert psnr_b(rgb_to_y(a), rgb_to_y(b), crop).item() == pytest.approx(official(f"swinir_psnrb_crop{crop}_y"), abs=5e-6)
    rounded = [quantize(rgb_to_y(v)) for v in (a64, b64)]
    assert psnr_y_crop(*rounded, crop).item() == pytest.approx(official(f"kair_psnr_uint8y_crop{crop}"), abs=1e-10)
    assert ssim_y_crop(*rounded, crop).item() == pytest.approx(official(f"kair_ssim_uint8y_crop{crop}"), abs=1e-10)


def test_parity_grey_is_taken_as_y_golden():
    z, _ = golden("sr_psnr_ssim")
    a, b = (torch.from_numpy(z[f"input.{k}"][None, None, ..., 0]).double() / 255 for k in ("img1", "img2"))
    assert psnr_y_crop(a, b, 2).item() == pytest.approx(z["output.gray_psnr"].item(), abs=1e-10)
    assert ssim_y_crop(a, b, 2).item() == pytest.approx(z["output.gray_ssim"].item(), abs=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_parity_video_scores_golden(device):
    """The prediction leaves [0, 1]: squared sums take it as it is, the others clip it. Official sums are in float32."""
    z, card = golden("video_simvp_openstl_swinlstm")
    pred, true = (torch.from_numpy(z[f"input.{k}"]).to(device) for k in ("pred", "true"))
    assert pred.min() < 0 and pred.max() > 1
    ours = {
        "simvp_mse": mse_sum_frame(pred, true), "simvp_mae": mae_sum_frame(pred, true), "simvp_ssim": ssim_legacy(pred, true),
        "simvp_psnr_uint8wrap": psnr_uint8_wrapped(pred, true), "openstl_mse": mse_sum_frame(pred, true), "openstl_mae": mae_sum_frame(pred, true),
        "openstl_ssim": ssim_legacy(pred, true), "openstl_psnr": psnr(pred, true), "swinlstm_ssim": ssim_legacy(pred, true),
        "swinlstm_mse": mse_sum_frame(pred.clamp(0, 1), true), "swinlstm_psnr_uint8wrap_frame0": psnr_uint8_wrapped(pred, true)[0, 0],
    }
    for key, value in ours.items():
        assert value.mean().item() == pytest.approx(z[f"output.{key}"].item(), abs=card["suggested_atol"][key]), key


def test_parity_phydnet_scores_golden():
    z, _ = golden("video_phydnet")
    pred, true = (torch.from_numpy(z[f"input.{k}"]) for k in ("pred", "true"))
    for key, fn, atol in (("mse", mse_sum_frame, 1e-6), ("mae", mae_sum_frame, 1e-5), ("ssim", ssim_legacy, 1e-7)):    # official sums in float32
        assert fn(pred, true).mean().item() == pytest.approx(z[f"output.{key}"].item(), abs=atol), key


# ---- the bicubic rows that papers print ----

def tensor(u8):
    return torch.from_numpy(u8.reshape(*u8.shape[:2], -1)).double().permute(2, 0, 1)[None] / 255


def y_first(picture, scale):
    """Y in 8 bits, cropped, then both resizes in floating point (SRCNN, VDSR, A+, the forests)."""
    y = modcrop(picture if picture.ndim == 2 else to_uint8(rgb_to_y(picture / 255)), scale)
    target = tensor(y)
    return quantize(imresize(imresize(target, 1 / scale), scale)), target


def y_last(picture, scale):
    """8-bit RGB files, both resizes on bytes, then rounded Y (SelfExSR, and SwinIR but for the rounding)."""
    picture = modcrop(picture, scale)
    pair = (imresize(imresize(picture, 1 / scale), scale), picture)
    return tuple(tensor(v if v.ndim == 2 else to_uint8(rgb_to_y(v / 255))) for v in pair)


@pytest.mark.parametrize("name, pipeline, scale, decibel, similarity", [
    ("set5", y_first, 2, 33.66, 0.9299), ("set5", y_first, 3, 30.39, 0.8682), ("set5", y_first, 4, 28.42, 0.8104),
    ("set5", y_last, 2, 33.64, 0.9292), ("set5", y_last, 3, 30.39, 0.8678), ("set5", y_last, 4, 28.42, 0.8101),
    ("set14", y_first, 2, 30.23, 0.8687), ("set14", y_first, 3, 27.54, 0.7736),
    ("bsd100", y_first, 2, 29.56, 0.8431), ("bsd100", y_first, 3, 27.21, 0.7384), ("bsd100", y_first, 4, 25.96, 0.6674),
    ("bsd100", y_last, 2, 29.55, 0.8425), ("bsd100", y_last, 3, 27.20, 0.7382), ("bsd100", y_last, 4, 25.96, 0.6672),
])
def test_parity_bicubic_baseline_rows(name, pipeline, scale, decibel, similarity):
    scores = []
    for _, picture in pictures(name, scale):
        sr, target = pipeline(picture, scale)
        scores.append((psnr_y_crop(sr, target, scale).item(), ssim_y_crop(sr, target, scale).item()))
    mean = np.mean(scores, 0)
    assert mean[0] == pytest.approx(decibel, abs=0.01) and mean[1] == pytest.approx(similarity, abs=0.0005), mean


def test_grey_picture_of_set14_moves_the_mean():
    """Sent through RGB -> Y, the one grey picture of Set14 gains 1.3 dB, and the mean over 14 pictures 0.09."""
    grey = [p for _, p in pictures("set14", 3) if p.ndim == 2]
    assert len(grey) == 1
    sr, target = y_first(grey[0], 3)
    shifted = [rgb_to_y(v.expand(1, 3, -1, -1)) for v in (sr, target)]
    gain = (psnr_y_crop(*shifted, 3) - psnr_y_crop(sr, target, 3)).item()
    assert gain / 14 == pytest.approx(0.09, abs=0.01)
