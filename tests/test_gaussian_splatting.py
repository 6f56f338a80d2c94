"""3D Gaussian splatting: bits that repeat, the torch path, resumed and refused trainings, files and the viewer in a browser."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import paperlib
from paperlib.core import paper as registry
from paperlib.core.captures import Capture, capture
from paperlib.core.scenes import Camera, look_at
from paperlib.core.splats import read_splat
from paperlib.render import gaussian_splatting as page
from paperlib.render.gaussian_splatting import GaussianModel, Trainer, evaluate, random_points, start_at, train
from paperlib.render.splat_training import FusedStep, GaussianAdam, adam_plain, opacities_of, plain_step
from paperlib.render.splat_viewer import orbit_camera, orbit_of, panel, serve, to_html

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for browser.py beside this file
CPU = torch.device("cpu")
SMOKE = page.PAPER.presets["smoke"]
SHORT = dataclasses.replace(SMOKE, steps=60, points=300, limit=500, densify_from=10, densify_until=50, densify_every=10, sh_every=20, evals=())


@pytest.fixture(scope="module")
def scene():
    """Our own scene, 20 views of 40 pixels."""
    return capture("still_life", 40, views=20, samples=1, n_points=600)


def bits(model):
    """Return all parameters as bytes."""
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_ten_trainings_one_result_whatever_the_threads(scene):
    threads, found = torch.get_num_threads(), set()
    try:
        for run in range(10):
            torch.set_num_threads(1 + run % 2)
            model, history = train(scene, SHORT, progress=False)
            found.add((bits(model), tuple(history.loss)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert bits(train(scene, SHORT, seed=1, progress=False)[0]) not in {b for b, _ in found}


def test_the_paper_preset_runs_through_in_miniature(blender_lego):
    """With its own start and end of densification, and on the scene's own test set."""
    run = paperlib.reproduce("gaussian_splatting", "paper", device="cpu", steps=620, points=60, evals=(600,))
    assert len(run.samples["psnr"]) == 3 and "600" in run.samples["psnr_curve"] and run.metrics["split"] + run.metrics["cloned"] > 0
    assert run.metrics["psnr"] > run.metrics["psnr_nearest"]


def test_many_gaussians_have_the_same_gradients_with_one_two_and_three_threads():
    n, g = 200_003, torch.Generator().manual_seed(0)                    # a prime: no number of threads shares it out without a rest
    values = {"means": torch.randn(n, 3, generator=g), "quats": torch.randn(n, 4, generator=g), "log_scales": 0.3 * torch.randn(n, 3, generator=g) - 5, "logits": torch.full((n,), -2.96),
              "sh_coeffs": 0.3 * torch.randn(n, 4, 3, generator=g)}
    values["means"][-20:] = 0.1 * values["means"][-20:] + torch.tensor([2.0, 0.8, 0.4])     # the end of a thread's share, where rounding may differ, stands in front
    camera, target = Camera.from_fov(90, 41, 60, look_at((2.5, 1.0, 0.5), (0, 0, 0))[None]), torch.rand(41, 60, 3, generator=g)
    eye, step = page.kernels.camera_array(camera.w2c[0].double().numpy(), camera.K[0].double().numpy(), 60, 41), FusedStep(41, 60)
    optimizer, threads, found, left = GaussianAdam(values), torch.get_num_threads(), set(), set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            result = step(optimizer, 4, eye, target.numpy(), np.ones(3, np.float32))
            pull = page.Pull(n, CPU)
            pull.add(result, torch.tensor([30.0, 20.5]))
            found.add((result.loss, optimizer.gradient.numpy().tobytes(), pull.mean().numpy().tobytes()))
            left.add(len(page.prune(optimizer, least=float(opacities_of(optimizer.views(optimizer.flat)["logits"])[0]))[0]))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1 and left == {n}                              # all as opaque as the first, so none goes


@pytest.mark.parametrize("done", [1, 25, 49, 59])
def test_a_training_taken_up_anywhere_ends_at_the_same_bits(scene, tmp_path, done):
    whole = train(scene, SHORT, progress=False)
    path = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(step, trainer):
        if step == done:
            page.save_checkpoint(path, trainer)
            raise Stop

    with pytest.raises(Stop):
        train(scene, SHORT, on_step=stop, progress=False)
    model, history = train(scene, SHORT, checkpoint=path, progress=False)
    assert bits(model) == bits(whole[0])
    assert history.loss == whole[1].loss and history.counts == whole[1].counts


