"""NeRF and volume rendering against the official code's numbers, in training that is cut off, and with input that should be refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import paperlib
from paperlib.core.captures import capture
from paperlib.core.paper import weights_list
from paperlib.core.scenes import orbit_cameras
from paperlib.core.training import fit
from paperlib.render import nerf, volume
from paperlib.render.nerf import (
    PAPER,
    Collapsed,
    NeRF,
    RadianceField,
    RayBatches,
    View,
    Watch,
    build,
    composite,
    encode,
    experiment,
    facing,
    get_rays,
    load_checkpoint,
    ndc_rays,
    nearest_views,
    render_rays,
    render_view,
    sample_pdf,
    settings,
    shots,
    view_rays,
)

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TINY = dict(data="still_life", size=24, steps=4, width=8, depth=2, n_coarse=8, resolution=12, rays=16)


@pytest.fixture
def golden(shared):
    """Return a function: name of a case -> (arrays, state, card)."""

    def read(case: str):
        path = shared / "golden" / f"nerf__{case}.npz"
        with np.load(path) as z:
            arrays = {k: torch.from_numpy(z[k]) for k in z.files}
        state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
        return arrays, state, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))

    return read


def agree(arrays, card, name, got):
    """Assert that an output is the official one within its tolerance, and NaN where that is."""
    want = arrays[f"output.{name}"]
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    assert (got - want).detach().abs().nan_to_num(0).max() <= card["suggested_atol"][name], name


@pytest.mark.parametrize("case", ["mlp_tiny", "mlp_full"])
def test_golden_network(golden, case):
    arrays, state, card = golden(case)
    model = NeRF.from_official(state, **card["config"])
    assert sum(p.numel() for p in model.parameters()) == card["n_parameters"] and not model.training
    agree(arrays, card, "raw", model(arrays["input.pts"], arrays["input.viewdirs"]))
    agree(arrays, card, "embedded", encode(arrays["input.pts"].reshape(-1, 3), 10))
    agree(arrays, card, "embedded_dirs", encode(arrays["input.viewdirs"], 4))
    assert all(torch.equal(v, state[k]) for k, v in model.to_official().items()) and model.to_official().keys() == state.keys()


@pytest.mark.parametrize("case", ["mlp_tiny", "mlp_full"])
def test_golden_gradients(golden, case):
    arrays, state, card = golden(case)
    model = NeRF.from_official(state, **card["config"]).double()
    (0.5 * model(arrays["input.pts"].double(), arrays["input.viewdirs"].double()).square().mean()).backward()
    assert {k: p.grad.norm().item() for k, p in model.named_parameters()} == pytest.approx(card["grad"]["l2_norm"], rel=1e-6)


@pytest.mark.parametrize("name, white", [("black", False), ("white", True)])
def test_golden_quadrature(golden, name, white):
    arrays, _, card = golden("raw2outputs")
    out = composite(arrays["input.raw"], arrays["input.z_vals"], arrays["input.rays_d"], white)
    for field, official in (("rgb", "rgb_map"), ("disparity", "disp_map"), ("opacity", "acc_map"), ("weights", "weights"), ("depth", "depth_map")):
        agree(arrays, card, f"{name}_{official}", getattr(out, field))


@pytest.mark.parametrize("n", [8, 20])
def test_golden_sampling(golden, n):
    arrays, _, card = golden("sample_pdf")
    agree(arrays, card, f"det_{n}", sample_pdf(arrays["input.bins"], arrays["input.weights"], n))


def test_golden_rays(golden):
    arrays, _, card = golden("rays_ndc")
    c = card["config"]
    o, d = get_rays(c["H"], c["W"], arrays["input.K"], arrays["input.c2w"], convention="opengl", offset=0)
    agree(arrays, card, "rays_o", o)
    agree(arrays, card, "rays_d", d)
    for name, got in zip(("ndc_o", "ndc_d"), ndc_rays(c["H"], c["W"], c["focal"], c["near"], o, d)):
        agree(arrays, card, name, got)


def test_golden_pipeline(golden):
    """Both networks, both passes, white ground; and the gradient through all of it."""
    arrays, state, card = golden("render_rays")
    config, b = card["config"], arrays["input.ray_batch"]
    coarse, fine = load_checkpoint(state, **config["net"])

    def rendered(dtype):
        x = b.to(dtype)
        return render_rays(coarse.to(dtype), fine.to(dtype), x[:, :3], x[:, 3:6], x[:, 6:7], x[:, 7:8], config["render"]["N_samples"], config["render"]["N_importance"],
                           viewdirs=x[:, 8:], white_background=config["render"]["white_bkgd"])

    out = rendered(torch.float32)
    for name, got in dict(rgb_map=out.rgb, disp_map=out.disparity, acc_map=out.opacity, raw=out.raw, rgb0=out.coarse.rgb, disp0=out.coarse.disparity,
                          acc0=out.coarse.opacity, z_std=out.t_std).items():
        agree(arrays, card, name, got)
    (0.5 * rendered(torch.float64).rgb.square().mean()).backward()
    norms = {f"network_fine.{k}": p.grad.norm().item() for k, p in fine.named_parameters()}
    wanted = {k: v for k, v in card["grad"]["l2_norm"].items() if k.startswith("network_fine.")}
    assert norms == pytest.approx(wanted, rel=1e-5)


def test_golden_poses(golden):
    arrays, _, card = golden("poses")
    poses, c = arrays["input.poses"].double(), card["config"]
    with_size = lambda p: torch.cat([p, poses[0, :, 4:].expand(*p.shape[:-1], 1)], -1).float()
    for i, arguments in enumerate(c["spherical"]):
        assert (volume.spherical_pose(*arguments) - arrays["output.pose_spherical"][i]).abs().max() < card["suggested_atol"]["pose_spherical"]
    centred = volume.recenter(poses[..., :4])
    up = F.normalize(centred[:, :, 1].sum(0), dim=0)
    s = c["spiral"]
    path = volume.spiral(volume.average_pose(centred), up, torch.tensor(s["rads"]).double(), s["focal"], s["zrate"], s["rots"], s["N"])
    moved, circle, scale = volume.spherify(poses[..., :4])
    for name, got in dict(poses_avg=with_size(volume.average_pose(poses[..., :4])), recenter_poses=with_size(centred), render_path_spiral=with_size(path),
                          spherify_poses=with_size(moved), spherify_path_first8=with_size(circle[:8]), spherify_bds=arrays["input.bds"] * scale).items():
        want, scale_of = arrays[f"output.{name}"], max(1.0, float(arrays[f"output.{name}"].abs().max()))
        assert (got - want).abs().max() < max(card["suggested_atol"][name], 2e-7 * scale_of), name       # stored in float32, the size beside the pose


def test_a_checkpoint_of_the_official_program():
    torch.manual_seed(0)
    config = dict(multires=2, multires_views=1, D=3, W=8, skips=[1], use_viewdirs=True)
    coarse, fine = (NeRF(3, 8, 2, 1, (1,)) for _ in range(2))
    saved = {"global_step": 10, "network_fn_state_dict": coarse.to_official(), "network_fine_state_dict": fine.to_official(), "optimizer_state_dict": {}}
    one, two = load_checkpoint(saved, **config)
    pts, dirs = torch.randn(4, 3, 3), F.normalize(torch.randn(4, 3), dim=-1)
    assert torch.equal(one(pts, dirs), coarse(pts, dirs)) and torch.equal(two(pts, dirs), fine(pts, dirs))
    with pytest.raises(ValueError, match="whole checkpoint"):
        NeRF.from_official(saved, **config)
    with pytest.raises(ValueError, match="network_fn"):
        load_checkpoint({"weights": 1}, **config)


def test_a_network_without_directions_keeps_its_dead_layer():
    model = NeRF(2, 8, 2, viewdirs=False, skips=(), outputs=5)
    state = dict(model.state_dict()) | {"views_linears.0.weight": torch.randn(4, 8), "views_linears.0.bias": torch.randn(4)}
    again = NeRF.from_official(state, multires=2, D=2, W=8, skips=(), use_viewdirs=False, output_ch=5)
    assert again.to_official().keys() == state.keys()
    pts = torch.randn(3, 2, 3)
    assert again(pts).shape == (3, 2, 5) and torch.equal(again(pts), model(pts))
    seen = render_rays(again, None, torch.zeros(3, 3), torch.randn(3, 3), 1.0, 2.0, 4)
    assert seen.rgb.shape == (3, 3)


def test_no_encoding_at_all():
    model = NeRF.from_official(NeRF(2, 8, 0, 0, ()).state_dict(), i_embed=-1, D=2, W=8, skips=(), use_viewdirs=True)
    assert model.pts_linears[0].in_features == 3 and model.views_linears[0].in_features == 11


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("alpha_linear.bias"), "lacks 'alpha_linear.bias'"), (lambda s: s.update(extra=torch.zeros(1)), "has 'extra'"),
    (lambda s: s.update({"rgb_linear.bias": torch.zeros(4)}), "rgb_linear.bias: (4,)")])
def test_weights_that_do_not_fit_are_named(change, message):
    state = dict(NeRF(2, 8, 2, 1, ()).state_dict())
    change(state)
    with pytest.raises(ValueError) as error:
        NeRF.from_official(state, multires=2, multires_views=1, D=2, W=8, skips=(), use_viewdirs=True)
    assert message in str(error.value)


def test_what_is_no_state_is_refused():
    with pytest.raises(ValueError, match="got str"):
        NeRF.from_official("model.tar", use_viewdirs=True)


def test_rays_that_meet_nothing_are_background_and_have_a_gradient():
    torch.manual_seed(0)
    field = RadianceField(2, 8, 2, 1, (), n_coarse=8, n_fine=8, near=1.0, far=2.0, resolution=4)
    field.grid.occupied.fill_(False)
    seen = field(torch.zeros(5, 3), F.normalize(torch.randn(5, 3), dim=-1))
    assert torch.equal(seen.rgb, torch.ones(5, 3)) and seen.asked == 0 and not seen.depth.any()
    seen.rgb.sum().backward()                                                # nothing was asked: no gradient, and no crash
    view = render_view(field, tuple(r.view(1, 5, 3) for r in (torch.zeros(5, 3), torch.ones(5, 3), torch.ones(5, 3))))
    assert all(x.isfinite().all() for x in view)


@pytest.mark.parametrize("stop", [1e-2, 1e-4])
def test_stopping_early_costs_less_than_the_light_left(stop):
    torch.manual_seed(0)
    field = RadianceField(2, 32, 4, 1, (), n_coarse=64, n_fine=0, near=0.5, far=3.0).eval()
    field.coarse.alpha_linear.bias.data += 10
    rays = torch.zeros(200, 3), F.normalize(torch.randn(200, 3), dim=-1)
    with torch.no_grad():
        whole, stopped = field(*rays), field(*rays, stop=stop)
    assert stopped.asked < whole.asked and (whole.rgb - stopped.rgb).abs().max() <= stop


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    model, pts, dirs = NeRF(3, 16, 2, 1, (0,)).double(), torch.randn(30, 7, 3).double(), F.normalize(torch.randn(30, 3).double(), dim=-1)
    whole = model(pts, dirs)
    monkeypatch.setattr(nerf, "chunk_size", lambda points: 11)
    assert torch.allclose(model(pts, dirs), whole, atol=1e-14)
    field = RadianceField(2, 8, 2, 1, (), n_coarse=8, n_fine=4).eval()
    rays = view_rays(orbit_cameras(1, 9, 11, radius=4.0))
    pictures = [render_view(field, tuple(r[0].float() for r in rays), chunk=c) for c in (7, 4096)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*pictures))


def test_training_resumes_exactly(tmp_path):
    """Killed after three of six steps and started again: network, grid and measured curve end where an undisturbed training ends."""
    preset = PAPER.preset("smoke", TINY | {"refresh": 2})
    given, held = shots(preset)

    def training(path, kill=None):
        torch.manual_seed(0)
        field = build(preset, given)
        curve = nerf.Curve((2, 6), view_rays(held.camera), held.on("white"))

        class Kill:
            def on_step(self, model, optimizer, done):
                if done == kill:
                    raise KeyboardInterrupt

        fit(field, RayBatches(view_rays(given.camera), given.on("white"), 16, 0), nerf.loss, torch.optim.Adam(field.parameters(), lr=1e-2), 6, device="cpu",
            hooks=(nerf.Refresh(2, 2, 0), curve, Kill()), progress=False, checkpoint=path, checkpoint_every=1)
        return field, curve

    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "a.pt", kill=4)
    (a, curve_a), (b, curve_b) = training(tmp_path / "a.pt"), training(tmp_path / "b.pt")
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values())) and curve_a.psnr == curve_b.psnr and set(curve_a.psnr) == {2, 6}


def test_the_rate_warms_up_then_falls_tenfold_every_decay(monkeypatch):
    """What `train` hands to `fit`: step by step a line up over the warm-up, times a tenth for every ``decay`` steps."""
    class Stop(Exception):
        pass

    def spy(*args, scheduler, **kwargs):
        rates = []
        for _ in range(9):
            rates.append(scheduler.get_last_lr()[0])
            scheduler.optimizer.step()
            scheduler.step()
        raise Stop(rates)

    monkeypatch.setattr(nerf, "fit", spy)
    preset = PAPER.preset("smoke", TINY | {"lr": 0.02, "warmup": 3, "decay": 4})
    with pytest.raises(Stop) as stopped:
        nerf.train(preset, *shots(preset), 0, torch.device("cpu"))
    expected = [0.02 * up * 10 ** (-step / 4) for step, up in enumerate((1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1))]
    assert stopped.value.args[0] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_cells_go_where_a_step_of_the_samples_would_not_see_them(share):
    """A cell is empty below the density that gives a ray the threshold's opacity along one step, in the network's own units of length."""
    field = RadianceField(2, 8, 2, 1, (), n_coarse=8, n_fine=0, near=2.0, far=6.0, reach=2.0, resolution=4)
    hook, step = nerf.Refresh(2, 4, 0, threshold=0.2), (6.0 - 2.0) / 2.0 / 8
    field.density = lambda points: torch.full((len(points),), -share * np.log(0.8) / step)
    hook.on_step(field, None, 3)
    hook.on_step(field, None, 2)
    assert field.grid.occupied.all()                    # not every second step, and from `begin` on only
    hook.on_step(field, None, 4)
    assert field.grid.occupied.all() if share > 1 else not field.grid.occupied.any()


def test_a_collapse_is_tried_once_more_then_told(monkeypatch):
    seeds, plain = [], nerf.build

    def shut(preset, views):
        seeds.append(torch.initial_seed())
        field = plain(preset, views)
        field.coarse.alpha_linear.bias.data -= 100
        return field

    monkeypatch.setattr(nerf, "build", shut)
    monkeypatch.setattr(Watch.__init__, "__defaults__", (2,))
    with pytest.warns(UserWarning, match="tried once more"), pytest.raises(Collapsed, match="crop_steps"):
        experiment(PAPER.preset("smoke", TINY), 3, torch.device("cpu"))
    assert seeds == [3, 4]


def test_forward_facing_photos_train_in_device_coordinates():
    views = capture("still_life", size=16, views=60, samples=1, n_points=100)[[0, 1, 59]]
    turned = facing(views)
    o, d, unit = view_rays(turned.camera, 1.0)
    field = RadianceField(2, 8, 2, 1, (), n_coarse=8, n_fine=4, near=0.0, far=1.0, noise_std=1.0)
    seen = field(*(x.reshape(-1, 3) for x in (o, d, unit)))
    assert seen.rgb.isfinite().all() and seen.rgb.shape == (3 * 16 * 16, 3)


def test_the_recipe_of_forward_facing_photos_runs_whole(monkeypatch):
    """Device coordinates, noise on the density, two passes, no grid; of the cameras around the table those that look within 50 degrees of the first one's way."""
    def forward(*args):
        views = capture(*args)
        ways = views.camera.c2w[:, :3, 2]
        return views[(ways @ ways[0] > math.cos(math.radians(50))).nonzero()[:, 0].tolist()]

    monkeypatch.setattr(nerf, "capture", forward)
    forwards = TINY | {"ndc": True, "resolution": 0, "n_fine": 4, "noise_std": 1.0, "curve": (2, 4)}
    found = experiment(PAPER.preset("smoke", forwards), 0, torch.device("cpu"))
    assert {"psnr", "psnr_curve", "work_curve"} <= found.keys() and "abs_rel" not in found
    assert found["work_curve"] == {2: 0.5, 4: 1.0} and found["samples_per_ray"] == 8 + 8 + 4
    monkeypatch.undo()
    with pytest.raises(ValueError, match="same way|go along -z"):
        experiment(PAPER.preset("smoke", forwards), 0, torch.device("cpu"))


