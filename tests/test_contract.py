"""What every paper of the library has to do: build, learn, repeat itself, and agree between devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone

import paperlib
from paperlib.core.data import dataset
from paperlib.core.paper import override
from paperlib.core.scenes import Camera, look_at
from paperlib.depth import diffusiondepth, eigen, perspective
from paperlib.masked import mae
from paperlib.render import gaussian_splatting, nerf
from paperlib.sequence import phydnet, simvp, swinlstm, visionts
from paperlib.superres import bayesr, depthsr, srcnn, srforest, swinir

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@dataclass(frozen=True)
class Case:
    """How to try a paper that trains by gradient: a small model, a batch for it, its loss, and overrides that make its smoke run short."""

    model: Callable
    batch: Callable
    loss: Callable
    short: dict
    output: Callable = lambda y: y  # how to take a tensor from what the model returns


@dataclass(frozen=True)
class EstimatorCase:
    """How to try a paper that is fitted: an unfitted estimator, what to fit it to, what to predict from, and overrides that make its run short."""

    model: Callable
    data: Callable
    given: Callable
    short: dict


DENOISING = override(diffusiondepth.PAPER.presets["smoke"], {"diffusion": "gt", "sample_steps": 2, "channels": (8, 8, 8, 8), "fpn_dim": 8, "hidden": 8})


def denoising_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return DiffusionDepth's loss at the same times and noise whenever it is called, drawn on the CPU, since a GPU draws other numbers from one seed; truth is diffused, so that the encoder learns too."""
    g, randn, randint = torch.Generator().manual_seed(0), torch.randn, torch.randint
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randn", lambda shape, device=None, dtype=None: randn(shape, generator=g, dtype=dtype).to(device))
        patched.setattr(torch, "randn_like", lambda x: randn(x.shape, generator=g).to(x))
        patched.setattr(torch, "randint", lambda high, size, device=None: randint(high, size, generator=g).to(device))
        return diffusiondepth.Training(model, DENOISING)(*batch)[0]