def test_the_torch_path_takes_the_same_steps(scene):
    compiled, plain = (Trainer(scene, SHORT, 0, CPU) for _ in range(2))
    views = plain.views
    views.gradients = lambda optimizer, view, coefficients: plain_step(optimizer, coefficients, views.w2c[view].float(), views.K[view].float(), views.targets[view], views.background, backend="tiles")
    losses = [(compiled.step(), plain.step()) for _ in range(9)]
    assert np.allclose(*zip(*losses), rtol=2e-3)
    moved = compiled.optimizer.flat - Trainer(scene, SHORT, 0, CPU).optimizer.flat
    assert (compiled.optimizer.flat - plain.optimizer.flat).norm() < 0.05 * moved.norm()  # Adam turns a sign that rounding decides into a whole step


def test_adam_in_torch_takes_the_compiled_steps():
    g = torch.Generator().manual_seed(0)
    values = {"means": torch.randn(40, 3, generator=g), "quats": torch.randn(40, 4, generator=g), "log_scales": torch.randn(40, 3, generator=g), "logits": torch.randn(40, generator=g),
              "sh_coeffs": torch.randn(40, 9, 3, generator=g)}
    compiled, rates = GaussianAdam(values), dict(zip(values, (1e-2, 1e-3, 5e-3, 0.05, 2.5e-3)))
    plain = {k: [v.clone().flatten(1) if k == "sh_coeffs" else v.clone().view(-1), *(torch.zeros_like(v).flatten(1) if k == "sh_coeffs" else torch.zeros_like(v).view(-1) for _ in range(2))] for k, v in values.items()}
    for step in range(1, 8):
        compiled.gradient.copy_(torch.randn(compiled.gradient.shape, generator=g) * 1e-6)
        compiled.update(rates, 1e-4, 4)
        for k, (p, m, v) in plain.items():
            rate = torch.tensor([rates[k]] * 3 + [1e-4] * 9) / (1 - 0.9**step) if k == "sh_coeffs" else rates[k] / (1 - 0.9**step)
            adam_plain(p, compiled.views(compiled.gradient)[k].reshape(p.shape), m, v, rate, math.sqrt(1 - 0.999**step))
    for k, v in compiled.views(compiled.flat).items():
        assert (v.reshape(plain[k][0].shape) - plain[k][0]).abs().max() < 1e-5, k
    assert torch.equal(compiled.views(compiled.flat)["sh_coeffs"][:, 4:], values["sh_coeffs"][:, 4:])


@pytest.mark.parametrize("options", [{}, {"antialiased": True}, {"isotropic": True}, {"ssim_weight": 0.0}, {"ssim_weight": 1.0}])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_fused_step_has_the_gradients_of_autograd(scene, options, degree):
    trainer = Trainer(scene, dataclasses.replace(SHORT, sh_degree=3), 0, CPU)
    o, v = trainer.optimizer, trainer.views
    o.views(o.flat)["sh_coeffs"].add_(0.1 * torch.randn(len(o), 16, 3, generator=torch.Generator().manual_seed(1)))
    k = (degree + 1) ** 2
    fused = FusedStep(40, 40, **options)(o, k, v.cameras[4], v.targets[4].numpy(), v.background.numpy())
    ours = o.gradient.clone()
    plain = plain_step(o, k, v.w2c[4].float(), v.K[4].float(), v.targets[4], v.background, backend="dense", **options)
    assert math.isclose(fused.loss, plain.loss, rel_tol=1e-5)
    assert (ours - o.gradient).norm() < 2e-3 * o.gradient.norm()
    assert not o.views(ours)["sh_coeffs"][:, k:].any()
    assert torch.equal(fused.radii > 0, plain.radii > 0)


