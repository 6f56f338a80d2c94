"""PhyDNet against the authors' numbers, moments and derivatives, the equation inside the cell, and input that should be refused."""

import json
from dataclasses import replace
from fractions import Fraction
from math import factorial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperlib.core.video import cost, frames_at
from paperlib.sequence import phydnet
from paperlib.sequence.phydnet import (
    PAPER,
    ConvLSTMCell,
    Forcing,
    PhyCell,
    PhyDNet,
    PixelPhysics,
    derivatives,
    kernel_to_moments,
    moment_loss,
    moments_to_kernel,
    official_name,
    our_name,
    taylor,
)


def golden(shared, case):
    path = shared / "golden" / f"phydnet__{case}.npz"
    with np.load(path) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    return {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}, arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def near(found, arrays, card, name):
    assert (found - arrays[f"output.{name}"]).abs().max() <= card["suggested_atol"][name], name


@torch.no_grad()
def test_frames_branches_and_states_of_the_official_code(shared):
    state, arrays, card = golden(shared, "encoder_rnn")
    model, x = PhyDNet.from_official(state, card["config"]["phycell"], card["config"]["convcell"]), arrays["input.x"]
    steps, carried = [], None
    for t in range(4):
        steps.append(model.step(x[:, t], carried))
        carried = steps[-1].state
    for name, field in (("output_image", "image"), ("out_phys", "physical"), ("out_conv", "residual")):
        near(torch.stack([getattr(s, field) for s in steps], 1), arrays, card, name)
    near(carried.physical[0][0], arrays, card, "phycell_H")
    near(carried.residual[-1][0], arrays, card, "convcell_H_last")
    near(carried.residual[-1][1], arrays, card, "convcell_C_last")
    near(model.moment_loss(each=True), arrays, card, "moment_loss_per_input_channel")


@torch.no_grad()
def test_training_losses_of_the_official_code(shared):
    state, arrays, card = golden(shared, "encoder_rnn")
    model, x, y = PhyDNet.from_official(state, card["config"]["phycell"], card["config"]["convcell"]), arrays["input.x"], arrays["input.target"]
    frames = torch.cat([x[:, 1:], y], 1)
    for name, truth in (("teacher_forcing", y), ("free_running", None)):
        errors = (model(x, 3, truth, all_steps=True) - frames).square().mean((0, 2, 3, 4))
        near((errors.sum() + model.moment_loss()) / 3, arrays, card, f"train_on_batch_{name}")


def test_the_physical_cell_of_the_official_code(shared):
    state, arrays, card = golden(shared, "phycell")
    cell, h = PhyCell(8), torch.zeros(2, 8, 9, 11)
    cell.load_state_dict({our_name(f"phycell.{k}").removeprefix("physical.cells.0."): v for k, v in state.items()})
    with torch.no_grad():
        for t in range(4):
            E = arrays["input.x"][:, t]
            assert (cell.gain(E, h, cell.predicted(h)) - arrays["output.gate_K"][t]).abs().max() <= card["suggested_atol"]["gate_K"]
            (h,) = cell(E, (h,))
            assert (h - arrays["output.H"][t, 0]).abs().max() <= card["suggested_atol"]["H"]