CASES = {
    "bayesr": Case(lambda: bayesr.warm_start(bayesr.BayeSR(2, 1, 4, 1, 8), 1e6), lambda: (torch.rand(2, 1, 12, 12), torch.rand(2, 1, 24, 24)),
                   lambda model, batch: (lambda q: bayesr.variational_loss(q, bayesr.Prior()) + bayesr.self_loss(batch[1], q))(model.posterior(batch[0])),
                   {"steps": 3, "batch_size": 2, "width": 4}, output=lambda q: q.mean),
    "depthsr": Case(lambda: depthsr.ProgressiveSR(4, widths=(8, 4), residual=False), lambda: (torch.rand(4, 1, 16, 16), torch.rand(4, 1, 64, 64)), depthsr.chain_loss,
                    {"steps": 4, "batch_size": 2, "maps": 2, "patches": 50, "widths": (4, 2), "energy": False}),
    "diffusiondepth": Case(lambda: diffusiondepth.build(DENOISING)[0], lambda: (torch.rand(4, 3, 96, 128), 1 + 4 * torch.rand(4, 1, 96, 128)), denoising_loss,
                           {"steps": 1, "frames": 8, "test_frames": 4, "batch_size": 2, "spread_frames": 2, "sample_steps": 2}),
    "eigen": Case(lambda: eigen.MultiScaleDepthNet("rooms", 0.05, "batch", dropout=0.0), lambda: (torch.rand(4, 3, 96, 128), 1 + 4 * torch.rand(4, 1, 22, 30)),
                  lambda model, batch: eigen.scale_invariant_loss(model(batch[0]), batch[1]),
                  {"frames": 16, "test_frames": 8, "steps_coarse": 2, "steps_fine": 1, "batch_size": 4, "width": 0.05}),
    "mae": Case(lambda: mae.MAE(8, 2, 1, 16, 1, 2, 8, 1, 2), lambda: (torch.rand(4, 1, 8, 8), torch.rand(4, 16)), lambda model, batch: model(batch[0], noise=batch[1]).loss,
                {"steps": 3, "batch_size": 4, "embed_dim": 16, "decoder_embed_dim": 8, "probe_train": 200, "probe_test": 100}, output=lambda y: y.latent[:, 0]),
    "nerf": Case(lambda: nerf.NeRF(2, 16, 2, skips=(0,), viewdirs=False), lambda: (torch.randn(8, 4, 3), torch.randn(8, 4, 4)),
                 lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
                 {"steps": 3, "size": 24, "width": 8, "depth": 2, "n_coarse": 8, "resolution": 12, "rays": 16}),
    "phydnet": Case(lambda: phydnet.PhyDNet(hidden=(32,), width=32), lambda: (torch.rand(2, 3, 1, 16, 16), torch.rand(2, 2, 1, 16, 16)),
                    lambda model, batch: (model(batch[0], 2) - batch[1]).square().mean() + model.moment_loss(), {"steps": 3, "batch_size": 2, "test_clips": 4}),
    "simvp": Case(lambda: simvp.SimVP((3, 1, 8, 8), 8, 16, 2, 2), lambda: (torch.rand(2, 3, 1, 8, 8), torch.rand(2, 3, 1, 8, 8)),
                  lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), {"steps": 3, "batch_size": 2, "test_clips": 4, "elsewhere": False}),
    "srcnn": Case(lambda: srcnn.SRCNN((9, 3, 5), (8, 4)), lambda: (torch.rand(4, 1, 33, 33), torch.rand(4, 1, 19, 19)), srcnn.half_squared_error,
                  {"steps": 3, "batch_size": 2, "widths": (4, 2)}),
    "swinir": Case(lambda: swinir.SwinIR(2, 3, (2,), 8, (2,), 4, drop_path_rate=0.0), lambda: (torch.rand(2, 3, 12, 12), torch.rand(2, 3, 24, 24)),
                   lambda model, batch: swinir.charbonnier(model(batch[0]), batch[1]),
                   {"steps": 3, "batch_size": 2, "patch": 16, "depths": (2,), "embed_dim": 4, "heads": 1, "window_size": 4}),
    "swinlstm": Case(lambda: swinlstm.SwinLSTM(16, 2, 1, 16, (2,), None, (2,), drop_path_rate=0.0), lambda: (torch.rand(2, 3, 1, 16, 16), torch.rand(2, 2, 1, 16, 16)),
                     lambda model, batch: (model(batch[0], 2) - batch[1]).square().mean(), {"steps": 3, "batch_size": 2, "test_clips": 4}),
    "visionts": Case(lambda: visionts.VisionTS(mae.MAE(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
                                               96, 24, 24), lambda: (torch.randn(2, 96, 3), torch.randn(2, 24, 3)),
                     lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
                     {"context": 240, "smoothing_windows": 0, "linear_context": 12, "stride": 40, "tune_steps": 1, "batch_size": 2}),
    "gaussian_splatting": Case(lambda: gaussian_splatting.GaussianModel.from_points(torch.rand(40, 3) - 0.5, torch.rand(40, 3), 1, opacity=0.5),
                               lambda: (Camera.from_fov(50, 24, 32, look_at((2.0, 1, 1), (0, 0, 0))[None]), torch.rand(24, 32, 3)),
                               lambda model, batch: (model(batch[0]).image - batch[1]).square().mean(),
                               {"size": 24, "steps": 12, "points": 80, "limit": 120, "densify_from": 2, "densify_until": 10, "densify_every": 4, "sh_every": 4, "evals": (6,)}, lambda y: y.image),
    "perspective": EstimatorCase(lambda: perspective.CanonicalDepthClassifier(levels=6, ratio=1.6, words=6, columns=40, reach=8, rounds=4, pixels=200, segments=20),
                                 lambda: perspective.room_frames(4, (48, 64), 0), lambda: perspective.room_frames(1, (48, 64), 9).rgb,
                                 {"frames": 4, "test_frames": 2, "height": 48, "levels": 6, "ratio": 1.6, "words": 6, "columns": 40, "reach": 8, "rounds": 3, "pixels": 200}),
    "srforest": EstimatorCase(lambda: srforest.SuperResolutionForest(n_trees=2, max_depth=4), lambda: [p for _, p in dataset("photos", split="train")][2:3],
                              lambda: np.random.default_rng(0).random((20, 30)), {"pictures": 1, "n_trees": 1, "max_depth": 3}),
}
SLUGS = [p.slug for p in paperlib.papers()]
NETWORKS = [s for s in SLUGS if isinstance(CASES.get(s), Case)]
ESTIMATORS = [s for s in SLUGS if isinstance(CASES.get(s), EstimatorCase)]