def test_isotropic_gaussians_stay_round_and_the_limit_holds(scene):
    seen = []
    model, history = train(scene, dataclasses.replace(SHORT, isotropic=True, limit=320), on_step=lambda done, t: seen.append(len(t.optimizer)), progress=False)
    assert (model.log_scales - model.log_scales[:, :1]).abs().max() < 1e-6
    assert max(seen) <= 320 and history.counts


@pytest.mark.parametrize(("changes", "kinds"), [({"clone": False}, (0, 1)), ({"split": False}, (1, 0)), ({"clone": False, "split": False}, (0, 0)), ({}, (1, 1))])
def test_switches_of_densification(scene, changes, kinds):
    counts = train(scene, dataclasses.replace(SHORT, limit=0, **changes), progress=False)[1].counts
    assert tuple(int(sum(c[k] for c in counts) > 0) for k in (2, 3)) == kinds


def test_a_reset_lowers_opacities_where_the_schedule_says(scene):
    most = {}
    train(scene, dataclasses.replace(SHORT, reset_every=20), on_step=lambda done, t: most.__setitem__(done, t.model().logits.sigmoid().max().item()), progress=False)
    assert [s for s, v in most.items() if v <= 0.01001] == [10, 20, 40]  # 10: white background, when densification begins


@pytest.mark.parametrize("bad", [{"steps": 0}, {"start": "here"}, {"sh_degree": 4}, {"ssim_weight": 2.0}, {"points": 1}, {"limit": 100}, {"evals": (0,)}, {"threshold": 0.0}, {"densify_every": 0}, {"lr_quats": -1.0},
                                 {"steps": 10.5}, {"points": 300.0}, {"densify_every": True}, {"evals": (2.5,)}, {"evals": 5}, {"steps": "60"}])
def test_presets_that_are_refused(scene, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        train(scene, dataclasses.replace(SHORT, **bad), progress=False)


def test_seeds_and_counts_that_are_no_whole_numbers(scene):
    for seed in (-1, 1.5, "a", 2**70):
        with pytest.raises(ValueError, match="seed=.*expected a whole number from 0"):
            train(scene, SHORT, seed=seed, progress=False)
    for bad in ({"count": 2.5}, {"sh_degree": 1.0}):
        with pytest.raises(ValueError, match="expected count >= 0 and sh_degree 0 to 3"):
            GaussianModel(**bad)
    with pytest.raises(ValueError, match="sh_degree 0 to 3, got 0.1 and 2.0"):
        GaussianModel.from_points(scene.points, scene.colors, sh_degree=2.0)


def test_a_capture_of_another_dtype_trains_alike(scene):
    short = dataclasses.replace(SHORT, steps=3, evals=())
    losses = [train(c, short, progress=False)[1].loss for c in (scene, dataclasses.replace(scene, images=scene.images.double().requires_grad_()))]
    assert losses[0] == losses[1]


def test_scenes_that_are_refused(scene):
    with pytest.raises(ValueError, match="at least two views, got 1"):
        train(scene[0], SHORT, progress=False)
    there = scene.camera.c2w.clone()
    there[:, :3, 3] = there[0, :3, 3]
    with pytest.raises(ValueError, match="all 20 cameras stand in one place"):
        train(dataclasses.replace(scene, camera=dataclasses.replace(scene.camera, c2w=there)), SHORT, progress=False)
    with pytest.raises(ValueError, match="limit=500: training starts from 600 Gaussians already"):
        train(scene, dataclasses.replace(SHORT, points=0), progress=False)
    with pytest.raises(ValueError, match="no preset"):
        train(scene, "tiny", progress=False)
    with pytest.raises(ValueError, match="held-out pictures of 8 x 8 pixels: SSIM needs sides of at least 11"):
        train(scene, SHORT, held_out=scene.resized(8, 8), on_step=lambda *_: pytest.fail("trained first"), progress=False)
    for every in (0, 2.5):
        with pytest.raises(ValueError, match=f"checkpoint_every={every}"):
            train(scene, SHORT, checkpoint="no.pt", checkpoint_every=every, progress=False)
    with pytest.raises(ValueError, match="N >= 2"):
        train(dataclasses.replace(scene, points=scene.points[:1], colors=scene.colors[:1]), SHORT, progress=False)
    with pytest.raises(FileNotFoundError, match="nowhere/at all"):
        paperlib.reproduce("gaussian_splatting", data="nowhere/at all", device="cpu")


def test_empty_pictures_and_views_that_see_nothing_give_numbers(scene):
    empty = dataclasses.replace(scene, images=torch.zeros_like(scene.images))
    model, history = train(empty, dataclasses.replace(SHORT, steps=30), progress=False)
    assert np.isfinite(history.loss).all() and all(p.isfinite().all() for p in model.parameters())
    away = dataclasses.replace(scene, points=scene.points + torch.tensor([0, 0, 100.0]))     # every Gaussian is behind or beside the cameras
    model, history = train(away, dataclasses.replace(SHORT, steps=30), progress=False)
    assert np.isfinite(history.loss).all() and all(p.isfinite().all() for p in model.parameters())


def test_what_prunes_all_says_so(scene):
    with pytest.raises(ValueError, match="no Gaussian is left after pruning"):
        train(scene, dataclasses.replace(SHORT, lr_opacity=3.0, ssim_weight=0.0, reset_every=10, densify_from=10), progress=False,
              on_step=lambda done, t: t.optimizer.views(t.optimizer.flat)["logits"].fill_(-9.0))


def test_a_loss_that_is_not_finite_stops_with_its_step(scene):
    def spoil(done, trainer):
        if done == 5:
            trainer.optimizer.flat[: len(trainer.optimizer)] = torch.nan
            trainer.views.targets.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="step 5"):
        train(scene, SHORT, on_step=spoil, progress=False)


