"""SimVP against the authors' numbers, its variants and translators, any number of frames, and input that should be refused."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paperlib.core.video import SETS, cost
from paperlib.sequence import simvp
from paperlib.sequence.simvp import PAPER, ConvBlock, Inception, LSTMTranslator, SimVP, mixtures, our_name, split_conv


def golden(shared):
    path = shared / "golden" / "simvp__tiny.npz"
    with np.load(path) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    return {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}, arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_outputs_of_the_official_code(shared):
    state, arrays, card = golden(shared)
    model, x = SimVP.from_official(state, **card["config"]["model"]), arrays["input.x"]
    assert not model.training and sum(p.numel() for p in model.parameters()) == card["n_parameters"]
    with torch.no_grad():
        latent, _ = model.encoder(x.flatten(0, 1))
        hidden = model.translator(latent.unflatten(0, x.shape[:2]))
        for name, found in (("embed", latent), ("hid", hidden), ("y", model(x))):
            assert (found - arrays[f"output.{name}"]).abs().max() <= card["suggested_atol"][name]


def test_official_names_come_back(shared):
    state, _, card = golden(shared)
    back = SimVP.from_official(state, **card["config"]["model"]).to_official()
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    torch.manual_seed(0)
    other, x = SimVP((2, 1, 8, 8), 8, 16, 2, 2, skip="add", variant="openstl").eval(), torch.rand(1, 2, 1, 8, 8)
    state = other.to_official()
    assert "dec.dec.0.conv.conv.0.weight" in state
    with torch.no_grad():
        assert torch.equal(SimVP.from_official(state, (2, 1, 8, 8), 8, 16, 2, 2, variant="openstl")(x), other(x))
    for options in ({"skip": "none"}, {"norm": False}, {"translator": "rnn"}, {"variant": "openstl", "skip": "concat"}):
        with pytest.raises(ValueError, match="no official names"):
            SimVP((2, 1, 8, 8), 8, 16, 2, 2, **options).to_official()


def test_gradients_of_the_official_code(shared):
    state, arrays, card = golden(shared)
    model = SimVP.from_official(state, **card["config"]["model"]).double()
    (0.5 * model(arrays["input.x"].double()).square().mean()).backward()
    ours = dict(model.named_parameters())
    for name, norm in card["grad"]["l2_norm"].items():
        assert ours[our_name(name)].grad.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("shape", "sizes", "count", "keys"), [
    ((10, 1, 64, 64), (64, 256, 4, 8), 15_778_433, 322), ((10, 1, 64, 64), (64, 512, 4, 8), 57_761_409, 322), ((10, 1, 64, 64), (64, 512, 4, 3), 22_307_969, 142),
    ((4, 2, 32, 32), (32, 256, 2, 8), 13_776_386, 306), ((10, 1, 128, 128), (64, 256, 2, 4), 8_526_721, 162), ((4, 3, 128, 128), (64, 512, 4, 6), 40_971_651, 250), ((10, 1, 64, 64), (16, 64, 4, 3), 436_065, 142)])
def test_parameters_of_the_released_settings(shape, sizes, count, keys):
    with torch.device("meta"):
        model = SimVP(shape, *sizes)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == (count, keys)


def test_multiply_adds_of_a_clip():
    with torch.device("meta"):
        for sizes, gmacs in (((64, 256, 4, 8), 8.69), ((64, 512, 4, 8), 19.43)):
            found = cost(SimVP((10, 1, 64, 64), *sizes), torch.empty(1, 10, 1, 64, 64), rounds=0)
            assert found.gmacs == pytest.approx(gmacs, abs=0.006)


def test_an_inception_written_out():
    torch.manual_seed(0)
    net, x = Inception(6, 8, 16).double(), torch.randn(2, 6, 9, 7, dtype=torch.float64)
    z = F.conv2d(x, net.reduce.weight, net.reduce.bias)
    wanted = sum(F.leaky_relu(F.group_norm(F.conv2d(z, b["conv"].weight, b["conv"].bias, padding=k // 2, groups=8), 8, b["norm"].weight, b["norm"].bias), 0.2)
                 for k, b in zip((3, 5, 7, 11), net.branches))
    assert torch.allclose(net(x), wanted, atol=1e-12) and torch.allclose(net(x[:, :2], x[:, 2:]), wanted, atol=1e-12)


def test_groups_that_do_not_divide_the_hidden_channels_give_one_group_of_convolution_and_of_norm():
    torch.manual_seed(0)
    net, x = Inception(6, 12, 15).double(), torch.randn(2, 6, 9, 7, dtype=torch.float64)  # 15 channels: into 8 groups they would not go either
    z = net.reduce(x)
    wanted = sum(F.leaky_relu(F.group_norm(F.conv2d(z, b["conv"].weight, b["conv"].bias, padding=k // 2), 1, b["norm"].weight, b["norm"].bias), 0.2) for k, b in zip((3, 5, 7, 11), net.branches))
    assert torch.allclose(net(x), wanted, atol=1e-12)
    with pytest.raises(ValueError, match="15 channels do not divide into 8 groups"):
        Inception(6, 16, 15)


def test_a_variant_has_its_own_skip_where_none_is_asked_for():
    for variant, skip in (("official", "concat"), ("openstl", "add")):
        net = SimVP((2, 1, 8, 8), 8, 16, 2, 2, variant=variant)
        assert net.decoder.skip == skip and net.to_official()
    with torch.device("meta"):
        count = sum(p.numel() for p in SimVP((10, 1, 64, 64), 64, 512, 4, 8, variant="openstl").parameters())
    assert count == 57_761_409 + 2 * 192 * (64 * 9 + 1) - 64 * 64 * 9  # the authors' net, two blocks of four times the outputs, a sum for the concatenation; OpenSTL's table rounds it to 58.0 M


def test_the_openstl_variant_differs_from_the_authors_in_its_blocks_alone():
    torch.manual_seed(0)
    ours = SimVP((2, 1, 16, 16), 32, 64, 2, 2, skip="add", variant="openstl")
    for part, layers in (("encoder", ours.encoder.layers), ("decoder", ours.decoder.layers)):
        for layer in layers:
            conv = layer.conv[0] if isinstance(layer.conv, torch.nn.Sequential) else layer.conv
            assert isinstance(layer.activation, torch.nn.SiLU) and not conv.bias.any()
            assert conv.weight.numel() < 1000 or conv.weight.std().item() == pytest.approx(0.02, rel=0.1), part
    # default initial weights: even over plus and minus one over the root of the fan-in, so of that times a third's root in deviation; biases alike
    for conv in (ours.decoder.readout, ours.translator.encoder[0].reduce, ours.translator.decoder[1].branches[3]["conv"]):
        limit = conv.weight[0].numel() ** -0.5
        assert 0.8 * limit < conv.weight.abs().max() <= limit and conv.bias.any()
    inception, x = ours.translator.encoder[1].double(), torch.randn(1, 64, 5, 5, dtype=torch.float64)
    z = F.conv2d(x, inception.reduce.weight, inception.reduce.bias)
    wanted = sum(F.leaky_relu(F.group_norm(F.conv2d(z, b["conv"].weight, b["conv"].bias, padding=k // 2, groups=8), 8, b["norm"].weight, b["norm"].bias), 0.2)
                 for k, b in zip((3, 5, 7, 11), inception.branches))
    assert torch.allclose(inception(x), wanted, atol=1e-12)


def test_blocks_and_their_sizes():
    x = torch.rand(1, 3, 7, 9)
    for stride, up, size in ((1, None, (7, 9)), (2, None, (4, 5)), (2, "transposed", (14, 18)), (1, "transposed", (7, 9)), (2, "shuffle", (14, 18))):
        assert ConvBlock(3, 4, stride, up)(x).shape[2:] == size
    conv = torch.nn.Conv2d(6, 5, 3, padding=1).double()
    parts = torch.randn(3, 2, 2, 8, 8, dtype=torch.float64).unbind(0)
    assert torch.allclose(split_conv(conv, *parts), conv(torch.cat(parts, 1)), atol=1e-12)


@pytest.mark.parametrize("translator", ["cnn", "rnn", "attention"])
@pytest.mark.parametrize("variant", ["official", "openstl"])
def test_translators_and_variants_learn(translator, variant):
    torch.manual_seed(0)
    model = SimVP((4, 1, 20, 12), 8, 16, 2, 2, translator=translator, variant=variant, skip="add" if variant == "openstl" else "concat")
    clip = torch.rand(2, 8, 1, 20, 12)
    assert model(clip[:, :4], 6).shape == (2, 6, 1, 20, 12)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = F.mse_loss(model(clip[:, :4]), clip[:, 4:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is not None for p in model.parameters())
    assert model(clip[:0, :4]).shape == (0, 4, 1, 20, 12)  # a batch of none
    with torch.no_grad():
        assert model(clip[:0, :4], 5).shape == (0, 5, 1, 20, 12)


def test_the_recurrent_translator_reads_and_then_runs_on():
    torch.manual_seed(0)
    short, long = LSTMTranslator(3, 4, 5, 2).double(), LSTMTranslator(6, 4, 5, 2).double()
    long.load_state_dict(short.state_dict())
    z = torch.randn(1, 3, 4, 4, 4, dtype=torch.float64)
    assert torch.allclose(short(z), long(z)[:, :3]) and long(z).shape[1] == 6


class Alive(TorchDispatchMode):
    """Follows which tensors live, operation by operation; ``peak`` is the most bytes at a time."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made = [r for r in self.made if r() is not None] + [weakref.ref(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.peak = max(self.peak, sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for r in self.made if (t := r()) is not None}.values()))
        return out