def test_every_paper_has_a_case():
    assert sorted(SLUGS) == sorted(CASES)


@pytest.mark.parametrize("slug", NETWORKS)
def test_gradients_are_finite_and_one_step_lowers_the_loss(slug):
    torch.manual_seed(0)
    case = CASES[slug]
    model, batch = case.model().train(), case.batch()
    before = case.loss(model, batch)
    before.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients) > 0
    norm2 = sum(g.square().sum() for g in gradients)
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * before.detach() / norm2 * p.grad
    assert case.loss(model, batch) < before


@pytest.mark.parametrize("slug", NETWORKS)
def test_state_dict_round_trip(slug):
    case = CASES[slug]
    one, two = case.model().eval(), case.model().eval()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    x = case.batch()[0]
    outputs = []
    for model in (one, two):
        torch.manual_seed(0)  # what a model draws itself, it draws alike
        outputs.append(case.output(model(x)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("slug", ESTIMATORS)
def test_an_estimator_fits_predicts_and_survives_its_file(slug, tmp_path):
    case = CASES[slug]
    given, model = case.given(), case.model()
    with pytest.raises(ValueError, match="not fitted"):
        model.predict(given)
    assert model.fit(case.data()) is model
    found = np.asarray(model.predict(given))
    assert np.isfinite(found).all()
    assert np.array_equal(clone(model).fit(case.data()).predict(given), found)
    model.save(tmp_path / "model.npz")
    again = type(model).load(tmp_path / "model.npz")
    assert np.array_equal(again.predict(given), found) and again.get_params() == model.get_params()


@pytest.mark.parametrize("slug", SLUGS)
def test_same_seed_same_result(slug):
    runs = [paperlib.reproduce(slug, seed=s, device="cpu", **CASES[slug].short) for s in (0, 0, 1)]
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].metrics != runs[2].metrics


@pytest.mark.parametrize("slug", SLUGS)
def test_wrong_calls_fail_before_any_work(slug, monkeypatch):
    monkeypatch.setattr(paperlib.paper(slug).module, "experiment", lambda *a: pytest.fail("the experiment was started"))
    for call, message in [({"preset": "tiny"}, "no preset"), ({"stepz": 1}, "no preset field"), ({next(iter(CASES[slug].short)): "few"}, "expected int"),
                          ({"device": "tpu"}, "tpu"), ({"seed": -1}, "seed=-1")]:
        with pytest.raises(ValueError, match=message):
            paperlib.reproduce(slug, **call)


@pytest.mark.parametrize("slug", SLUGS)
def test_facts_are_complete(slug):
    paper = paperlib.paper(slug)
    assert len(paper.claims) >= 4
    assert all(getattr(paper, f) for f in ("title", "title_zh", "authors", "venue", "url", "official_code", "licence", "model"))
    assert issubclass(getattr(paper.module, paper.model), torch.nn.Module if slug in NETWORKS else BaseEstimator)
    for preset in paper.presets.values():
        assert all(getattr(preset, f) for f in ("data", "time", "memory", "hardware"))


@GPU
@pytest.mark.parametrize("slug", NETWORKS)
def test_cpu_and_gpu_agree(slug):
    torch.manual_seed(0)
    case = CASES[slug]
    model, batch = case.model().train(), case.batch()
    twin, moved = copy.deepcopy(model).cuda(), tuple(t.to("cuda") for t in batch)
    allow = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        losses = case.loss(model, batch), case.loss(twin, moved)
        for loss in losses:
            loss.backward()
    finally:
        torch.backends.cudnn.allow_tf32 = allow
    assert torch.allclose(losses[0], losses[1].cpu(), rtol=1e-5)
    rounding = 1e-6 * max(p.grad.abs().max().item() for p in model.parameters())
    for p, q in zip(model.parameters(), twin.parameters()):
        most = p.grad.abs().max().item()
        assert torch.allclose(p.grad, q.grad.cpu(), rtol=1e-3, atol=1e-5 * most if most > rounding else rounding)  # an offset before a norm has no gradient but rounding