def test_parameters_that_run_away_are_an_error_and_no_model(scene):
    with pytest.raises(FloatingPointError, match="step"):
        train(scene, dataclasses.replace(SHORT, lr_means=1e38, lr_means_last=1e38), progress=False)


def test_a_damaged_checkpoint_and_one_of_other_data(scene, tmp_path):
    path = tmp_path / "state.pt"
    train(scene, SHORT, checkpoint=path, progress=False)
    wider = dataclasses.replace(scene.camera, K=scene.camera.K * torch.tensor([1.01, 1, 1])[:, None])
    one = torch.zeros_like(scene.colors)
    one[3, 1] = 0.01
    others = {"pictures": {"images": scene.images * 0.5}, "cameras": {"camera": wider}, "points": {"colors": (scene.colors - one).clamp_min(0)}}
    for what, change in others.items():
        with pytest.raises(ValueError, match=rf"another training \({what}: \w+ there, \w+ here\)"):
            train(dataclasses.replace(scene, **change), SHORT, checkpoint=path, progress=False)
    assert train(scene, SHORT, checkpoint=path, progress=False)[1].loss     # what it is of is taken, at the end already
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        train(scene, SHORT, checkpoint=path, progress=False)


def test_photos_stand_before_black_and_random_starts_fill_the_papers_cube(scene):
    photos = dataclasses.replace(scene, images=scene.on("white"))
    assert page.background_of(photos).tolist() == [0, 0, 0] and page.background_of(scene).tolist() == [1, 1, 1]
    points, _ = random_points(photos, 4000)
    middle = scene.camera.position.mean(0)
    assert 0.97 < (points - middle).abs().max() / (1.5 * scene.extent) <= 1
    assert torch.equal(points, random_points(photos, 4000)[0]) and not torch.equal(points, random_points(photos, 4000, seed=1)[0])


def test_pictures_of_no_multiple_of_a_tile_and_of_one_pixel():
    values = start_at(torch.rand(50, 3), torch.rand(50, 3), 1)
    for height, width in ((1, 1), (17, 31), (16, 16)):
        camera = Camera.from_fov(50, height, width, torch.stack([look_at((3.0, k, 1), (0, 0, 0)) for k in range(3)]))
        pictures = Capture(torch.rand(3, height, width, 3), camera, ("a", "b", "c"), values["means"], torch.rand(50, 3), 1.0, 9.0, True, "random")
        model, _ = train(pictures, dataclasses.replace(SHORT, points=0, steps=12), progress=False)
        assert all(p.isfinite().all() for p in model.parameters())