def test_the_residual_cells_of_the_official_code(shared):
    state, arrays, card = golden(shared, "convlstm")
    cells = [ConvLSTMCell(a, b) for a, b in ((5, 8), (8, 12), (12, 6))]
    for i, cell in enumerate(cells):
        cell.load_state_dict({our_name(f"convcell.{k}").removeprefix(f"residual.cells.{i}."): v for k, v in state.items() if f"cell_list.{i}." in k})
    states, tops = [c.start(arrays["input.x"][:, 0]) for c in cells], []
    with torch.no_grad():
        for t in range(4):
            x = arrays["input.x"][:, t]
            for i, cell in enumerate(cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
            tops.append(x)
    near(torch.stack(tops, 1), arrays, card, "H_top")
    for i, (h, c) in enumerate(states):
        near(h, arrays, card, f"H{i}_last")
        near(c, arrays, card, f"C{i}_last")


def test_moments_of_the_official_code(shared):
    _, arrays, card = golden(shared, "moments")
    for name in "ab":
        near(kernel_to_moments(arrays[f"input.{name}"]), arrays, card, f"k2m_{name}")
        near(moments_to_kernel(arrays[f"input.{name}"]), arrays, card, f"m2k_{name}")
        for found, key in ((kernel_to_moments(arrays[f"input.{name}"]), f"k2m_{name}"), (moments_to_kernel(arrays[f"input.{name}"]), f"m2k_{name}")):
            wanted = arrays[f"output.{key}"]
            assert found.dtype == torch.float64 and (found - wanted).abs().max() <= 1e-12 * wanted.abs().max().clamp_min(1)
    near(derivatives(), arrays, card, "delta_kernels_7x7")


def test_moments_by_the_double_sum_and_rational_kernels():
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(5):
        for j in range(7):
            wanted = sum((u - 2) ** i * (v - 3) ** j * w[u, v] for u in range(5) for v in range(7)) / (factorial(i) * factorial(j))
            assert kernel_to_moments(w)[i, j] == pytest.approx(wanted.item(), abs=1e-12)
    assert torch.allclose(moments_to_kernel(kernel_to_moments(w)), w, atol=1e-12)
    rows = {1: "-1/60 3/20 -3/4 0 3/4 -3/20 1/60", 2: "1/90 -3/20 3/2 -49/18 3/2 -3/20 1/90", 3: "1/8 -1 13/8 0 -13/8 1 -1/8", 5: "-1/2 2 -5/2 0 5/2 -2 1/2", 6: "1 -6 15 -20 15 -6 1"}
    for order, text in rows.items():
        assert derivatives()[order, 3].tolist() == pytest.approx([float(Fraction(q)) for q in text.split()], abs=1e-11)
        assert torch.allclose(derivatives()[7 * order][:, 3], derivatives()[order][3], atol=1e-11)  # the first index counts rows


def test_moments_of_an_even_size_have_the_origin_of_the_released_code():
    """Its places are arange(n) - (n - 1) // 2: of four, -1 to 2."""
    assert taylor(4)[1].tolist() == [-1, 0, 1, 2] and taylor(2)[1].tolist() == [0, 1]
    w = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert kernel_to_moments(w)[1, 1, 2].item() == pytest.approx(sum((u - 1) * (v - 2) ** 2 / 2 * w[1, u, v].item() for u in range(4) for v in range(6)), abs=1e-12)
    assert torch.allclose(moments_to_kernel(kernel_to_moments(w)), w, atol=1e-11)
    for bad, message in ((lambda: derivatives(0), "n=0"), (lambda: taylor(2.0), r"n=2\.0"), (lambda: kernel_to_moments(torch.ones(3)), r"got \(3,\)"), (lambda: moment_loss(torch.rand(9, 3, 3)), r"kernels \(9, 3, 3\)")):
        with pytest.raises(ValueError, match=message):
            bad()


def test_the_moment_loss_of_each_channel_by_a_loop():
    weight = torch.randn(49, 5, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    unit = torch.eye(49, dtype=torch.float64).view(49, 7, 7)
    looped = torch.stack([F.mse_loss(torch.stack([kernel_to_moments(weight[n, b]) for n in range(49)]), unit) for b in range(5)])
    assert torch.allclose(moment_loss(weight, each=True), looped, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(moment_loss(weight), weight)[0], torch.autograd.grad(looped.sum(), weight)[0], rtol=1e-9)
    torch.manual_seed(0)
    assert moment_loss(nn.Conv2d(64, 49, 7).weight).item() == pytest.approx(4.968353, abs=2e-6)
    with pytest.raises(ValueError, match="derivatives need"):
        moment_loss(torch.zeros(48, 3, 7, 7))


def test_the_cell_is_eulers_step_of_the_heat_equation():
    cell = PhyCell(2, norm=False).double()
    with torch.no_grad():
        for p in cell.parameters():
            p.zero_()
        cell.derive.weight[:, 0] = derivatives()
        cell.combine.weight[0, [2, 14]] = 0.1
        h = torch.randn(1, 2, 12, 12, dtype=torch.float64)
        laplace = F.conv2d(h[:, :1], derivatives()[[2, 14]].sum(0)[None, None], padding=3)
        assert torch.allclose(cell(None, (h,), correct=False)[0], torch.cat([h[:, :1] + 0.1 * laplace, h[:, 1:]], 1), atol=1e-14)


def test_parameters_names_and_multiply_adds():
    with torch.device("meta"):
        model = PhyDNet()
        found = cost(Nineteen(model), torch.empty(1, 10, 1, 64, 64), rounds=0)
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(model), len(model.state_dict())) == (3_091_732, 68)
    assert (count(model.physical.cells), count(model.residual.cells), count(model.encoder), count(model.decoder), count(model.physical.inward)) == (230_803, 2_508_032, 28_320, 28_129, 74_112)
    assert found.gmacs == pytest.approx(15.85, rel=0.02)


class Nineteen(nn.Module):
    """The steps of a clip from ten frames to ten as the released code takes them, which paints the branches apart each time."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        state = None
        for t in range(19):
            step = self.model.step(x[:, t % 10], state)
            state = step.state
        return step.image


@pytest.mark.parametrize("branches", phydnet.BRANCHES)
@pytest.mark.parametrize("gate", ["sigmoid", "tanh"])
def test_all_frames_at_once_are_the_steps_one_by_one(branches, gate):
    torch.manual_seed(0)
    net, clip = PhyDNet(2, hidden=(16, 32), width=32, branches=branches, gate=gate).double(), torch.rand(2, 5, 2, 12, 8, dtype=torch.float64)
    carried, found = None, []
    for t in range(5):
        step = net.step(clip[:, t], carried)
        carried = step.state
        found.append(step.image)
    found = torch.stack(found, 1)
    assert torch.allclose(net(clip[:, :2], 4, clip[:, 2:], all_steps=True), found, atol=1e-12)
    free = net(clip[:, :2], 2)
    assert torch.allclose(free[:, 0], found[:, 1], atol=1e-12) and free.shape == (2, 2, 2, 12, 8)
    one = torch.autograd.grad(found.square().mean(), list(net.parameters()), allow_unused=True)
    two = torch.autograd.grad(net(clip, 1, all_steps=True).square().mean(), list(net.parameters()), allow_unused=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, two) if a is not None)
    assert (step.physical is None) == (branches == "residual") and (step.residual is None) == (branches == "physical")


def test_two_physical_branches_are_held_and_left_alone_alike():
    torch.manual_seed(0)
    net = PhyDNet(hidden=(32,), width=32, branches="two physical").eval()
    assert all(isinstance(b.cells[0], PhyCell) for b in (net.physical, net.residual))
    assert torch.allclose(net.moment_loss(), sum(moment_loss(b.cells[0].derive.weight) for b in (net.physical, net.residual)))
    net.moment_loss().backward()
    assert all(b.cells[0].derive.weight.grad.abs().sum() > 0 for b in (net.physical, net.residual))
    a, b = torch.rand(2, 1, 1, 8, 8)
    with torch.no_grad():
        carried = net.step(a).state
        assert torch.equal(net.step(a, carried, correct=False).image, net.step(b, carried, correct=False).image)  # neither sees its input


def test_a_long_forecast_holds_only_the_frames_that_it_returns(held_between):
    net, clip = PhyDNet(hidden=(32,), width=32).eval(), torch.rand(2, 3, 1, 16, 16)
    assert held_between(net, lambda: net(clip, 100), 10, 90) == 80 * clip[:, 0].nbytes


@torch.no_grad()
def test_branches_apart_replaces_by_the_mean_over_clips():
    torch.manual_seed(0)
    net, clips = PhyDNet(hidden=(32,), width=32).eval(), torch.rand(4, 4, 1, 8, 8)
    found = phydnet.branches_apart(net, clips, 3, torch.device("cpu"))
    p, r, _ = net.latents(clips[:, :3])
    wanted = [(net.paint(p[i:i + 1, -1], r[:, -1].mean(0, keepdim=True)) - clips[i:i + 1, 3]).square().sum().item() for i in range(4)]
    assert found["first_physical_mean"] == pytest.approx(sum(wanted) / 4, rel=1e-5)
    same = phydnet.branches_apart(net, clips[:1].repeat(4, 1, 1, 1, 1), 3, torch.device("cpu"))  # of one clip the mean is the clip
    assert same["first_physical_mean"] == pytest.approx(same["first_both"], rel=1e-5) and same["first_residual_mean"] == pytest.approx(same["first_both"], rel=1e-5)


def test_official_names_come_back(shared):
    state, _, card = golden(shared, "encoder_rnn")
    assert {official_name(our_name(k)): v for k, v in state.items()}.keys() == state.keys()
    back = PhyDNet.from_official(state, card["config"]["phycell"], card["config"]["convcell"]).to_official()
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    for options in ({"branches": "residual"}, {"gate": "tanh"}, {"norm": False}, {"width": 32, "hidden": (32,)}):
        with pytest.raises(ValueError, match="no official names"):
            PhyDNet(**{"hidden": (64,)} | options).to_official()


def test_without_correction_the_physical_branch_does_not_see_its_input():
    net = PhyDNet(hidden=(32,), width=32, branches="physical").eval()
    a, b = torch.rand(2, 1, 1, 8, 8)
    carried = net.step(a).state
    assert torch.equal(net.step(a, carried, correct=False).image, net.step(b, carried, correct=False).image)
    assert not torch.equal(net.step(a, carried).image, net.step(b, carried).image)


def test_the_cell_on_pixels():
    net, clip = PixelPhysics(1), torch.rand(2, 3, 1, 9, 9)
    assert net(clip, 2).shape == (2, 2, 1, 9, 9) and net(clip, 2, all_steps=True).shape[1] == 4 and net.moment_loss() > 0


def test_forcing_falls_and_survives_a_restart():
    forced = Forcing(100, 3)
    said = []
    for step in range(200):
        said.append(forced())
        forced.on_step(None, None, step + 1)
    assert all(said[:3]) and 30 <= sum(said[:100]) <= 70 and not any(said[100:])
    again = Forcing(100, 3)
    again.load_state_dict({"done": 50})
    assert again() == said[50]


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("decoder_D.upc3.bias"), r"lacks 'decoder\.2\.bias'"), (lambda s: s.update(head=torch.zeros(1)), "has 'head'"),
    (lambda s: s.update({"convcell.cell_list.0.conv.bias": torch.zeros(3)}), "check phycell and convcell")])
def test_files_of_another_network(shared, change, message):
    state, _, card = golden(shared, "encoder_rnn")
    change(state)
    with pytest.raises(ValueError, match=message):
        PhyDNet.from_official(state, card["config"]["phycell"], card["config"]["convcell"])


@pytest.mark.parametrize(("args", "message"), [({"hidden": (16,)}, r"hidden=\(16,\)"), ({"branches": "one"}, "branches='one'"), ({"width": 40, "hidden": (40,)}, "width=40"), ({"gate": "relu"}, "relu"),
                                               ({"kernel_size": 4}, "kernel_size=4"), ({"filters": 50}, "filters=50"), ({"physical_layers": 0}, "physical_layers=0"), ({"hidden": (0, 64)}, r"hidden=\(0, 64\)"),
                                               ({"channels": 0}, "channels=0"), ({"kernel_size": -3}, "kernel_size=-3"), ({"kernel_size": 7.0}, r"kernel_size=7\.0"), ({"filters": 49.0}, r"filters=49\.0"), ({"hidden": 64}, "hidden=64"), ({"width": 64.0}, r"width=64\.0"), ({"physical_layers": 1.5}, r"physical_layers=1\.5")])
def test_bad_networks_are_refused_by_name(args, message):
    with pytest.raises(ValueError, match=message):
        PhyDNet(**args)


@pytest.mark.parametrize(("change", "message"), [
    ({"data": "planets"}, "planets"), ({"size": 30}, "size=30"), ({"steps": 0}, "steps=0"), ({"forced": 2.0}, "forced=2.0"), ({"space": "pixels"}, "pixels"), ({"hidden": (9,)}, r"hidden=\(9,\)"),
    ({"lengths": (6, 1)}, r"lengths=\(6, 1\)"), ({"whole": -1}, "whole=-1")])
def test_bad_presets_are_refused_before_any_work(change, message, monkeypatch):
    monkeypatch.setattr(phydnet, "train", lambda *a: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=message):
        phydnet.experiment(replace(PAPER.presets["small"], **change), 0, torch.device("cpu"))


def test_which_step_sees_how_much_of_a_clip():
    small = PAPER.presets["small"]
    assert [frames_at(small, s) for s in (0, 599, 600, 1199, 1200, 1799)] == [6, 6, 10, 10, 20, 20]
    assert {frames_at(replace(small, steps=600), s) for s in range(600)} == {20}          # the settings of 7.1 see whole clips throughout, as when they were recorded


@pytest.mark.parametrize(("frames", "lengths", "forced"), [(9, (), 0.0), (9, (), 1.0), (5, (5,), 0.0), (5, (5,), 1.0), (2, (2,), 0.0)])
def test_a_short_clip_weighs_against_the_moment_loss_as_a_whole_one(frames, lengths, forced):
    """By the definition: the mean squared error of all predicted frames, times as many as a whole clip has, and the moment loss."""
    preset = replace(PAPER.presets["smoke"], frames_in=6, frames_out=3, steps=1, lengths=lengths, forced=forced, moments=0.5)
    torch.manual_seed(0)
    net, clips = PhyDNet(hidden=(32,), width=32), torch.rand(2, 9, 1, 8, 8)
    n = {9: 6, 5: 3, 2: 1}[frames]
    with torch.no_grad():
        found = net(clips[:, :n], frames - n, clips[:, n:frames] if forced else None, all_steps=True)
        wanted = 8 * (found - clips[:, 1:frames]).square().mean() + 0.5 * net.moment_loss()
    assert phydnet.train(net, lambda step, rank=0, world=1: clips, preset, 0, torch.device("cpu")).loss == [pytest.approx(wanted.item(), rel=1e-5)]


@pytest.mark.parametrize("gate", ["sigmoid", "tanh"])
def test_half_precision_where_norms_give_floats(gate, monkeypatch):
    """On a GPU autocast keeps group norms in float32, and with them what is encoded, while the gain's convolutions are bfloat16: here as there."""
    torch.manual_seed(0)
    norm, clip = nn.GroupNorm.forward, torch.rand(2, 3, 1, 8, 8)
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda self, x: norm(self, x).float())
    for net in (PhyDNet(hidden=(32,), width=32, gate=gate), PixelPhysics(gate=gate)):
        whole = net(clip, 3)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(clip, 3)
        found.float().square().mean().backward()
        assert (found.float() - whole).norm() < 0.1 * whole.norm()       # .04 is the most of 40 seeds; on pixels values grow beyond 20, so no absolute bound
        assert all(p.grad is not None for p in net.parameters())