@pytest.mark.parametrize("translator", ["cnn", "rnn"])
def test_a_hundred_frames_need_no_more_memory_than_their_own(translator):
    """Latents and skips of a block are eight times its frames: a recursion that kept them would need 800 frames' memory more, or one more frame's state 99 times."""
    model = SimVP((4, 1, 16, 16), 8, 16, 2, 2, translator=translator).eval()
    x, frame, peaks = torch.rand(1, 4, 1, 16, 16), 16 * 16 * 4, {}
    with torch.no_grad():
        long = model(x, 100)
        assert long.shape[1] == 100 and torch.allclose(long[:, 4:8], model(long[:, :4]), atol=1e-5)
        for n in (4, 100):
            with Alive() as found:
                model(x, n)
            peaks[n] = found.peak
    assert peaks[4] > 8 * 4 * frame  # latents are seen
    assert peaks[100] <= peaks[4] + 2 * 100 * frame  # the frames, and once more while they are put together


def test_early_and_late_parts_are_mixed():
    early, late = ({k: torch.full_like(v, n) for k, v in SimVP((2, 1, 8, 8), 8, 8, 2, 1).state_dict().items()} for n in (0.0, 1.0))
    mixed = mixtures(early, late)
    assert list(mixed) == ["EEE", "EEL", "ELE", "ELL", "LEE", "LEL", "LLE", "LLL"]
    for name, state in mixed.items():
        for key, value in state.items():
            assert value.unique().tolist() == [float(name[simvp.PARTS.index(key.split(".")[0])] == "L")]