def test_the_paper_settings_are_the_papers():
    paper = PAPER.presets["paper"]
    field = RadianceField(**{k: v for k, v in settings(paper, capture("still_life", size=16, views=9, samples=1, n_points=50)).items()})
    assert sum(p.numel() for p in field.parameters()) == 1_191_688
    assert (field.n_coarse, field.n_fine, field.middle.tolist(), field.reach, field.grid) == (64, 128, [0, 0, 0], 1.0, None)


def test_the_paper_preset_runs_through_in_miniature(blender_lego):
    run = paperlib.reproduce("nerf", "paper", device="cpu", width=16, rays=32, steps=4, crop_steps=2, n_coarse=8, n_fine=8)
    assert run.metrics["samples_per_ray"] == 8 + 16 and run.metrics["psnr"] > 0 and len(run.samples["psnr"]) == 3       # the scene's own test set


def test_the_baseline_shows_the_nearest_camera():
    views = capture("still_life", size=16, views=16, samples=1, n_points=50)
    given, held = views.split(8)
    for i, j in enumerate(nearest_views(given, held)):
        apart = (given.camera.position - held.camera.position[i]).norm(dim=-1)
        assert apart[j] <= 2 * apart.min()


def test_views_without_parallax_are_refused(monkeypatch):
    views = capture("still_life", size=16, views=9, samples=1, n_points=50)
    there = views.camera.c2w.clone()
    there[:, :3, 3] = there[0, :3, 3]
    turning = replace(views, camera=replace(views.camera, c2w=there))
    for given, message in ((turning, "9 training views, all from one place"), (views[:1], "1 training view, all from one place")):
        monkeypatch.setattr(nerf, "train_and_held", lambda *args, given=given: (given, views[:1]))
        with pytest.raises(ValueError, match=message):
            shots(PAPER.preset("smoke", TINY))