def test_evaluate_is_clipped_and_named(scene):
    model = GaussianModel.from_points(scene.points, scene.colors)
    found = evaluate(model, scene)
    assert list(found["psnr"]) == list(scene.names)
    k = 3
    drawn = model(scene.camera[k], torch.ones(3)).image.clamp(0, 1).double()
    mse = (drawn - scene.on("white")[k]).square().mean().item()
    assert math.isclose(found["psnr"][scene.names[k]], -10 * math.log10(mse), abs_tol=1e-4)


def test_shipped_weights_draw_the_still_life():
    model = paperlib.load("gaussian_splatting", "still_life_200")
    found = evaluate(model, capture("still_life", 200).split()[1])["psnr"]
    card = next(w for w in registry.weights_list("gaussian_splatting") if w["name"] == "still_life_200")
    assert math.isclose(np.mean(list(found.values())), card["metrics"]["psnr"], abs_tol=0.01)


def test_round_trips_of_files(scene, tmp_path):
    model = train(scene, dataclasses.replace(SHORT, steps=20), progress=False)[0]
    model.to_ply(tmp_path / "a.ply")
    assert bits(GaussianModel.from_ply(tmp_path / "a.ply")) == bits(model)
    model.to_splat(tmp_path / "a.splat")
    flat = GaussianModel.from_splat(tmp_path / "a.splat")
    a, b = (m.views(scene.camera[2], torch.ones(3)) for m in (GaussianModel.from_values({k: v.detach() if k != "sh_coeffs" else v.detach()[:, :1] for k, v in model.named_parameters()}), flat))
    assert (a - b).abs().mean() < 2 / 255
    thin = GaussianModel.from_gaussians(dataclasses.replace(model.gaussians(), log_scales=model.log_scales.detach() - 2), antialiased=True)
    thin.to_ply(tmp_path / "thin.ply")
    told, untold = GaussianModel.from_ply(tmp_path / "thin.ply", antialiased=True), GaussianModel.from_ply(tmp_path / "thin.ply")
    drawn, again, other = (m.views(scene.camera[2:3]) for m in (thin, told, untold))
    assert torch.equal(drawn, again) and (other - drawn).abs().max() > 0.05
    thin.to_splat(tmp_path / "thin.splat")
    assert GaussianModel.from_splat(tmp_path / "thin.splat", antialiased=True).antialiased
    cut = (tmp_path / "a.ply").read_bytes()[:-100]
    (tmp_path / "a.ply").write_bytes(cut)
    with pytest.raises(ValueError, match="cut short"):
        GaussianModel.from_ply(tmp_path / "a.ply")