@pytest.mark.parametrize(("change", "message"), [
    (lambda s, c: s.pop("dec.readout.bias"), "lacks 'decoder.readout.bias'"), (lambda s, c: s.update(head=torch.zeros(1)), "has 'head'"), (lambda s, c: c.update(hid_T=64), "check shape_in, hid_S, hid_T"),
    (lambda s, c: c.update(N_T=3), r"lacks 'translator\.decoder\.2"), (lambda s, c: c.update(variant="openstl"), "authors variant"),
    (lambda s, c: s.update({"dec.dec.0.conv.conv.0.weight": torch.zeros(1)}), "OpenSTL variant"), (lambda s, c: s.clear(), "no official name among 0:"),
    (lambda s, c: (s.clear(), c.update(variant="openstl")), "no official name among 0:"), (lambda s, c: c.update(incep_ker=3), "kernels=3"),
    (lambda s, c: [s.update({f"module.{k}": s.pop(k)}) for k in list(s)], r"no official name among 90, the first is 'module\.")])
def test_files_of_another_network(shared, change, message):
    state, _, card = golden(shared)
    config = dict(card["config"]["model"])
    change(state, config)
    with pytest.raises(ValueError, match=message):
        SimVP.from_official(state, **config)


@pytest.mark.parametrize(("args", "message"), [
    ({"skip": "sum"}, "skip='sum'"), ({"translator": "gru"}, "gru"), ({"variant": "mine"}, "mine"), ({"hid_S": 0}, "hid_S=0"), ({"kernels": (4,)}, r"kernels=\(4,\)"), ({"kernels": ()}, r"kernels=\(\)"),
    ({"kernels": 3}, "kernels=3"), ({"kernels": (3, 5.0)}, r"kernels=\(3, 5\.0\)"), ({"shape_in": (1, 64, 64)}, r"shape_in=\(1, 64, 64\): expected four"), ({"shape_in": 64}, "shape_in=64"), ({"shape_in": (0, 1, 64, 64)}, r"shape_in=\(0"),
    ({"hid_T": 2.5}, r"hid_T=2\.5"), ({"hid_T": 1}, "hid_T=1"), ({"hid_T": 18, "translator": "attention"}, "hid_T=18: expected a multiple of the 4 heads"), ({"N_S": 3, "variant": "openstl"}, "N_S=3"),
    ({"shape_in": (10, 1, 30, 64)}, "30×64"), ({"hid_S": 9}, "hid_S=9"), ({"hid_S": 10}, "100 channels do not divide into 8 groups")])
