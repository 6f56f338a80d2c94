"""SwinIR against the official implementation's numbers, in every released configuration, at any size, and with input that should be refused."""

import copy
import json

import numpy as np
import pytest
import torch

import paperlib
from paperlib.core import layers
from paperlib.core.data import dataset
from paperlib.core.images import imresize, quantize
from paperlib.core.layers import WindowAttention
from paperlib.core.metrics import psnr_b, psnr_y_crop, ssim_y_crop
from paperlib.core.paper import weights_list
from paperlib.core.training import fit
from paperlib.superres import srcnn, swinir
from paperlib.superres.swinir import (
    PAPER,
    VARIANTS,
    Adversarial,
    Crops,
    SwinIR,
    UNetDiscriminator,
    add_noise,
    as_tensor,
    augment,
    experiment,
    jpeg,
    own_config,
    restore_tiled,
    score,
)

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TINY = dict(img_size=16, depths=[2, 2], embed_dim=12, num_heads=[2, 2], window_size=4, mlp_ratio=2)


@pytest.fixture(scope="module")
def golden(shared):
    """The official code's weights, input, outputs and gradient norms of a small lightweight network."""
    path = shared / "golden" / "swinir__lightweight_x2.npz"
    with np.load(path) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    return state, arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kernel", ["auto", "pieces", "sdpa", "explicit"])
def test_golden_outputs(golden, kernel):
    state, arrays, card = golden
    model, seen = SwinIR.from_official(state, **card["config"]["model"]), []
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.kernel = kernel
    model.conv_after_body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        y = model(arrays["input.x"])
    assert (y - arrays["output.y"]).abs().max() < card["suggested_atol"]["y"]
    assert (seen[0] - arrays["output.deep_features"]).abs().max() < card["suggested_atol"]["deep_features"]


@pytest.mark.parametrize("kernel", ["auto", "explicit"])
def test_golden_gradients(golden, kernel):
    state, arrays, card = golden
    model = SwinIR.from_official(state, **card["config"]["model"]).double()
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.kernel = kernel
    (0.5 * model(arrays["input.x"].double()).square().mean()).backward()
    norms = {k: p.grad.norm().item() for k, p in model.named_parameters()}
    assert norms.keys() == card["grad"]["l2_norm"].keys()
    assert norms == pytest.approx(card["grad"]["l2_norm"], rel=1e-4)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"params": s}, lambda s: {"params_ema": s}, lambda s: {"params": {}, "params_ema": s},
                                  lambda s: {"params": {"params": s}}, lambda s: {f"module.{k}": v for k, v in s.items()}, lambda s: {k: v.numpy() for k, v in s.items()}],
                         ids=["bare", "params", "params_ema", "both", "nested", "parallel", "numpy"])
def test_every_wrapper_of_a_released_file(golden, wrap):
    state, arrays, card = golden
    model = SwinIR.from_official(wrap(state), **card["config"]["model"])
    again = model.to_official()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())
    assert not model.training


def test_masks_of_another_training_size_are_made_anew(golden):
    state, arrays, card = golden
    foreign = {k: torch.full((9, 16, 16), 7.0) if k.endswith("attn_mask") else v for k, v in state.items()}
    y = [SwinIR.from_official(s, **card["config"]["model"])(arrays["input.x"]) for s in (state, foreign)]
    assert torch.equal(*y)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_keys_of_the_released_models(name):
    config, parameters, keys = VARIANTS[name]
    with torch.device("meta"):
        model = SwinIR(**own_config(config))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.to_official()) == keys


def formula_weights(model):
    """Weights that the reference sheet's vectors were made with: a sine for each parameter in the order of names, norm weights around 1."""
    with torch.no_grad():
        for i, (key, p) in enumerate(sorted(model.double().named_parameters())):
            p.copy_((0.05 * torch.sin(0.37 * torch.arange(p.numel(), dtype=torch.float64) + i)).view_as(p) + ("norm" in key and key.endswith("weight")))
    return model.eval()