def test_no_rays_give_no_pixels():
    for options in ({"n_fine": 0}, {"n_fine": 4}, {"n_fine": 4, "resolution": 4}):
        field = RadianceField(2, 8, 2, 1, (), n_coarse=8, **options).eval()
        with torch.no_grad():
            seen = field(torch.zeros(0, 3), torch.zeros(0, 3), stop=1e-4)
        assert seen.rgb.shape == (0, 3) and seen.asked == 0


def test_fewer_views_are_spread_evenly():
    given, _ = shots(PAPER.preset("smoke", TINY | {"views": 5}))
    all_of_them, _ = shots(PAPER.preset("smoke", TINY))
    assert len(given) == 5 and given.names[0] == all_of_them.names[0] and given.names[-1] == all_of_them.names[-1]


@pytest.mark.parametrize("change, named", [
    ({"steps": 0}, "steps=0"), ({"rays": 0}, "rays=0"), ({"views": 1}, "views=1"), ({"views": 500}, "views=500"), ({"every": 1}, "every=1"), ({"lr": 0.0}, "lr=0.0"),
    ({"octaves": -1}, "octaves=-1"), ({"n_coarse": 1}, "n_coarse=1"), ({"skips": (3,)}, "skips=(3,)"), ({"crop": 0.0}, "crop=0.0"), ({"ndc": True}, "resolution=12"),
    ({"curve": (0,)}, "curve=(0,)"), ({"noise_std": -1.0}, "noise_std=-1.0"), ({"data": "nosuch"}, "nosuch")])
