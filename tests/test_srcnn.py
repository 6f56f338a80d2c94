"""SRCNN against the authors' weights, their published numbers, and input that should be refused."""

import statistics

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from paperlib.core.data import dataset
from paperlib.superres.srcnn import PAPER as paper
from paperlib.superres.srcnn import SRCNN, experiment, score, upscale


@pytest.fixture(scope="module")
def weights(shared):
    """The authors' files by name."""
    return dataset("srcnn_weights", path=shared / "data" / "srcnn_weights")


def test_orientation_vector(weights):
    """A transposed kernel moves the PSNR by less than a tenth of a decibel; this vector tells (reference values of the authors' weights)."""
    x = (0.5 + 0.5 * np.sin(0.11 * np.arange(720))).reshape(1, 1, 24, 30).astype(np.float32)
    with torch.no_grad():
        out = SRCNN.from_official(weights["9-5-5_imagenet_x3"])(torch.from_numpy(x))[0, 0]
    got = [out.mean(), out.std(correction=0), out[0, 0], out[12, 15], out[-1, -1]]
    assert [g.item() for g in got] == pytest.approx([0.419987, 0.263848, 0.221712, 0.541104, 0.074306], abs=2e-5)


@pytest.mark.parametrize("name, scale, psnr, ssim", [("9-1-5_t91_x2", 2, 36.34, 0.9521), ("9-1-5_t91_x3", 3, 32.39, 0.9033), ("9-5-5_imagenet_x3", 3, 32.75, 0.9090)])
def test_published_numbers_on_set5(weights, name, scale, psnr, ssim):
    found = score(SRCNN.from_official(weights[name]), dataset("set5", scale=scale), scale)
    assert statistics.fmean(found["psnr"].values()) == pytest.approx(psnr, abs=0.01)
    assert statistics.fmean(found["ssim"].values()) == pytest.approx(ssim, abs=0.0005)


def test_official_round_trip(weights, tmp_path):
    for name, path in weights.items():
        model = SRCNN.from_official(path)
        mat = loadmat(path)
        for key, value in model.to_official().items():
            assert value.astype(np.float32).reshape(-1, order="F").tolist() == mat[key].astype(np.float32).reshape(-1, order="F").tolist(), (name, key)


@pytest.mark.parametrize("break_it, message", [
    (lambda m: m.pop("biases_conv2"), "has no biases_conv2"),
    (lambda m: m.update(weights_conv1=m["weights_conv1"][:80]), "weights_conv1 has shape (80, 64)"),
    (lambda m: m.update(weights_conv2=m["weights_conv2"][:63]), "weights_conv2 has shape"),
    (lambda m: m.update(weights_conv3=m["weights_conv3"].T), "weights_conv3 has shape (25, 32)"),
    (lambda m: m.update(biases_conv3=np.zeros((2, 1))), "biases_conv3 has shape (2, 1)"),
])
def test_wrong_layout_is_named(weights, tmp_path, break_it, message):
    mat = {k: v for k, v in loadmat(weights["9-1-5_t91_x3"]).items() if not k.startswith("__")}
    break_it(mat)
    savemat(tmp_path / "bad.mat", mat)
    with pytest.raises(ValueError) as error:
        SRCNN.from_official(tmp_path / "bad.mat")
    assert message in str(error.value) and "bad.mat" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file", b"\x89PNG\r\n"])
def test_no_mat_file(tmp_path, content):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(ValueError, match="x.mat is no MATLAB 5 file"):
        SRCNN.from_official(tmp_path / "x.mat")


def test_truncated_mat_file(weights, tmp_path):
    whole = weights["9-1-5_t91_x3"].read_bytes()
    for cut in (200, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.mat").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut.mat"):
            SRCNN.from_official(tmp_path / "cut.mat")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.mat"):
        SRCNN.from_official(tmp_path / "absent.mat")


@pytest.mark.parametrize("shape", [(37, 53, 3), (64, 20), (9, 200, 3), (1, 50, 3), (50, 1), (1, 1, 3)])
@pytest.mark.parametrize("filters", [(9, 1, 5), (9, 5, 5)])
def test_tiles_leave_no_seam(shape, filters):
    torch.manual_seed(0)
    model = SRCNN(filters, (8, 4))
    for layer in model.layers:
        torch.nn.init.normal_(layer.weight, std=0.2)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    whole = upscale(picture, model, 3, tile=1000)
    assert whole.shape == (shape[0] * 3, shape[1] * 3, *shape[2:])
    # rounding to 8 bits can turn a float32 difference of 1e-7 into one grey level, at a few pixels in a million
    differing = np.abs(upscale(picture, model, 3, tile=16).astype(int) - whole)
    assert differing.max() <= 1 and (differing > 0).mean() < 1e-4


def test_padding_is_only_at_test_time():
    model = SRCNN(padding="zeros")
    y = torch.rand(1, 1, 30, 30)
    assert model.train()(y).shape == (1, 1, 18, 18)
    assert model.eval()(y).shape == y.shape


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match="data='imagenet'"):
        experiment(paper.preset("smoke", {"data": "imagenet"}), 0, torch.device("cpu"))