@pytest.mark.parametrize("config, shape, parameters, mean, std, first, last", [
    (TINY | dict(upscale=2, upsampler="pixelshuffledirect"), (3, 10, 13), 11_144, .4271962326, .4193624708, .2895062221, .5373752826),
    (TINY | dict(upscale=3, upsampler="pixelshuffle", num_heads=[3, 3]), (3, 16, 16), 351_091, .4937660131, .2309241649, .1178871230, .6806796717),
    (TINY | dict(img_size=8, depths=[2], embed_dim=16, num_heads=[4], upscale=4, upsampler="nearest+conv", resi_connection="3conv"), (3, 8, 12), 129_531,
     .4164750306, .0046472982, .4164082406, .4164711750),
    (TINY | dict(img_size=14, window_size=7, in_chans=1, img_range=255.0, upscale=1, upsampler=""), (1, 15, 20), 10_689, .3591052347, .3533097102,
     .4292582722, .8581334023),
    (VARIANTS["lightweight_x2"].config, (3, 16, 16), 910_152, .4277633412, .1081386178, .5032524427, .3592426042),
], ids=["direct", "pixelshuffle", "nearest", "grey", "lightweight"])
def test_vectors_of_the_official_class(config, shape, parameters, mean, std, first, last):
    """Each up-sampler, sizes that have to be padded, and the released lightweight configuration, in float64."""
    model = formula_weights(SwinIR(**own_config(config)))
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = (0.5 + 0.5 * torch.sin(0.11 * torch.arange(np.prod(shape), dtype=torch.float64))).view(1, *shape)
    with torch.no_grad():
        y = model(x)
    assert [v.item() for v in (y.mean(), y.std(), y.flatten()[0], y.flatten()[-1])] == pytest.approx([mean, std, first, last], abs=2e-8)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (5, 17), (8, 8), (12, 7)])
@pytest.mark.parametrize("upsampler, scale", [("pixelshuffle", 3), ("pixelshuffledirect", 2), ("nearest+conv", 2), ("nearest+conv", 4), ("", 1)])
def test_any_size(size, upsampler, scale):
    model = SwinIR(scale, 1, (2,), 8, (2,), 4, upsampler=upsampler, ape=True, img_size=8).eval()
    y = model(torch.rand(2, 1, *size))
    assert y.shape == (2, 1, size[0] * scale, size[1] * scale) and y.isfinite().all()


def test_training_patches_of_one_window_switch_the_shift_off():
    official = TINY | dict(img_size=4, upscale=2, upsampler="pixelshuffledirect")
    model = SwinIR(**own_config(official))
    assert all(layer.shift == 0 for block in model.layers for layer in block.residual_group["blocks"])
    assert not any("attn_mask" in k for k in model.to_official())


def test_the_kept_table_follows_the_weights(golden):
    state, arrays, card = golden
    model, x = SwinIR.from_official(state, **card["config"]["model"]), arrays["input.x"]
    with torch.no_grad():
        before = model(x)
        for key, p in model.named_parameters():
            if "bias_table" in key:
                p.neg_()
        after, fresh = model(x), SwinIR.from_official(model.to_official(), **card["config"]["model"])(x)
    assert not torch.allclose(before, after) and torch.equal(after, fresh)


def test_the_kept_table_follows_writes_that_torch_does_not_count():
    """An exponential average writes through .data, `functional_call` may get new weights at an old address."""
    torch.manual_seed(0)
    model, x = SwinIR(2, 3, (2,), 8, (2,), 4).eval(), torch.rand(1, 3, 8, 8)
    average = copy.deepcopy(model)
    with torch.no_grad():
        average(x)
        for p, q in zip(average.parameters(), model.parameters()):
            q.normal_(0, 0.3)
            p.data.mul_(0).add_(q.data)
        assert torch.equal(average(x), model(x))
        for _ in range(30):
            state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
            fresh = SwinIR(2, 3, (2,), 8, (2,), 4).eval()
            fresh.load_state_dict(state)
            assert torch.equal(torch.func.functional_call(model, state, x), fresh(x))
    assert copy.deepcopy(model).layers[0].residual_group["blocks"][0].attn._kept == {}