def test_wrong_presets_are_refused_before_any_training(change, named, monkeypatch):
    monkeypatch.setattr(nerf, "fit", lambda *a, **k: pytest.fail("trained first"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        experiment(PAPER.preset("smoke", TINY | change), 0, torch.device("cpu"))
    assert named in str(error.value)


@pytest.mark.parametrize("call, message", [
    (lambda: render_rays(NeRF(2, 8, skips=()), None, torch.zeros(3, 3), torch.zeros(2, 3), 1, 2, 8), "(3, 3), rays_d (2, 3)"),
    (lambda: render_rays(NeRF(2, 8, skips=()), None, torch.zeros(3, 3), torch.zeros(3, 3), 1, 2, 1), "n_coarse=1"),
    (lambda: sample_pdf(torch.zeros(2, 4), torch.zeros(2, 4), 3), "(2, 4) and (2, 4)"), (lambda: NeRF(0), "depth=0"), (lambda: NeRF(outputs=3), "outputs=3"),
    (lambda: volume.Grid(0, (0, 0, 0), (1, 1, 1)), "resolution=0"),
    (lambda: nerf.fly(RadianceField(2, 8, 2, 1, ()), orbit_cameras(3, 8, 8), "x.gif", "colour"), "kind='colour'"),
    (lambda: nerf.fly(None, orbit_cameras(3, 8, 8), "x.mp4"), "x.mp4"), (lambda: nerf.fly(None, orbit_cameras(3, 8, 8), "x.jpg"), "x.jpg"),
    (lambda: nerf.fly(None, orbit_cameras(3, 8, 8), "x.gif", seconds=0), "0 seconds"), (lambda: load_checkpoint("lego.tar"), "got str; read the file"),
    (lambda: RayBatches([torch.zeros(1, 8, 9, 3)] * 3, torch.zeros(1, 8, 9, 3), 4, 0, crop_steps=2, crop=0.01), "crop=0.01: no pixel of 8 x 9"),
    (lambda: volume.stratified(3.0, 2.0, 4, 1), "near=3.0, far=2.0"), (lambda: volume.stratified(0.0, 2.0, 4, 1, inverse=True), "near above 0"),
    (lambda: volume.stratified(torch.tensor([[1.0], [math.nan]]), 2.0, 4, 2), "expected near <= far"),
    (lambda: volume.stratified(1.0, 2.0, 4, 3, u=torch.zeros(3, 5)), "u: expected (3, 4), got (3, 5)"), (lambda: sample_pdf(torch.zeros(2, 1), torch.zeros(2, 0), 3), "B at least 2"),
    (lambda: sample_pdf(torch.zeros(2, 4), torch.zeros(2, 3), 3, u=torch.zeros(3, 3)), "u (3, 3)"), (lambda: RadianceField(2, 8, 2, 1, (), far=math.inf), "far=inf"),
    (lambda: volume.recenter(torch.eye(4)[None, :3] * torch.tensor([[[1.0, 1, 1, 1]], [[-1.0, 1, -1, 1]]])), "the axes of 2 cameras cancel"),
    (lambda: volume.ndc_rays(6, 8, 5.0, 0.0, torch.zeros(1, 3), -torch.ones(1, 3)), "near plane above 0, got 0.0")])
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_cameras_in_float64_and_films_of_the_length_asked_for(tmp_path):
    """What `look_at`, `from_fov` and `orbit_cameras` return is float64."""
    field, cameras = RadianceField(2, 8, 2, 1, (), n_coarse=4, n_fine=0, near=1.0, far=4.0), orbit_cameras(60, 4, 4)
    assert torch.allclose(field.render(cameras[3]).rgb, field.render(cameras[3].to(torch.float32)).rgb, atol=1e-4)
    with Image.open(nerf.fly(field, cameras, tmp_path / "turn.gif", seconds=4.0)) as film:
        length = 0
        for k in range(film.n_frames):
            film.seek(k)
            length += film.info["duration"]
    assert length == 4000                                                      # 60 times 66.7 ms, in hundredths of a second


def test_a_capture_in_float64_trains_alike():
    tiny = replace(PAPER.presets["smoke"], steps=2, rays=16, n_coarse=4, width=8, resolution=4)
    given, held = capture("still_life", 16, views=6, n_points=20).split(3)
    losses = [nerf.train(tiny, *(c.to(dtype) for c in (given, held)), 0, torch.device("cpu"))[1].loss for dtype in (torch.float32, torch.float64)]
    assert list(losses[0]) == list(losses[1])


def test_all_weights_of_zero_are_sampled_evenly():
    bins = torch.linspace(0, 1, 5)[None]
    assert torch.allclose(sample_pdf(bins, torch.zeros(1, 4), 5), bins, atol=1e-6)


def test_opaque_at_the_end_and_nan_nowhere():
    raw = torch.zeros(2, 4, 4)
    raw[0, -1, 3] = 1e-6                                                     # any density in the endless piece
    seen = composite(raw, torch.linspace(1, 2, 4).expand(2, 4), torch.ones(2, 3), True)
    assert seen.opacity.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert seen.disparity.isnan().tolist() == [False, True]                  # as both official codes have it; a View has 0 there
    assert math.isclose(float(seen.rgb[1].mean()), 1.0, rel_tol=1e-6) and View._fields[-1] == "disparity"


def test_lego_carves_a_tight_hull(shared, monkeypatch):
    """No pixel of any object may lose its ray: every opaque pixel's ray passes an occupied cell."""
    monkeypatch.setenv("PAPERLIB_DATA", str(shared / "data"))
    preset = PAPER.preset("small", {"size": 50})
    given, held = shots(preset)
    field = build(preset, given)
    assert field.grid.occupied.float().mean() < 0.25
    o, d, _ = view_rays(held.camera)
    t = torch.linspace(given.near, given.far, 256)
    for i in range(0, len(held), 4):
        solid = held.images[i, ..., 3] > 0.5
        points = (o[i][solid][:, None] + t[:, None] * d[i][solid][:, None] - field.middle) / field.reach
        assert field.grid(points).any(-1).float().mean() > 0.999


def test_shipped_weights_score_what_their_card_says():
    scene = paperlib.load("nerf", "still_life_100px")
    card = next(c for c in weights_list("nerf") if c["name"] == "still_life_100px")
    _, held = shots(PAPER.preset("small", {"data": "still_life"}))
    found = [nerf.psnr(scene.render(held.camera[i]).rgb, held.on("white")[i]) for i in range(len(held))]
    assert np.mean(found) == pytest.approx(card["metrics"]["psnr"], abs=0.02)


@GPU
def test_cpu_and_gpu_render_the_same():
    torch.manual_seed(0)
    field = RadianceField(3, 32, 4, 2, (), n_coarse=16, n_fine=16, resolution=8).eval()
    rays = torch.zeros(64, 3), F.normalize(torch.randn(64, 3), dim=-1)
    with torch.no_grad():
        here, there = field(*rays), field.cuda()(*(r.cuda() for r in rays))
    assert torch.allclose(here.rgb, there.rgb.cpu(), atol=1e-4)