def test_a_title_of_any_words_and_sizes_of_no_whole_pixels(scene, tmp_path):
    model, pages = GaussianModel.from_points(scene.points, scene.colors), []
    for title in ("plain", "START with CODE, WIDTH times HEIGHT SPLATS; TITLE"):
        to_html(model.gaussians(), tmp_path / "a.html", scene.camera, title=title)
        pages.append((tmp_path / "a.html").read_text().replace(title, "", 2))
    assert pages[0] == pages[1]                                                  # but for the title the same page
    for bad in ({"width": 100.5}, {"height": 0}, {"background": (math.nan, 0, 0)}, {"background": (1.0, 1.0)}):
        with pytest.raises(ValueError, match="to_html: expected"):
            to_html(model.gaussians(), tmp_path / "b.html", **bad)
    broken = dataclasses.replace(model.gaussians(), means=model.means.detach() * math.nan)
    with pytest.raises(ValueError, match=r"b\.html: means hold values that are not finite"):
        to_html(broken, tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_orbits_of_odd_cameras_can_be_drawn(scene):
    model, see = GaussianModel.from_points(scene.points, scene.colors).gaussians(), lambda eye, up: look_at(eye, (0, 0, 0), up)
    heads = torch.stack([see((3.0, 0, 0), (0, 0, 1.0)), see((0, 3.0, 0), (0, 0, -1.0))])           # as often on its head as not: no mean up
    above = torch.stack([see((0.02, 0, 3.0), (1.0, 0, 0)), see((3.0, 0, 0.1), (0, 0, 1.0)), see((-3.0, 0, 0.1), (0, 0, 1.0)), see((0, 3.0, 0.1), (0, 0, 1.0)), see((0, -3.0, 0.1), (0, 0, 1.0)),
                         see((0.01, 0, 3.0), (-1.0, 0, 0))])                                            # the first from straight above
    for poses, up in ((heads, [0, 0, 1]), (above, [0, 0, 1])):
        orbit = orbit_of(model, Camera.from_fov(50, 20, 20, poses))
        assert np.allclose(orbit["up"], up, atol=0.02) and abs(orbit["elevation"]) <= 1.5
        first = orbit_camera(orbit, 20, 20)
        assert first.c2w.isfinite().all() and (first.position[0] - torch.tensor(orbit["target"]).double()).norm().item() == pytest.approx(orbit["distance"])


def _missing(what):
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI is set: install it, this test must run there")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def window():
    """A browser without a window."""
    if importlib.util.find_spec("playwright") is None:
        _missing("the package playwright")
    import browser

    if browser.find_chromium() is None:
        _missing("Chromium")
    with browser.open_browser(browser.find_chromium()) as found:
        yield found


@pytest.mark.parametrize("antialiased", [False, True])
def test_the_page_draws_what_the_rasterizer_draws(window, scene, tmp_path, antialiased):
    model = train(scene, dataclasses.replace(SHORT, antialiased=antialiased), progress=False)[0]
    model.log_scales.data -= float(antialiased)                                  # thin ones, so that it matters
    file = tmp_path / "scene.html"
    to_html(model.gaussians(), file, scene.camera, width=121, height=90, title="a <scene>", antialiased=antialiased)
    page_, asked, complaints = window.new_page(), [], []
    page_.on("request", lambda r: asked.append(r.url))
    page_.on("pageerror", lambda e: complaints.append(str(e)))
    page_.on("console", lambda m: complaints.append(m.text))
    page_.goto(file.as_uri())
    page_.wait_for_function("document.querySelector('output').textContent != ''")
    pixels = lambda: np.array(page_.evaluate("Array.from(picture.data)")).reshape(90, 121, 4)[..., :3]
    first = pixels()
    page_.locator("canvas").focus()
    page_.keyboard.press("ArrowLeft")
    page_.wait_for_function("azimuth !== start.azimuth && !waiting")
    turned = pixels()
    page_.keyboard.press("ArrowRight")
    page_.wait_for_function("Math.abs(azimuth - start.azimuth) < 1e-9 && !waiting")
    back = pixels()
    label = page_.inner_text("output")
    page_.select_option("select", "depth")
    page_.wait_for_function(f"document.querySelector('output').textContent.includes(' to ') && !{label!r}.includes(' to ')")
    page_.close()
    assert asked == [file.as_uri()] and not complaints
    (tmp_path / "a.splat").unlink(missing_ok=True)
    model.to_splat(tmp_path / "a.splat")
    camera = orbit_camera(orbit_of(model.gaussians(), scene.camera), 90, 121)
    ours = 255 * panel(read_splat(tmp_path / "a.splat"), camera, antialiased=antialiased).numpy()
    assert np.abs(first - ours).mean() < 0.3 and np.quantile(np.abs(first - ours), 0.999) < 2   # eight bits, and pixels on a threshold
    assert np.abs(turned - first).mean() > 1 and np.abs(back - first).max() <= 1


def test_viser_shows_it_or_says_how_to_get_it(window, scene):
    model = GaussianModel.from_points(scene.points, scene.colors)
    if importlib.util.find_spec("viser") is None:
        with pytest.raises(ImportError, match=r"paperlib\[viewer\]"):
            serve(model.gaussians())
        return
    server = serve(model.gaussians(), port=18_471, camera=scene.camera)
    try:
        page_, spread = window.new_page(viewport={"width": 900, "height": 600}), 0.0
        page_.goto("http://localhost:18471")
        page_.wait_for_selector("canvas", timeout=60_000)
        for _ in range(40):                                                          # until the middle of the page is no longer blank
            page_.wait_for_timeout(500)
            spread = np.asarray(Image.open(io.BytesIO(page_.screenshot())).convert("L"), float)[200:400, 330:550].std()
            if spread > 10:
                break
        assert spread > 10
        page_.close()
    finally:
        server.stop()