def test_a_default_device_leaves_nothing_behind():
    for cache in (layers.relative_position_index, layers.shift_mask, layers.window_kinds):
        cache.cache_clear()
    with torch.device("meta"):
        SwinIR(2, 3, (2,), 8, (2,), 4, img_size=8)(torch.rand(1, 3, 12, 12))
    model = SwinIR(2, 3, (2,), 8, (2,), 4, img_size=8).eval()
    assert model(torch.rand(1, 3, 12, 12)).isfinite().all()
    assert {v.device.type for v in model.to_official().values()} == {"cpu"}


def test_a_change_of_precision_and_back_rounds_no_constant():
    torch.manual_seed(0)
    model, x = SwinIR(2, 3, (2,), 8, (2,), 4).eval(), torch.rand(1, 3, 8, 8)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    model.half().float().load_state_dict(state)
    assert torch.equal(model(x), expected)


def test_a_position_embedding_is_not_cut_into_tiles():
    model = SwinIR(2, 3, (2,), 8, (2,), 4, ape=True, img_size=16)
    assert model.restore(torch.rand(1, 3, 20, 20)).shape == (1, 3, 40, 40)
    with pytest.raises(ValueError, match="ape=True"):
        model.restore(torch.rand(1, 3, 32, 32), 16, 8)


@pytest.mark.parametrize("change, message", [({"norm_layer": torch.nn.Identity}, "norm_layer"), ({"patch_size": 2}, "patch_size=2"), ({"img_size": (16, 24)}, "img_size")])
def test_official_arguments_that_change_the_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        own_config(TINY | change)


def test_official_arguments_mean_what_they_mean_there():
    plain = own_config(TINY | dict(upsampler="", norm_layer=torch.nn.LayerNorm, qk_scale=0, patch_size=(1, 1)))
    assert (plain["scale"], plain["qk_scale"]) == (1, None)                  # no up-sampler: upscale, 2 by default, is not looked at


@pytest.mark.parametrize("state, message", [(None, "NoneType"), ("weights.pth", "got str")])
def test_what_is_no_state_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        SwinIR.from_official(state, **TINY)


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("conv_first.weight"), "1 missing (conv_first.weight)"),
    (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
    (lambda s: s.update({"conv_first.bias": torch.zeros(3)}), "conv_first.bias (3,) for (24,)"),
])
def test_weights_that_do_not_fit_are_named(golden, change, message):
    state, _, card = golden
    state = dict(state)
    change(state)
    with pytest.raises(ValueError) as error:
        SwinIR.from_official(state, **card["config"]["model"])
    assert message in str(error.value)


@pytest.mark.parametrize("change, message", [
    (dict(scale=3, upsampler="nearest+conv"), "scale=3"), (dict(upsampler="bilinear"), "upsampler='bilinear'"), (dict(depths=(2, 2)), "depths=(2, 2)"),
    (dict(resi_connection="2conv"), "resi_connection='2conv'"), (dict(channels=0), "channels=0"), (dict(img_size=0), "img_size=0"), (dict(stem_size=2), "stem_size=2"), (dict(scale=2.0), "scale=2.0"),
    (dict(embed_dim=2, resi_connection="3conv"), "embed_dim=2"), (dict(embed_dim=9), "embed_dim=9"),
    (dict(scale=2, upsampler=""), "scale=2"),
])
def test_wrong_configurations_are_refused(change, message):
    with pytest.raises(ValueError) as error:
        SwinIR(**(dict(depths=(2,), num_heads=(2,), embed_dim=8) | change))
    assert message in str(error.value)


def test_unknown_official_argument_is_refused():
    with pytest.raises(ValueError, match="no argument windowsize"):
        SwinIR.from_official({}, windowsize=8)


@pytest.mark.parametrize("size, tile, overlap", [((40, 56), 16, 8), ((33, 70), 24, 8), ((64, 20), 16, 4), ((9, 9), 16, 8), ((50, 50), 16, 0), ((40, 40), 16, 12)])
def test_tiles_of_a_network_that_sees_one_window_are_exact(size, tile, overlap):
    """Without shift and with 1 x 1 convolutions a token sees its window alone, so blended tiles have to equal the whole picture."""
    torch.manual_seed(0)
    model = SwinIR(2, 3, (2,), 8, (2,), 4, shift=False, resi_connection="1x1", stem_size=1).eval()
    model.conv_after_body = torch.nn.Conv2d(8, 8, 1)
    model.upsample[0] = torch.nn.Conv2d(8, 12, 1)
    x = torch.rand(2, 3, *size)
    assert torch.allclose(model.restore(x, tile, overlap), model(x), atol=1e-5)


