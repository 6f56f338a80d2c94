"""SwinLSTM against the authors' numbers, the cell and its block by brute force, and input that should be refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from paperlib.core import layers
from paperlib.core.layers import WindowAttention
from paperlib.core.video import cost, frames_at
from paperlib.sequence import swinlstm
from paperlib.sequence.swinlstm import (
    PAPER,
    Cell,
    ConvMixer,
    PatchEmbed,
    PatchExpanding,
    PatchMerging,
    PatchReadout,
    SwinBlock,
    SwinLSTM,
    SwinMixer,
    our_name,
)


def golden(shared, case):
    path = shared / "golden" / f"swinlstm__{case}.npz"
    with np.load(path) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    return {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}, arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


CELLS = {"b_tiny": ("0",), "d_tiny": ("_down0", "_down1", "_up0", "_up1")}


@pytest.mark.parametrize("case", CELLS)
def test_frames_and_states_of_the_official_code(shared, case):
    state, arrays, card = golden(shared, case)
    model = SwinLSTM.from_official(state, kind=card["config"]["kind"], **card["config"]["model"])
    carried, found = None, []
    with torch.no_grad():
        for t in range(arrays["input.x"].shape[1]):
            y, carried = model.step(arrays["input.x"][:, t], carried)
            found.append(y)
    assert (torch.stack(found, 1) - arrays["output.y"]).abs().max() <= card["suggested_atol"]["y"]
    for name, (h, c) in zip(CELLS[case], carried, strict=True):
        assert (h - arrays[f"output.h{name}_last"]).abs().max() <= card["suggested_atol"][f"h{name}_last"]
        assert (c - arrays[f"output.c{name}_last"]).abs().max() <= card["suggested_atol"][f"c{name}_last"]
    assert sum(p.numel() for p in model.parameters()) + sum(state[k].numel() for k in model.dead) == card["n_parameters"]


@pytest.mark.parametrize("case", CELLS)
def test_gradients_of_the_official_code_and_its_dead_weights(shared, case):
    state, arrays, card = golden(shared, case)
    model = SwinLSTM.from_official(state, kind=card["config"]["kind"], **card["config"]["model"]).double()
    carried, found = None, []
    for t in range(arrays["input.x"].shape[1]):
        y, carried = model.step(arrays["input.x"][:, t].double(), carried)
        found.append(y)
    (0.5 * torch.stack(found, 1).square().mean()).backward()
    ours = dict(model.named_parameters())
    for name, norm in card["grad"]["l2_norm"].items():
        if name in model.dead:
            assert norm == 0
        else:
            assert ours[our_name(name)].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-9)
    assert set(card["grad"]["no_gradient"]) == set(model.dead)


@pytest.mark.parametrize("case", CELLS)
def test_official_names_come_back(shared, case):
    state, _, card = golden(shared, case)
    model = SwinLSTM.from_official(state, kind=card["config"]["kind"], **card["config"]["model"])
    back = model.to_official()
    assert back.keys() == state.keys() and len(model.dead) > 1
    for name, value in state.items():
        assert back[name].shape == value.shape and back[name].dtype == value.dtype
        assert not back[name].any() if name in model.dead else torch.equal(back[name], value), name
    for options in ({"mixer": "conv"}, {"patch_size": 4}):
        with pytest.raises(ValueError, match="patches of 2 alone"):
            SwinLSTM(**{"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,)} | options).to_official()


def test_a_long_forecast_holds_only_the_frames_that_it_returns(held_between):
    net, clip = SwinLSTM(16, 2, 1, 8, (2,), None, (2,)).eval(), torch.rand(2, 3, 1, 16, 16)
    assert held_between(net, lambda: net(clip, 100), 10, 90) == 80 * clip[:, 0].nbytes


def test_parameters_of_both_kinds():
    with torch.device("meta"):
        small, deep = SwinLSTM(), SwinLSTM(depths=(2, 6), depths_up=(6, 2), num_heads=(4, 8))
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(small) + 197_376, count(deep) + 1_346_560) == (2_778_417, 20_191_969)
    assert [len(c.mixer.blocks) for c in deep.up] == [2, 6] and [c.mixer.blocks[0].attn.num_heads for c in deep.up] == [8, 4]


class OneStep(nn.Module):
    def __init__(self, model, kernel):
        super().__init__()
        self.model = model
        for m in model.modules():
            if isinstance(m, WindowAttention):
                m.kernel = kernel

    def forward(self, x):
        return self.model.step(x)[0]


@pytest.mark.parametrize(("options", "gmacs"), [({}, 2.67), ({"depths": (2, 6), "depths_up": (6, 2), "num_heads": (4, 8)}, 3.66)])
def test_multiply_adds_of_a_step(options, gmacs):
    """As the released code's, whatever kernel the network takes: torch's counter misses the products that the one for CPUs makes in place, a hundredth."""
    model = SwinLSTM(**options)
    assert cost(OneStep(model, "explicit"), torch.zeros(1, 1, 64, 64), rounds=0).gmacs == pytest.approx(gmacs, abs=0.005)
    assert cost(OneStep(model, "auto"), torch.zeros(1, 1, 64, 64), rounds=0).gmacs == pytest.approx(gmacs, abs=0.005)
    assert {m.kernel for m in model.modules() if isinstance(m, WindowAttention)} == {"auto"}


def test_the_fusing_block_written_out():
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 4, fuse=True).double()
    x, h = torch.randn(2, 2, 4, 4, 8, dtype=torch.float64)
    both = torch.cat([block.norm1(x), block.norm1(h)], -1) @ block.reduce.weight.T + block.reduce.bias
    q, k, v = (both.flatten(1, 2) @ block.attn.qkv.weight.T + block.attn.qkv.bias).view(2, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    attended = ((q @ k.mT) / 2 + block.attn.bias()).softmax(-1) @ v
    y = x + block.attn.proj(attended.transpose(1, 2).reshape(2, 4, 4, 8))
    assert torch.allclose(block(x, h), y + block.mlp(block.norm2(y)), atol=1e-10)


def in_one_node(block, x, other=None):
    """Return what a block gives while it is to be one node, and whether it was."""
    with layers.as_nodes([(block, tuple(x.shape[:3]))]):
        y = block(x, other)
    return y, "OneNode" in type(y.grad_fn).__name__


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(("side", "window", "shift"), [((8, 12), 4, 0), ((8, 12), 4, 2), ((4, 4), 4, 0), ((6, 3), 3, 1), ((2, 2), 1, 0)])
def test_a_block_as_one_node_is_the_block_written_out(fuse, side, window, shift):
    torch.manual_seed(0)
    block = SwinBlock(12, 3, window, shift, fuse=fuse).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, 0.1, 0.3)                                  # norms and offsets that are not 1 and 0
    x, h, weight = torch.randn(3, 2, *side, 12, dtype=torch.float64)
    of, found = [x.requires_grad_(), *([h.requires_grad_()] if fuse else []), *block.parameters()], []
    for kernel in ("auto", "explicit"):
        block.attn.kernel = kernel
        y, one = in_one_node(block, x.mT.contiguous().mT, h if fuse else None)
        assert one == (kernel == "auto")
        found.append([y, *torch.autograd.grad((y * weight).sum(), of)])
    for one, many in zip(*found, strict=True):
        assert one.shape == many.shape and (one - many).abs().max() <= 1e-12 * (1 + many.abs().max())


def test_gradients_through_nodes_asked_for_in_parts_and_twice():
    torch.manual_seed(0)
    block, frozen = SwinBlock(8, 2, 4, fuse=True), ("mlp.fc1.weight", "norm1.bias", "attn.relative_position_bias_table")
    for name, p in block.named_parameters():
        p.requires_grad_(name not in frozen)
    x, h = torch.randn(2, 1, 4, 4, 8)
    x.requires_grad_()
    with layers.as_nodes([(block, (1, 4, 4))]):
        y = block(block(x, h), h)
        block(y, h)                                                          # a step that nothing depends on
    loss = y.square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)               # before the weights are asked for
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    assert torch.equal(x.grad, first) and once.keys() == {n for n, _ in block.named_parameters()} - set(frozen)
    loss.backward()
    assert all(torch.equal(p.grad, 2 * once[name]) for name, p in block.named_parameters() if name in once)


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def exchange(block):
    block.mlp.fc1.__class__ = Shifted


def patch(block):
    block.mlp.forward = lambda x, f=block.mlp.forward: 3 * f(x)


def listen(block):
    block.attn.register_forward_hook(lambda module, args, y: y + 1)


def leave_out(block):
    block.drop_path = swinlstm.DropPath(0.5).train()


def lose_a_bias(block):
    block.norm2 = nn.LayerNorm(8, bias=False)


def halve(block):
    block.attn.relative_position_bias_table.data = block.attn.relative_position_bias_table.data.half()


@pytest.mark.parametrize("change", [exchange, patch, listen, leave_out, lose_a_bias, halve, lambda block: nn.utils.parametrizations.weight_norm(block.attn.qkv)])
def test_what_one_node_could_not_follow_is_left_to_autograd(change):
    torch.manual_seed(0)
    block, x = SwinBlock(8, 2, 4), torch.randn(2, 8, 8, 8)
    assert in_one_node(block, x)[1]
    change(block)
    torch.manual_seed(1)
    found, one = in_one_node(block, x)
    torch.manual_seed(1)
    y = x + block.drop_path(block.attn(block.norm1(x)))
    assert not one and torch.allclose(found, y + block.drop_path(block.mlp(block.norm2(y))), atol=1e-6)


def test_one_node_is_for_small_maps_in_training_and_for_one_clip():
    block, x = SwinBlock(8, 2, 4), torch.randn(2, 8, 8, 8)
    assert in_one_node(block.eval(), x)[1] and not in_one_node(block, torch.randn(1, 256, 256, 8))[1] and not in_one_node(block.bfloat16(), x.bfloat16())[1]
    block.float()
    with torch.no_grad():
        assert in_one_node(block, x)[0].grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert not in_one_node(block, x)[1]
    with pytest.raises(RuntimeError, match="expanded size|shape"), layers.as_nodes([(block, (2, 8, 8))]):
        block(torch.randn(2, 8, 8, 4))
    assert block.plan is None and "OneNode" not in type(block(x).grad_fn).__name__


def test_training_sees_its_blocks_as_nodes_and_leaves_none_behind(monkeypatch):
    net, taken, apply = SwinLSTM(16, 2, 1, 8, (2,), None, (2,), drop_path_rate=0.0), [], layers._OneNode.apply
    monkeypatch.setattr(layers._OneNode, "apply", lambda *args: taken.append(torch.is_grad_enabled()) or apply(*args))
    clips = torch.rand(2, 7, 1, 16, 16)
    net(clips, 2).sum().backward()
    assert not taken
    swinlstm.train(net, lambda step, rank=0, world=1: clips, replace(PAPER.presets["smoke"], steps=2), 0, torch.device("cpu"))
    assert taken == [True] * (2 * 2 * 6) and not net.soon and all(b.plan is None for b in net.down[0].mixer.blocks)


@pytest.mark.parametrize("options", [{}, {"mixer": "conv"}, {"depths": (2, 1), "depths_up": (1, 2), "num_heads": (2, 2)}])
@pytest.mark.parametrize("all_steps", [False, True])
@pytest.mark.parametrize(("given", "frames_out", "forced"), [(3, 4, False), (3, 4, True), (1, 1, False), (1, 1, True), (1, 3, True), (4, 1, False)])
def test_frames_cut_and_painted_at_once_are_those_of_single_steps(options, all_steps, given, frames_out, forced):
    torch.manual_seed(0)
    net, clips = SwinLSTM(**{"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "drop_path_rate": 0.0} | options).double(), torch.rand(2, 8, 1, 16, 16).double()
    x, truth = clips[:, :given].clone().requires_grad_(), clips[:, given:given + frames_out] if forced else None
    found = [net(x, frames_out, truth, all_steps)]
    with swinlstm.sooner(net):
        found.append(net(x, frames_out, truth, all_steps))
        with torch.no_grad():
            assert torch.allclose(net(x, frames_out, truth, all_steps), found[0], atol=1e-12)
    one, many = ([y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])] for y in found)
    for a, b in zip(one, many, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("soon", [False, True])
def test_what_does_not_go_with_the_frames_is_refused_sooner_as_well(soon):
    net, x = SwinLSTM(16, 2, 1, 8, (2,), None, (2,)), torch.rand(2, 2, 1, 16, 16)
    net.soon = soon
    for frames_out, truth, message in ((2, x.double(), "frames are torch.float64"), (2, x[:, :0], r"truth \(2, 0, 1, 16, 16\)"), (2, x[:1], r"truth \(1, 2, 1, 16, 16\)"), (0, None, "frames_out=0")):
        with pytest.raises(ValueError, match=message):
            net(x, frames_out, truth)
    assert all(b.plan is None and b.attn._once is None for b in net.down[0].mixer.blocks)


def test_which_blocks_shift_and_which_see_what():
    mixer = SwinMixer(8, (8, 8), 4, 2, 4, [0.0] * 4)
    assert [b.shift for b in mixer.blocks] == [0, 2, 0, 2] and [b.reduce is not None for b in mixer.blocks] == [True, False, True, False]
    whole = SwinMixer(8, (4, 4), 2, 2, 4, [0.0] * 2)
    assert [b.shift for b in whole.blocks] == [0, 0] and SwinMixer(8, (2, 2), 1, 2, 4, [0.0]).blocks[0].attn.window_size == 2
    x, h = torch.randn(2, 1, 8, 8, 8)
    seen = []
    for b in mixer.blocks:
        b.forward = lambda y, other=None, f=b.forward: (seen.append(other), f(y, other))[1]
    mixer(x, h)
    assert seen[0] is h and seen[1] is None and seen[2] is x and seen[3] is None


def test_the_cell_has_one_gate():
    cell, (x, h, c) = Cell(lambda x, h: x - h), torch.randn(3, 1, 2, 2, 3, dtype=torch.float64)
    gate = (x - h).sigmoid()
    new = gate * c + gate * (x - h).tanh()
    assert torch.allclose(cell(x, (h, c))[1], new, atol=1e-14) and torch.allclose(cell(x, (h, c))[0], gate * new.tanh(), atol=1e-14)


def test_merging_and_expanding_order():
    x = torch.arange(64.0).view(1, 4, 4, 4)
    merge = PatchMerging(4)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()
    assert merge(x)[0, 0, 1].tolist() == [*x[0, 0, 2].tolist(), *x[0, 1, 2].tolist(), *x[0, 0, 3].tolist(), *x[0, 1, 3].tolist()]
    grow = PatchExpanding(4)
    grow.norm, grow.expand = nn.Identity(), nn.Linear(4, 8, bias=False)
    y = grow.expand(x)
    assert torch.equal(grow(x)[0, 2:4, 4:6].reshape(8), y[0, 1, 2])


@pytest.mark.parametrize("options", [{"patch_size": 4}, {"patch_size": 1, "mixer": "conv"}, {"depths": (2, 1), "depths_up": (1, 2), "num_heads": (2, 2)}, {"in_chans": 2, "img_size": (16, 8), "window_size": 2}])
def test_patches_sizes_and_mixers_learn(options):
    torch.manual_seed(0)
    net = SwinLSTM(**{"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "drop_path_rate": 0.0} | options)
    size = options.get("img_size", (16, 16))
    clip = torch.rand(2, 5, options.get("in_chans", 1), *size)
    optimizer, losses = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(6):
        loss = (net(clip[:, :3], 2, all_steps=True) - clip[:, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is not None for p in net.parameters())


def test_carried_states_are_all_there_is():
    net, clip = SwinLSTM(16, 2, 1, 8, (2,), None, (2,)).eval(), torch.rand(1, 6, 1, 16, 16)
    with torch.no_grad():
        whole = net(clip, 1, all_steps=True)
        _, state = [net.step(clip[:, t], s) for s in [None] for t in [0]][0]
        for t in range(1, 6):
            y, state = net.step(clip[:, t], state)
        assert torch.allclose(whole[:, -1], y, atol=1e-6)
        assert torch.allclose(net(clip[:, :3], 3)[:, 1], net(torch.cat([clip[:, :3], net(clip[:, :3], 1)], 1), 1)[:, 0], atol=1e-6)


def test_files_of_another_network(shared):
    state, _, card = golden(shared, "b_tiny")
    config = card["config"]["model"]
    for kind, change, message in (("D", {}, "kind='B'"), ("C", {}, "kind='C'"), ("B", {"depths": [3]}, "has 'down.0.mixer.blocks.3"), ("B", {"embed_dim": 8}, "check embed_dim")):
        with pytest.raises(ValueError, match=message):
            SwinLSTM.from_official(state, kind=kind, **config | change)
    state.pop("ST.PatchInflated.ConvT.bias")
    with pytest.raises(ValueError, match=r"lacks 'readout\.bias'"):
        SwinLSTM.from_official(state, kind="B", **config)


@pytest.mark.parametrize(("args", "message"), [({"img_size": 30, "patch_size": 4}, "30×30"), ({"mixer": "mlp"}, "mlp"), ({"depths": (2, 2), "num_heads": (2, 2)}, "way up"), ({"num_heads": (2, 2)}, "lists of one length"),
                                               ({"img_size": 20, "patch_size": 2}, "10×10 does not divide into windows of 4"), ({"num_heads": (5,)}, "no multiple of num_heads=5"), ({"window_size": 0}, "window_size=0"),
                                               ({"embed_dim": 0}, "embed_dim=0"), ({"in_chans": 0}, "in_chans=0"), ({"depths": (0,), "mixer": "conv"}, r"depths=\(0,\)"), ({"img_size": 0}, "0×0"),
                                               ({"img_size": 16.0}, r"img_size=\(16\.0"), ({"img_size": (16, 16, 16)}, r"img_size=\(16, 16, 16\)"), ({"img_size": (16,)}, r"img_size=\(16,\)"), ({"patch_size": 2.0}, r"patch_size=2\.0"), ({"depths": 2}, "depths=2"), ({"num_heads": (2.0,)}, r"num_heads=\(2\.0,\)")])
def test_bad_networks_are_refused_by_name(args, message):
    with pytest.raises(ValueError, match=message):
        SwinLSTM(**args)


@pytest.mark.parametrize(("change", "message"), [({"data": "planets"}, "planets"), ({"patch_size": 0}, "patch_size=0"), ({"drop_path": 1.0}, "drop_path=1.0"), ({"size": 30}, "30×30"), ({"mixer": "mlp"}, "mlp"), ({"clip_norm": -1.0}, "clip_norm=-1.0"), ({"clip_norm": float("nan")}, "clip_norm=nan"),
                                                ({"lengths": (6, 1)}, r"lengths=\(6, 1\)"), ({"whole": -1}, "whole=-1")])
def test_bad_presets_are_refused_before_any_work(change, message, monkeypatch):
    monkeypatch.setattr(swinlstm, "train", lambda *a: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=message):
        swinlstm.experiment(replace(PAPER.presets["small"], **change), 0, torch.device("cpu"))


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("channels", "rows", "columns"), [(1, 1, 3), (3, 4, 2)])
def test_patches_by_matrices_are_the_convolutions(patch, channels, rows, columns):
    torch.manual_seed(0)
    into, out = PatchEmbed(channels, 8, patch).double(), PatchReadout(8, channels, patch).double()
    x, tokens = torch.rand(2, channels, rows * patch, columns * patch).double().requires_grad_(), torch.randn(2, rows, columns, 8).double().requires_grad_()
    pairs = ((into(x), into.norm(into.proj(x).movedim(1, -1)), [x, *into.parameters()]), (out(tokens), nn.ConvTranspose2d.forward(out, tokens.movedim(-1, 1)), [tokens, *out.parameters()]))
    for ours, plain, of in pairs:
        weights = torch.randn_like(ours)
        assert ours.shape == plain.shape and torch.allclose(ours, plain, atol=1e-12)
        for a, b in zip(*(torch.autograd.grad((y * weights).sum(), of) for y in (ours, plain))):
            assert torch.allclose(a, b, atol=1e-11)


def test_a_side_may_be_of_numpy():
    assert SwinLSTM(np.int64(16), np.int64(2), 1, 8, (2,), None, (2,)).size == (16, 16)


def test_clips_that_do_not_fit():
    net = SwinLSTM(16, 2, 1, 8, (2,), None, (2,))
    for x, message in ((torch.rand(1, 0, 1, 16, 16), r"\(1, 0, 1, 16, 16\)"), (torch.rand(1, 1, 16, 16), r"\(1, 1, 16, 16\)"), (torch.rand(1, 2, 2, 16, 16), r"\(1, 2, 2, 16, 16\)")):
        with pytest.raises(ValueError, match=message):
            net(x, 2)
    frames, other = torch.rand(2, 1, 16, 16), SwinLSTM(8, 2, 1, 8, (2,), None, (2,))
    with torch.no_grad():
        for state in (net.step(frames[:1])[1], other.step(frames[..., :8, :8])[1], ()):  # a batch of one would be broadcast
            with pytest.raises(ValueError, match="does not go with the frames"):
                net.step(frames, state)


def test_the_rival_mixer_has_about_as_many_parameters():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert 0.7 < count(ConvMixer(48, 5)) / count(SwinMixer(48, (16, 16), 4, 4, 4, [0.0] * 4)) < 1.3


def test_clipping_bounds_a_step_and_zero_leaves_it(monkeypatch):
    seen = []
    monkeypatch.setattr(swinlstm, "fit", lambda *a, **k: seen.append(k["clip_norm"]))
    net = SwinLSTM(16, 2, 1, 8, (2,), None, (2,))
    for clip_norm in (0.05, 0.0):
        swinlstm.train(net, None, replace(PAPER.presets["smoke"], clip_norm=clip_norm), 0, torch.device("cpu"))
    assert seen == [0.05, None]


def test_which_step_sees_how_much_of_a_clip():
    small = PAPER.presets["small"]
    assert [frames_at(small, s) for s in (0, 1499, 1500, 2999, 3000, 4199)] == [6, 6, 10, 10, 20, 20]
    assert 0.54 < sum(frames_at(small, s) - 1 for s in range(4200)) / (19 * 4200) < 0.56            # little more than half, as the page says
    assert {frames_at(replace(small, steps=1200), s) for s in range(1200)} == {20}                  # no more steps than see whole clips
    assert {frames_at(replace(small, lengths=()), s) for s in (0, 4199)} == {20} == {frames_at(PAPER.presets["paper"], 0)}
    assert frames_at(replace(small, lengths=(30,)), 0) == 20


def test_a_beginning_is_given_and_asked_in_the_share_of_a_clip(monkeypatch):
    preset, seen = replace(PAPER.presets["smoke"], frames_in=6, frames_out=3, steps=6, lengths=(3, 2), whole=2), []
    forward = SwinLSTM.forward
    monkeypatch.setattr(SwinLSTM, "forward", lambda self, x, frames_out, all_steps: seen.append((x.shape[1], frames_out)) or forward(self, x, frames_out, all_steps=all_steps))
    net, clips = SwinLSTM(16, 2, 1, 8, (2,), None, (2,)), torch.rand(2, 9, 1, 16, 16)
    history = swinlstm.train(net, lambda step, rank=0, world=1: clips, preset, 0, torch.device("cpu"))
    assert seen == [(2, 1)] * 2 + [(1, 1)] * 2 + [(6, 3)] * 2
    nets = SwinLSTM(16, 2, 1, 8, (2,), None, (2,), drop_path_rate=0.0), SwinLSTM(16, 2, 1, 8, (2,), None, (2,), drop_path_rate=0.0)
    nets[1].load_state_dict(nets[0].state_dict())
    first = swinlstm.train(nets[0], lambda step, rank=0, world=1: clips, replace(preset, steps=1, lengths=(9,), whole=0), 0, torch.device("cpu")).loss[0]
    assert first == pytest.approx((nets[1](clips[:, :6], 3, all_steps=True) - clips[:, 1:]).square().mean().item(), rel=1e-5) and len(history.loss) == 6


def test_a_clip_makes_each_bias_once_and_the_next_clip_makes_it_anew(monkeypatch):
    net, made = SwinLSTM(16, 2, 1, 8, (2,), None, (2,)), []
    bias = swinlstm.WindowAttention.bias
    monkeypatch.setattr(swinlstm.WindowAttention, "bias", lambda self: made.append(1) or bias(self))
    clips = torch.rand(2, 4, 1, 16, 16)
    first = net(clips, 3)
    assert len(made) == 2                                       # one for each block, of six steps
    with torch.no_grad():
        for block in net.down[0].mixer.blocks:
            block.attn.relative_position_bias_table += torch.randn_like(block.attn.relative_position_bias_table)
    with pytest.raises(ValueError, match="frames_out=0"):
        net(clips, 0)                                           # nothing is left open by a refusal
    net.step(clips[:, 0])
    assert len(made) == 4 and not torch.equal(net(clips, 3), first) and len(made) == 6


@pytest.mark.parametrize("state", [None, [1], "swinlstm.pth", {"state_dict": {}}])
def test_what_is_no_state_dict_is_named(state):
    with pytest.raises(ValueError, match="expected a state dict, name -> tensor"):
        SwinLSTM.from_official(state)