def test_frames_that_do_not_fit():
    net = PhyDNet(hidden=(32,), width=32)
    for x, message in ((torch.rand(1, 1, 10, 8), r"\(1, 1, 10, 8\)"), (torch.rand(1, 2, 8, 8), r"\(1, 2, 8, 8\)")):
        with pytest.raises(ValueError, match=message):
            net.step(x)
    clip = torch.rand(2, 2, 1, 8, 8)
    with torch.no_grad():
        for frames in (clip[:1, 0], torch.rand(2, 1, 16, 16)):  # a batch of one would be broadcast
            with pytest.raises(ValueError, match=r"a state of .* does not go with frames that are encoded to \(2, 32, 2, 2\)"):
                net.step(clip[:, 0], net.step(frames).state)
        for other in (PhyDNet(hidden=(48, 32), width=32), PhyDNet(hidden=(32,), width=32, branches="residual"), PhyDNet(hidden=(64,))):  # of fewer cells, only those would be run
            for one, two in ((net, other), (other, net)):
                with pytest.raises(ValueError, match="does not go with frames"):
                    one.step(clip[:, 0], two.step(clip[:, 0]).state)
    for model in (net, PixelPhysics(1)):
        for x, m, truth, message in (
                (clip, 0, None, "frames_out=0"), (clip, 2.5, None, r"frames_out=2\.5"), (clip[:, :0], 2, None, r"\(2, 0, 1, 8, 8\)"), (clip[0], 2, None, r"\(2, 1, 8, 8\)"), (clip.repeat(1, 1, 3, 1, 1), 2, None, r"\(2, 2, 3, 8, 8\)"),
                (clip, 2, clip[:1], r"truth of \(1, 2, 1, 8, 8\)"), (clip, 2, clip[..., :4], r"truth of \(2, 2, 1, 8, 4\)"), (clip, 4, clip, r"expected \(2, 4, 1, 8, 8\)"), (clip, 2, clip[0], r"truth of \(2, 1, 8, 8\)")):
            with pytest.raises(ValueError, match=message):
                model(x, m, truth)


@pytest.mark.parametrize("given, message", [
    ({"state": None}, "expected a state dict, name -> tensor, got None"),
    ({"state": "phydnet.pth"}, "got 'phydnet.pth'; read a file with torch.load"),
    ({"state": {"model": {}, "epoch": 3}}, "but 'model' is dict; of a whole checkpoint pass the state dict that it holds"),
    ({"convcell": {"hiden_dims": [64]}}, "convcell has no argument 'hiden_dims': expected input_shape, input_dim, hidden_dims"),
    ({"phycell": {"kernel_size": 7}}, "kernel_size=7: expected whole numbers in a list or tuple, all the same"),
    ({"phycell": {"kernel_size": (7, 5)}}, "all the same"),
    ({"phycell": {"F_hidden_dims": []}}, "F_hidden_dims=.*: expected whole numbers"),
    ({"convcell": {"hidden_dims": 64}}, "hidden_dims=64: expected whole numbers in a list or tuple$")])
def test_what_the_official_cells_do_not_take_is_named(given, message):
    state = given.pop("state", PhyDNet().to_official())
    with pytest.raises(ValueError, match=message):
        PhyDNet.from_official(state, **given)