@pytest.mark.parametrize("tile, overlap", [(18, 8), (16, 6), (16, 16), (0, 0), (16, -4)])
def test_wrong_tiles_are_refused(tile, overlap):
    model = SwinIR(2, 3, (2,), 8, (2,), 4)
    with pytest.raises(ValueError, match=f"tile={tile}, overlap={overlap}"):
        restore_tiled(model, torch.rand(1, 3, 32, 32), tile, overlap)


@pytest.mark.parametrize("x, settings, message", [
    (np.zeros((1, 3, 8, 8), np.float32), {}, "got ndarray"), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, "torch.uint8"), (torch.rand(3, 8, 8), {}, "(3, 8, 8)"),
    (torch.rand(1, 3, 8, 8), {"tile": "16"}, "tile='16'"), (torch.rand(1, 3, 8, 8), {"tile": 16.0}, "tile=16.0"), (torch.rand(1, 3, 8, 8), {"tile": 16, "overlap": 8.0}, "overlap=8.0")])
def test_what_cannot_be_restored_is_refused(x, settings, message):
    with pytest.raises(ValueError) as error:
        SwinIR(2, 3, (2,), 8, (2,), 4).restore(x, **settings)
    assert message in str(error.value)


def test_restore_leaves_the_mode_alone():
    model = SwinIR(2, 3, (2,), 8, (2,), 4, drop_path_rate=0.5).train()
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.restore(x), model.restore(x)) and model.training


def test_training_after_inference_mode(golden):
    """Scratch memory and tables that inference made first must serve training."""
    state, arrays, card = golden
    layers._buffers.__dict__.clear()
    for cached in (layers.window_kinds, layers.shift_mask, layers.relative_position_index):
        cached.cache_clear()
    model = SwinIR.from_official(state, **card["config"]["model"])
    with torch.inference_mode():
        expected = model(arrays["input.x"])
    y = model(arrays["input.x"])
    y.square().mean().backward()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("quality, psnr, ssim, blocks", [(10, 27.82, .7595, 25.21), (20, 30.12, .8344, 27.50), (30, 31.48, .8666, 28.94), (40, 32.43, .8849, 29.92)])
def test_jpeg_baseline_of_classic5(shared, quality, psnr, ssim, blocks):
    """The printed row of the compressed pictures themselves, digit for digit."""
    rows = []
    for _, picture in dataset("classic5", path=shared / "data" / "restoration_testsets" / "classic5"):
        pair = as_tensor(jpeg(picture, quality)), as_tensor(picture)
        rows.append([psnr_y_crop(*pair, 0).item(), ssim_y_crop(*pair, 0).item(), psnr_b(*pair).item()])
    means = np.mean(rows, 0)
    assert [round(means[0], 2), round(means[1], 4), round(means[2], 2)] == [psnr, ssim, blocks]


@pytest.mark.parametrize("sigma, psnr", [(15, 24.638), (25, 20.201), (50, 14.181)])
def test_noisy_baseline_of_set12(shared, sigma, psnr):
    pictures = dataset("set12", path=shared / "data" / "restoration_testsets" / "Set12")
    values = [psnr_y_crop(as_tensor(add_noise(p, sigma)), as_tensor(p), 0).item() for _, p in pictures]
    assert round(float(np.mean(values)), 3) == psnr


@pytest.mark.parametrize("name, scale, psnr", [("set5", 2, 33.64), ("set5", 3, 30.39), ("set5", 4, 28.42)])
def test_bicubic_row_of_the_rgb_pipeline(shared, monkeypatch, name, scale, psnr):
    """The published row has rounded luma; float luma, as SwinIR's code has it, may add up to .03 dB."""
    monkeypatch.setenv("PAPERLIB_DATA", str(shared / "data"))
    nothing = SwinIR(scale, 3, (1,), 4, (1,), 4).eval()
    found = score(nothing, dataset(name, scale=scale), "sr", scale)
    assert -0.005 < np.mean(list(found["psnr_bicubic"].values())) - psnr < 0.035