def test_bad_networks_are_refused_by_name(args, message):
    with pytest.raises(ValueError, match=message):
        SimVP(**args)


@pytest.mark.parametrize(("frames", "out", "message"), [(0, 4, r"got \(1, 0, 1, 8, 8\)"), (3, 4, r"got \(1, 3"), (4, 0, "frames_out=0"), (4, 2.5, r"frames_out=2\.5")])
def test_bad_clips_are_refused_by_name(frames, out, message):
    with pytest.raises(ValueError, match=message):
        SimVP((4, 1, 8, 8), 8, 8, 2, 1)(torch.zeros(1, frames, 1, 8, 8), out)


@pytest.mark.parametrize(("change", "message"), [
    ({"data": "planets"}, "planets"), ({"size": 30}, "30×30"), ({"steps": 0}, "steps=0"), ({"lr": 0.0}, "lr=0.0"), ({"early": 1.0}, "early=1.0"), ({"skip": "sum"}, "sum"), ({"frames_in": 3, "hid_S": 10}, "30 channels")])
def test_bad_presets_are_refused_before_any_work(change, message, monkeypatch):
    monkeypatch.setattr(simvp, "train", lambda *a: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=message):
        simvp.experiment(replace(PAPER.presets["small"], **change), 0, torch.device("cpu"))


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_here_says_where_it_may_be_had(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="was not found"):
        simvp.experiment(replace(PAPER.presets["small"], data=name, size=64), 0, torch.device("cpu"))


@pytest.mark.parametrize("state", [None, [1], "simvp.pth", {"state_dict": {}}])
def test_what_is_no_state_dict_is_named(state):
    with pytest.raises(ValueError, match="expected a state dict, name -> tensor"):
        SimVP.from_official(state, (10, 1, 64, 64))