def test_a_grey_picture_is_scored_as_its_own_luma():
    grey = dataset("photos", split="test")["camera"][:64, :64]
    model = SwinIR(2, 3, (1,), 4, (1,), 4).eval()
    found = score(model, [("camera", grey)], "sr", 2)
    low = imresize(grey, 0.5)
    with torch.no_grad():
        y = quantize(model(as_tensor(np.repeat(low[..., None], 3, 2)).float()).double())
    assert found["psnr"]["camera"] == pytest.approx(psnr_y_crop(y.mean(1, keepdim=True), as_tensor(grey), 2).item(), abs=1e-6)
    assert found["psnr_bicubic"]["camera"] == psnr_y_crop(as_tensor(imresize(low, 2)), as_tensor(grey), 2).item()


def test_noise_of_a_batch_depends_on_seed_and_step_alone():
    batch = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    draws = [augment(25.0)(batch, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].std().item() == pytest.approx(25 / 255, rel=0.2)


def test_adversarial_training_resumes_exactly(tmp_path):
    """Killed after two of four steps and started again, network and discriminator end where an undisturbed training ends."""
    torch.manual_seed(0)
    photo = dataset("photos", split="test")["chelsea"][:64, :64]
    crops = Crops([("photo", photo)], "sr", 2, 3, 16)
    low, high = (torch.stack([crops[i][k] for i in range(len(crops))]).float() / 255 for k in (0, 1))
    batches = lambda step, rank=0, world=1: (low[step % 4][None], high[step % 4][None])

    def training(steps_before_kill=None):
        torch.manual_seed(1)
        model, rival = SwinIR(2, 3, (2,), 4, (1,), 4), Adversarial(UNetDiscriminator(3, 4))

        class Kill:
            def on_step(self, model, optimizer, done):
                if done == steps_before_kill:
                    raise KeyboardInterrupt

        hooks = (rival, Kill())
        fit(model, batches, rival, torch.optim.Adam(model.parameters(), lr=1e-3), 4, device="cpu", hooks=hooks, progress=False,
            checkpoint=tmp_path / ("a.pt" if steps_before_kill != 0 else "b.pt"), checkpoint_every=1)
        return [*model.state_dict().values(), *rival.discriminator.state_dict().values()]

    with pytest.raises(KeyboardInterrupt):
        training(3)
    resumed, straight = training(), training(0)
    assert all(torch.equal(a, b) for a, b in zip(resumed, straight))


def test_tasks_have_their_own_networks_and_scores(monkeypatch, shared):
    monkeypatch.setenv("PAPERLIB_DATA", str(shared / "data"))
    small = dict(data="photos", tests=("photos",), steps=1, batch_size=1, patch=16, depths=(1,), embed_dim=4, heads=1, window_size=8, channels=1)
    for task, level, metrics in (("denoise", 25.0, {"psnr", "psnr_input"}), ("jpeg", 10.0, {"psnr", "psnr_b", "ssim", "psnr_b_input"})):
        found = experiment(PAPER.preset("smoke", small | {"task": task, "level": level, "loss": "charbonnier"}), 0, torch.device("cpu"))
        assert metrics <= found.keys()


@pytest.mark.parametrize("change, named", [
    ({"task": "deblur"}, "task='deblur'"), ({"level": 0.0}, "level=0.0"), ({"level": 2.5}, "level=2.5"), ({"level": 1.0}, "level=1.0"),
    ({"task": "jpeg", "level": 101.0}, "level=101.0"), ({"steps": 0}, "steps=0"), ({"loss": "l2"}, "loss='l2'"), ({"schedule": "step"}, "schedule='step'"),
    ({"tests": ()}, "tests=()"), ({"patch": 1}, "patch=1"), ({"gan_steps": -1}, "gan_steps=-1"), ({"gan_steps": 1, "patch": 10}, "patch=10"),
    ({"clip_norm": -1.0}, "clip_norm=-1.0"), ({"drop_path": 1.5}, "drop_path=1.5"), ({"embed_dim": 0}, "embed_dim=0"), ({"embed_dim": 25}, "embed_dim=25"),
    ({"stem_size": 2}, "stem_size=2"), ({"depths": ()}, "depths=()"), ({"rounds": -1}, "rounds=-1"),
])
def test_wrong_presets_are_refused(change, named):
    with pytest.raises(ValueError) as error:
        experiment(PAPER.preset("smoke", change), 0, torch.device("cpu"))
    assert named in str(error.value)


def test_an_unknown_test_set_is_named_before_training(monkeypatch):
    monkeypatch.setattr(swinir, "train", lambda *_: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="nosuch"):
        experiment(PAPER.preset("smoke", {"tests": ("nosuch",)}), 0, torch.device("cpu"))


BRIEF = dict(data="photos", tests=("photos",), steps=1, batch_size=1, patch=16, depths=(1,), embed_dim=4, heads=1, window_size=8)


@pytest.mark.parametrize("change", [{"channels": 1}, {"task": "denoise", "level": 25.5, "channels": 1}, {"level": 3.0}])
def test_presets_that_once_failed_after_training(change):
    assert experiment(PAPER.preset("smoke", BRIEF | change), 0, torch.device("cpu"))["psnr"]


def test_colour_artefacts_are_scored_on_all_channels():
    """A network that changes nothing scores what its input does, channel by channel, as the colour rows of the paper are."""
    model = SwinIR(1, 3, (1,), 4, (1,), 8, upsampler="", img_range=255.0).double()
    torch.nn.init.zeros_(model.conv_last.weight)
    torch.nn.init.zeros_(model.conv_last.bias)
    picture = dataset("photos", split="test")["astronaut"][:64, :64]
    found = score(model, [("a", picture)], "jpeg", 10)
    pair = [as_tensor(x) for x in (swinir.jpeg(picture, 10), picture)]
    channels = [float(ssim_y_crop(*(t[:, c : c + 1] for t in pair), 0)) for c in range(3)]
    assert found["ssim"]["a"] == pytest.approx(np.mean(channels), abs=1e-9) and found["ssim_input"]["a"] == found["ssim"]["a"]


def test_the_race_takes_a_hundredth_of_each_training(monkeypatch):
    steps = []
    monkeypatch.setattr(swinir, "fit", lambda model, batches, loss, optimizer, n, **_: steps.append((type(model).__name__, n)))
    assert swinir.race(PAPER.preset("small", BRIEF | {"steps": 250, "rounds": 2}), torch.device("cpu")) > 0
    assert steps == [("SRCNN", srcnn.PAPER.presets["small"].steps // 100), ("SwinIR", 3)] * 3


def test_shipped_weights_score_what_their_card_says(shared):
    model = paperlib.load("swinir", "lightweight_x2_t91")
    card = next(c for c in weights_list("swinir") if c["name"] == "lightweight_x2_t91")
    found = score(model, dataset("set5", path=shared / "data" / "sr_testsets" / "Set5_SwinIR", scale=2), "sr", 2)
    assert np.mean(list(found["psnr"].values())) == pytest.approx(card["metrics"]["set5_psnr"], abs=0.005)


@GPU
def test_bf16_costs_the_shipped_model_nothing(shared):
    model = paperlib.load("swinir", "lightweight_x2_t91").cuda()
    pictures = dataset("set5", path=shared / "data" / "sr_testsets" / "Set5_SwinIR", scale=2)
    exact = score(model, pictures, "sr", 2)["psnr"]
    with torch.autocast("cuda", torch.bfloat16):
        half = score(model, pictures, "sr", 2)["psnr"]
    assert abs(np.mean(list(half.values())) - np.mean(list(exact.values()))) < 0.02


@GPU
def test_bf16_is_finite_for_the_classical_model():
    torch.manual_seed(0)
    model = SwinIR(**own_config(VARIANTS["classical_x2"].config)).eval().cuda()
    x = torch.rand(1, 3, 48, 48, device="cuda")
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cuda", torch.bfloat16):
            half = model(x)
    assert half.isfinite().all()
    assert (half - exact).norm() / exact.norm() < 0.02
