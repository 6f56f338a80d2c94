"""Masked autoencoders against the official implementation's numbers, files of every kind, masks, readers, and input that should be refused."""

import argparse
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import paperlib
from paperlib.core.data import Labelled, dataset
from paperlib.masked import mae, vit
from paperlib.masked.mae import (
    MAE,
    PAPER,
    VARIANTS,
    Canvases,
    Crops,
    block_mask,
    column_mask,
    experiment,
    explained,
    grid_mask,
    kept_patches,
    patchify,
    split_patches,
    unpatchify,
)
from paperlib.masked.vit import LARS, ViT, layer_scales, logistic_accuracy, parameter_groups, sincos_positions, warmup_cosine

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TINY = dict(img_size=16, patch_size=4, in_chans=3, embed_dim=24, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def read(shared, case):
    """The official code's weights, arrays and card of a case."""
    path = shared / "golden" / f"mae__{case}.npz"
    with np.load(path) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    return state, arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return MAE(**TINY).eval()


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("case", ["tiny_pixel_75", "ln_eps"])
def test_golden_outputs(shared, case):
    state, arrays, card = read(shared, case)
    model, ratio = MAE.from_official(state, **card["config"]["model"]), card["config"]["mask_ratio"]
    with torch.no_grad():
        out = model(arrays["input.imgs"], ratio, arrays["input.noise"])
    for name in ("latent", "mask", "pred", "loss"):
        assert (getattr(out, name) - arrays[f"output.{name}"]).abs().max() < card["suggested_atol"][name], name
    assert torch.equal(out.ids_restore, arrays["output.ids_restore"])
    whole, _ = model.reconstruct(arrays["input.imgs"], ratio, arrays["input.noise"], paste=False)
    assert (whole - arrays["output.reconstruction"]).abs().max() < card["suggested_atol"]["reconstruction"]


@pytest.mark.parametrize("case", ["tiny_pixel_75", "ln_eps"])
def test_golden_gradients(shared, case):
    state, arrays, card = read(shared, case)
    model = MAE.from_official(state, **card["config"]["model"]).double()
    (0.5 * model(arrays["input.imgs"].double(), card["config"]["mask_ratio"], arrays["input.noise"].double()).pred.square().mean()).backward()
    norms = {k: p.grad.norm().item() for k, p in model.named_parameters()}
    assert norms == pytest.approx({k: card["grad"]["l2_norm"][k] for k in norms}, rel=1e-4)
    assert card["grad"]["l2_norm"].keys() - norms.keys() <= {"pos_embed", "decoder_pos_embed"}


def test_golden_classifier(shared):
    state, arrays, card = read(shared, "vit_globalpool")
    model = ViT.from_official(state, **card["config"]["model"])
    with torch.no_grad():
        assert (model.features(arrays["input.imgs"]) - arrays["output.features"]).abs().max() < card["suggested_atol"]["features"]
        assert (model(arrays["input.imgs"]) - arrays["output.logits"]).abs().max() < card["suggested_atol"]["logits"]
    (0.5 * model.double()(arrays["input.imgs"].double()).square().mean()).backward()
    assert {k: p.grad.norm().item() for k, p in model.named_parameters()} == pytest.approx(card["grad"]["l2_norm"], rel=1e-4)


def test_golden_positions(shared):
    _, arrays, card = read(shared, "pos_embed")
    for (dim, grid, cls), name in zip(card["config"]["tables"], ("d48_g4_cls1", "d32_g3_cls0", "d16_g14_cls1")):
        assert (sincos_positions(dim, grid, cls) - arrays[f"output.{name}"]).abs().max() < card["suggested_atol"][name]


def test_golden_schedule_and_layer_decay(shared):
    _, arrays, card = read(shared, "schedule")
    a = card["config"]["args"]
    rates = [warmup_cosine(e, a["lr"], a["epochs"], a["warmup_epochs"], a["min_lr"]) for e in arrays["input.epoch"].tolist()]
    assert np.abs(np.array(rates) - arrays["output.lr"][:, 0].numpy()).max() < card["suggested_atol"]["lr"]
    config = {k: v for k, v in card["config"]["vit"].items()}
    model = ViT(**config)
    scales = layer_scales(model, card["config"]["layer_decay"])
    groups = parameter_groups(model, 1.0, card["config"]["weight_decay"], scales)
    found = {n: (g["lr"], g["weight_decay"]) for g in groups for n in g["names"]}
    assert found.keys() == set(card["tables"]["names"])
    for name, row in zip(card["tables"]["names"], arrays["output.vit_param_lr_scale_and_wd"].tolist()):
        assert found[name] == pytest.approx(row, abs=1e-10), name


@pytest.mark.parametrize("variant, trainable, keys, encoder", [("vit_base", 111_655_680, 254, 85_647_360), ("vit_large", 329_239_296, 398, 303_099_904),
                                                               ("vit_huge", 656_613_964, 494, 630_435_840)])
def test_parameter_counts_of_the_paper(variant, trainable, keys, encoder):
    with torch.device("meta"):
        model = MAE(**VARIANTS[variant])
    named = dict(model.named_parameters())
    assert sum(p.numel() for p in named.values()) == trainable and len(model.state_dict()) == keys
    assert sum(p.numel() for n, p in named.items() if not n.startswith(("decoder", "mask_token"))) == encoder


HUGGING_FACE = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")  # CI has it: settings.ini


def port(**changes):
    """Hugging Face's ViTMAE of the size of TINY, with weights of its own."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(1)
    return ViTMAEForPreTraining(ViTMAEConfig(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, decoder_hidden_size=16,
                                             decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64, mask_ratio=0.75, **changes)).eval()


@HUGGING_FACE
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_a_file_that_hugging_face_wrote_is_read(tmp_path, eps):
    """Its own names in its own file, decoder blocks and all; the epsilon of its settings, 1e-12 by default: with 1e-6 patches of little contrast come out otherwise."""
    theirs = port(**({} if eps is None else {"layer_norm_eps": eps}))
    for parameter in theirs.vit.parameters():                                   # small features: what epsilon is matters
        parameter.data.mul_(0.05)
    theirs.save_pretrained(tmp_path)
    x, noise, heads = torch.randn(2, 3, 16, 16), torch.rand(2, 16), {"num_heads": 2, "decoder_num_heads": 2}
    with torch.no_grad():
        wanted = theirs(x, noise=noise).logits
        readings = {"folder": MAE.from_huggingface(tmp_path), "file": MAE.from_huggingface(tmp_path / "model.safetensors", theirs.config),
                    "state": MAE.from_huggingface(theirs.state_dict(), **heads, **({} if eps is None else {"eps": eps}))}
        for name, net in readings.items():
            assert torch.allclose(net(x, 0.75, noise).pred, wanted, atol=2e-6), name
        other = MAE.from_huggingface(theirs.state_dict(), **heads, eps=1e-6 if eps is None else 1e-12)
        assert not torch.allclose(other(x, 0.75, noise).pred, wanted, atol=1e-3)


@HUGGING_FACE
def test_hugging_face_gives_the_same(tiny, tmp_path):
    from safetensors.torch import save_file
    from transformers import ViTMAEForPreTraining

    theirs = port(layer_norm_eps=1e-6)
    layout = "module" if any(".q_proj." in k for k in theirs.state_dict()) else "files"
    theirs.load_state_dict(tiny.to_huggingface(layout))
    theirs.save_pretrained(tmp_path)
    save_file({k: v.contiguous() for k, v in tiny.to_huggingface("files").items()}, tmp_path / "model.safetensors", {"format": "pt"})
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    for net in (theirs.eval(), ViTMAEForPreTraining.from_pretrained(tmp_path).eval()):
        with torch.no_grad():
            assert torch.allclose(net(x, noise=noise).logits, tiny(x, 0.75, noise).pred, atol=1e-5)
        again = MAE.from_huggingface(net.state_dict(), net.config)
        assert again.norm.eps == 1e-6
        assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in again.state_dict().items())


# ---------------------------------------------------------------- files


def test_files_survive_the_disk(tiny, tmp_path):
    torch.save({"model": tiny.to_official(), "epoch": 3, "args": argparse.Namespace(blr=1e-3)}, tmp_path / "full.pth")
    again = MAE.from_official(tmp_path / "full.pth", num_heads=2, decoder_num_heads=2)
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    assert torch.equal(again(x, 0.5, noise).pred, tiny(x, 0.5, noise).pred) and not again.training
    assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in MAE.from_huggingface(tiny.to_huggingface(), num_heads=2, decoder_num_heads=2).state_dict().items())


def test_a_file_with_an_encoder_only_fails_loudly_and_still_fine_tunes(tiny, tmp_path):
    state = {k: v for k, v in tiny.state_dict().items() if not k.startswith(("decoder", "mask_token"))}
    torch.save({"model": state}, tmp_path / "mae_pretrain_tiny.pth")
    with pytest.raises(ValueError, match="encoder only"):
        MAE.from_official(tmp_path / "mae_pretrain_tiny.pth", num_heads=2, decoder_num_heads=2)
    small = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        cls = ViT.from_official(tmp_path / "mae_pretrain_tiny.pth", global_pool=False, **small).features(x)
        mean = ViT.from_official(state, **small).features(x)
    assert torch.allclose(cls, tiny.features(x), atol=1e-5)                     # the same encoder, all patches seen
    assert not torch.allclose(cls, mean)


@pytest.mark.parametrize("change, message", [
    (lambda s: {}, "expected a state dict"),
    (lambda s: {"model": None}, "expected a state dict"),
    (lambda s: {"conv.weight": torch.ones(1)}, "not a file of MAE"),
    (lambda s: s | {"head.weight": torch.ones(5, 24)}, "fine-tuned classifier"),
    (lambda s: {k: v for k, v in s.items() if k != "decoder_norm.bias"}, "lacks decoder_norm.bias"),
    (lambda s: {k: v for k, v in s.items() if k != "blocks.0.norm1.bias"}, "lacks blocks.0.norm1.bias"),
    (lambda s: s | {"decoder_extra": torch.ones(1)}, "has decoder_extra"),
    (lambda s: s | {"decoder_pred.weight": torch.ones(3, 16)}, "decoder_pred.weight has shape"),
    (lambda s: {k: v for k, v in s.items() if k != "decoder_embed.weight"}, "lacks decoder_embed.weight"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith(("decoder", "mask"))} | {"decoder_pos_embed": s["decoder_pos_embed"]}, "encoder only"),
    (lambda s: s | {"pos_embed": torch.ones(24)}, r"pos_embed has shape \(24,\), expected 3 axes"),
    (lambda s: s | {"patch_embed.proj.weight": torch.ones(24, 48)}, r"patch_embed.proj.weight has shape \(24, 48\)"),
    (lambda s: s | {"blocks.0.mlp.fc1.weight": torch.ones(24)}, r"blocks.0.mlp.fc1.weight has shape \(24,\)"),
    (lambda s: s | {"blocks.extra.w": torch.ones(2)}, "has blocks.extra.w"),
])
def test_wrong_files_are_named(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        MAE.from_official(change(tiny.to_official()), num_heads=2, decoder_num_heads=2)


def test_missing_files_and_heads_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights"):
        MAE.from_official(tmp_path / "none.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page.pth: not a whole file of weights"):
        MAE.from_official(tmp_path / "page.pth")
    with pytest.raises(ValueError, match="num_heads is not in the file"):
        MAE.from_official(tiny.to_official())
    with pytest.raises(ValueError, match=r"has shape .* this configuration has"):
        MAE.from_official(tiny.to_official(), num_heads=2, decoder_num_heads=2, img_size=32)


@pytest.mark.parametrize("content", [b"", b"\x80\x02h\x05.", b"\x80\x02X\xff\xff", "half"], ids=["empty", "no such memo", "cut off", "half"])
def test_files_that_are_not_whole_are_named(tiny, tmp_path, content):
    path = tmp_path / "broken.pth"
    torch.save({"model": tiny.to_official()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"broken.pth: not a whole file of weights"):
        MAE.from_official(path)


@pytest.mark.parametrize("layout, part", [("files", "attention.attention.{}.weight"), ("module", "attention.{}_proj.weight")])
def test_a_missing_third_of_a_hugging_face_file_is_named(tiny, layout, part):
    state = tiny.to_huggingface(layout)
    for name in (("query", "key", "value") if layout == "files" else "qkv"):
        gone = next(k for k in state if k.endswith(part.format(name)))
        with pytest.raises(ValueError, match=f"lacks {gone}"):
            MAE.from_huggingface({k: v for k, v in state.items() if k != gone}, num_heads=2, decoder_num_heads=2)


def test_hugging_face_paths_and_settings_that_do_not_fit_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        MAE.from_huggingface("model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="not a whole file of safetensors"):
        MAE.from_huggingface(tmp_path)
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        MAE.from_huggingface(tiny.to_huggingface(), {"hidden_act": "relu"})
    with pytest.raises(ValueError, match="state dict of a ViTMAEForPreTraining, got a list"):
        MAE.from_huggingface([1])


def classifier_file(**config):
    torch.manual_seed(0)
    return ViT(16, 4, 3, 5, 24, 2, 2, **config).state_dict()


@pytest.mark.parametrize("change, config, message", [
    (lambda s: s, {"depth": 1}, "has blocks.1.attn.proj.bias and 11 more keys"),
    (lambda s: s | {"blah.weight": torch.ones(2)}, {}, "has blah.weight, which"),
    (lambda s: {k: v for k, v in s.items() if k != "head.weight"}, {}, "lacks head.weight"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith("head")}, {}, "lacks head.bias and 1 more"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith(("head", "fc_norm"))}, {}, "neither a pre-trained encoder nor a fine-tuned"),
    (lambda s: s, {"global_pool": False}, "lacks norm.bias"),
    (lambda s: s | {"pos_embed": torch.ones(24)}, {}, "expected 3 axes"),
    (lambda s: s, {"num_classes": 7}, "head.weight has shape"),
])
def test_classifiers_of_another_kind_are_named(change, config, message):
    with pytest.raises(ValueError, match=message):
        ViT.from_official(change(classifier_file()), **dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5) | config)


def test_a_file_of_both_halves_still_gives_a_classifier_and_a_head_may_be_left(tiny):
    small = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2)
    assert ViT.from_official(tiny.to_official(), num_classes=5, **small)(torch.randn(1, 3, 16, 16)).shape == (1, 5)
    assert ViT.from_official(classifier_file(), num_classes=0, **small)(torch.randn(1, 3, 16, 16)).shape == (1, 24)
    with pytest.raises(ValueError, match="has blocks.1"):
        ViT.from_official(tiny.to_official(), num_classes=5, **small | {"depth": 1})


def test_a_classifier_keeps_the_epsilon_of_its_encoder(tiny):
    """1e-12 of an encoder that Hugging Face's names gave: with small features 1e-6 gives others."""
    theirs = MAE.from_huggingface(tiny.to_huggingface(), num_heads=2, decoder_num_heads=2)
    for parameter in theirs.parameters():
        parameter.data.mul_(0.02)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ViT.from_encoder(theirs, 0, global_pool=False).features(x), theirs.features(x), atol=1e-6)
        assert not torch.allclose(ViT.from_encoder(theirs, 0, global_pool=False, eps=1e-6).features(x), theirs.features(x), atol=1e-3)
    assert {m.eps for m in ViT.from_encoder(tiny, 5).modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_positions_are_resized_for_a_larger_classifier(tiny):
    large = ViT.from_encoder(tiny, 5, img_size=32)
    assert large(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="missing"):
        ViT.from_official(tiny.to_official(), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2)


# ---------------------------------------------------------------- masks and shapes


@pytest.mark.parametrize("length", [1, 4, 49, 100, 196])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 0.9])
def test_keep_and_hide_are_a_partition(length, ratio):
    if int(length * (1 - ratio)) < 1:
        with pytest.raises(ValueError, match="leaves none"):
            kept_patches(length, ratio)
        return
    keep, restore, mask = split_patches(torch.rand(3, length), kept_patches(length, ratio))
    assert keep.shape[1] == int(length * (1 - ratio)) and mask.sum() == 3 * (length - keep.shape[1])
    assert torch.equal(restore.sort(1).values, torch.arange(length).expand(3, -1))
    assert mask.gather(1, keep).sum() == 0


@pytest.mark.parametrize("grid", [4, 14, (3, 7), (1, 8)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_blocks_hide_the_share_exactly(grid, ratio):
    for seed in range(20):
        mask = block_mask(grid, ratio, torch.Generator().manual_seed(seed))
        assert mask.sum() == mask.numel() - int(mask.numel() * (1 - ratio))


@pytest.mark.parametrize("mask", [grid_mask(4), column_mask(4, 1), grid_mask(4).flatten(), grid_mask(4).flatten().expand(2, -1)], ids=["grid", "columns", "flat", "batch"])
def test_a_given_mask_is_obeyed(tiny, mask):
    x = torch.randn(2, 3, 16, 16)
    out = tiny(x, mask=mask)
    assert torch.equal(out.mask.bool(), mask.reshape(-1, 16).expand(2, -1))
    shown = patchify(x, 4).clone()
    shown[out.mask.bool()] = 5.0
    assert torch.equal(tiny(unpatchify(shown, 4), mask=mask).pred, out.pred)


def test_a_picture_that_is_not_square():
    model = MAE(**TINY | {"img_size": (8, 24), "in_chans": 1}).eval()
    out = model(torch.randn(2, 1, 8, 24), 0.5)
    filled, hidden = model.reconstruct(torch.randn(2, 1, 8, 24), 0.5)
    assert out.pred.shape == (2, 12, 16) and filled.shape == hidden.shape == (2, 1, 8, 24)


def test_pasting_keeps_what_was_seen(tiny):
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    for norm_pix_loss in (False, True):
        tiny.norm_pix_loss = norm_pix_loss
        filled, hidden = tiny.reconstruct(x, 0.75, noise)
        whole, _ = tiny.reconstruct(x, 0.75, noise, paste=False)
        assert torch.equal(filled[~hidden], x[~hidden]) and torch.equal(filled[hidden], whole[hidden])


def test_a_perfect_prediction_explains_everything(tiny):
    class Oracle:
        """Predicts what it is shown."""

        norm_pix_loss, patch_size, length, cls_token = False, 4, 16, torch.zeros(1)

        def __call__(self, imgs, ratio, noise, mask):
            return mae.Output(None, patchify(imgs, 4), split_patches(noise, kept_patches(16, ratio)).mask, None, None)

    assert explained(Oracle(), torch.randn(8, 3, 16, 16)) == pytest.approx(1, abs=1e-12)
    assert explained(tiny, torch.randn(8, 3, 16, 16)) < 0.1                     # noise cannot be known


@pytest.mark.parametrize("call, message", [
    (lambda m: MAE(**TINY | {"img_size": 3}), "at least one patch"),
    (lambda m: MAE(**TINY | {"img_size": 18}), "multiples of patch_size=4"),
    (lambda m: MAE(**TINY | {"embed_dim": 26}), "multiple"),
    (lambda m: MAE(**TINY | {"num_heads": 5}), "num_heads=5"),
    (lambda m: m(torch.randn(1, 3, 2, 2)), "expected pictures"),
    (lambda m: m(torch.randn(3, 16, 16)), "expected pictures"),
    (lambda m: m(torch.randn(1, 1, 16, 16)), r"expected pictures \(B, 3, 16, 16\)"),
    (lambda m: m(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "pictures of floats.*torch.uint8"),
    (lambda m: m(torch.full((1, 3, 16, 16), torch.nan)), "finite values, got 768 of 768"),
    (lambda m: m(torch.randn(1, 3, 16, 16).double()), "pictures are torch.float64 and the network is torch.float32"),
    (lambda m: m(np.zeros((1, 3, 16, 16), np.float32)), "got a ndarray"),
    (lambda m: m(torch.zeros(0, 3, 16, 16)), "B at least 1"),
    (lambda m: m(torch.randn(1, 3, 16, 16), 0.75, torch.full((1, 16), torch.nan)), "noise: expected .* not all finite"),
    (lambda m: m.features(torch.randn(1, 3, 16, 16), pool="max"), "pool='max'"),
    (lambda m: MAE(**TINY | {"num_heads": 0}), "num_heads=0"),
    (lambda m: MAE(**TINY | {"depth": -1}), "depth=-1"),
    (lambda m: MAE(**TINY | {"decoder_depth": -1}), "depth=-1"),
    (lambda m: MAE(**TINY | {"img_size": 16.0}), "a whole number"),
    (lambda m: warmup_cosine(5, 1, 5, 5), "warmup=5: expected below epochs=5"),
    (lambda m: m(torch.randn(1, 3, 16, 16), 1.0), "mask_ratio=1.0"),
    (lambda m: m(torch.randn(1, 3, 16, 16), -0.1), "mask_ratio=-0.1"),
    (lambda m: m(torch.randn(1, 3, 16, 16), 0.99), "leaves none"),
    (lambda m: m(torch.randn(2, 3, 16, 16), 0.75, torch.rand(1, 16)), "noise: expected"),
    (lambda m: m(torch.randn(2, 3, 16, 16), mask=torch.ones(16)), "expected bool"),
    (lambda m: m(torch.randn(2, 3, 16, 16), mask=torch.ones(9, dtype=torch.bool)), "expected bool"),
    (lambda m: m(torch.randn(2, 3, 16, 16), mask=torch.ones(16, dtype=torch.bool)), "at least one"),
    (lambda m: m(torch.randn(2, 3, 16, 16), mask=torch.stack([torch.arange(16) > 3, torch.arange(16) > 4])), "the same number"),
    (lambda m: patchify(torch.rand(2, 3, 10, 16), 4), "multiples of 4"),
    (lambda m: unpatchify(torch.rand(2, 6, 48), 4), "do not make a grid"),
    (lambda m: column_mask(4, 0), "visible=0"),
    (lambda m: sincos_positions(10, 4), "multiple of 4"),
    (lambda m: layer_scales(ViT(16, 4, 3, 5, 24, 1, 2), 0.0), "decay=0.0"),
    (lambda m: vit.resize_positions(torch.zeros(1, 17, 8), 3, 4), "does not belong"),
    (lambda m: logistic_accuracy(torch.rand(5, 2), torch.zeros(5).long(), torch.rand(5, 2), torch.zeros(5).long()), "at least 10"),
    (lambda m: vit.to_huggingface({"head.weight": torch.ones(1)}), "no key of an MAE"),
    (lambda m: MAE(**TINY | {"in_chans": 0}), "in_chans=0"),
    (lambda m: MAE(**TINY | {"in_chans": 1, "patch_size": 1, "norm_pix_loss": True})(torch.randn(1, 1, 16, 16)), "a patch of one value has no deviation"),
    (lambda m: unpatchify(torch.rand(16), 4), r"patches \(16,\) do not make a grid"),
    (lambda m: unpatchify(torch.rand(2, 16, 48), 0), "patches of 0 x 0"),
    (lambda m: explained(m, torch.zeros(4, 3, 16, 16)), "2304 hidden values are all alike"),
    (lambda m: ViT(16, 4, 3, 5, 24, -1, 2), "depth=-1"),
    (lambda m: ViT(16, 4, 3, -5, 24, 1, 2), "num_classes=-5"),
    (lambda m: ViT.from_encoder(MAE(**TINY | {"depth": 0}), 5), "no blocks"),
    (lambda m: logistic_accuracy(torch.rand(20, 2), torch.arange(20) % 2, torch.rand(0, 2), torch.zeros(0).long()), "M at least 1"),
    (lambda m: logistic_accuracy(torch.rand(20, 2), torch.arange(20) % 2, torch.rand(5, 3), torch.zeros(5).long()), r"test \(5, 3\)"),
    (lambda m: logistic_accuracy(torch.rand(20, 2), torch.arange(20) % 2 - 1, torch.rand(5, 2), torch.zeros(5).long()), "labels from 0"),
    (lambda m: logistic_accuracy(torch.full((20, 2), torch.nan), torch.arange(20) % 2, torch.rand(5, 2), torch.zeros(5).long()), "not finite"),
])
def test_bad_input_is_named(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny)


def test_sides_may_be_numbers_of_numpy():
    assert MAE(**TINY | {"img_size": np.int64(16)}).grid == (4, 4) == MAE(**TINY | {"img_size": [16, np.int32(16)]}).grid


@pytest.mark.parametrize("changes, message", [
    ({"data": "mnist"}, "data='mnist'"), ({"mask": "stripes"}, "mask='stripes'"), ({"mask_ratio": 1.0}, "mask_ratio=1.0"), ({"mask_ratio": 0.95}, "mask_ratio=0.95"),
    ({"patch_size": 3}, "patch_size=3"), ({"embed_dim": 30, "heads": 4}, "embed_dim=30"), ({"steps": 0}, "steps=0"), ({"pool": "max"}, "pool='max'"),
    ({"warmup": 1.0}, "warmup=1.0"), ({"finetune_steps": 3, "probe_train": 0}, "finetune_steps=3"),
    ({"finetune_steps": 3, "data": "canvas", "img_size": 28, "in_chans": 3}, "data='canvas' has not"), ({"data": "cifar10", "img_size": 32, "patch_size": 8}, "in_chans=1"), ({"img_size": 56}, "img_size=56"),
    ({"shift": 28}, "shift=28"), ({"probe_train": 5}, "probe_train=5"), ({"probe_test": 0}, "probe_test=0"), ({"patch_size": 1, "norm_pix_loss": True}, "norm_pix_loss=True"),
    ({"mask": "columns", "patch_size": 28}, "patch_size=28"), ({"recipe": "vit_tiny"}, "recipe='vit_tiny'"), ({"probe_steps": 3}, "probe_steps=3"), ({"probe_batch": 0}, "probe_batch=0"),
    ({"data": "mnist5k", "in_chans": 3}, r"in_chans=3 \(expected 1, the colours of mnist5k"), ({"mask": "grid", "mask_ratio": 0.5}, "mask_ratio=0.5"), ({"clip_norm": -1.0}, "clip_norm=-1.0"), ({"decoder_embed_dim": 6}, "decoder_embed_dim=6")])
def test_bad_presets_are_refused_before_any_work(changes, message, monkeypatch):
    monkeypatch.setattr(mae, "pictures", lambda preset: pytest.fail("data were read"))
    with pytest.raises(ValueError, match=message):
        experiment(replace(PAPER.presets["smoke"], **changes), 0, torch.device("cpu"))


def test_data_that_are_not_here_are_missed_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(mae, "MAE", lambda **config: pytest.fail("a network was built"))
    for call in (mae.require_sound, lambda preset: experiment(preset, 0, torch.device("cpu"))):
        with pytest.raises(FileNotFoundError, match="ImageNet"):
            call(PAPER.presets["paper"])


# ---------------------------------------------------------------- data and training


def test_canvases_are_functions_of_their_number():
    a, b, other = Canvases("train", 64, scenes=2), Canvases("train", 64, scenes=2), Canvases("test", 64, scenes=2)
    assert all(torch.equal(a[i], b[i]) for i in (0, 6, 7, 15))
    assert not any(torch.equal(a[i], other[i]) for i in (0, 6, 7))
    assert all(a[i].isfinite().all() and a[i].shape == (3, 64, 64) for i in range(16))
    few = Canvases("train", 16, length=3, scenes=2)
    assert len([1 for _, _ in zip(few, range(9))]) == 3 and torch.equal(few[-1], few[2])                       # a loop over them ends


def test_crops_refuse_another_size_and_undo_their_scale():
    digits = dataset("digits")
    crops = Crops(digits, 8)
    assert torch.allclose(crops.unscaled(crops[5]) * 255, digits.images[5].float(), atol=1e-3)
    with pytest.raises(ValueError, match="img_size=16"):
        Crops(digits, 16)


def test_cifar_as_published_and_as_jpeg_bytes(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (10, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(10)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows.tofile(tmp_path / f"{name}.bin")
    test = dataset("cifar10", path=tmp_path, split="test")
    assert isinstance(test, Labelled) and test.images.shape == (10, 3, 32, 32) and test.labels.tolist() == list(range(10))
    assert test.images[3, 1, 2, 5] == int(rows[3, 1 + 1024 + 2 * 32 + 5]) and test.classes[9] == "truck"
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="binary version"):
        dataset("cifar10", path=tmp_path, split="test")
    with pytest.raises(ValueError, match="'train' or 'test'"):
        dataset("cifar10", path=tmp_path, split="val")


def test_a_folder_of_classes(tmp_path):
    from paperlib.core.data import write_image

    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            write_image(tmp_path / split / name / "a.png", np.full((40, 30, 3), 128, np.uint8))
    held = dataset("imagenet", path=tmp_path, split="val")
    assert len(held) == 2 and held.classes == ("n01", "n02") and held[1][1] == 1
    assert Crops(held, 16)[0].shape == (3, 16, 16)


def test_a_folder_of_classes_is_probed_and_tuned_with_its_labels(tmp_path, monkeypatch):
    """The preset `paper` in small: two classes of one colour each, told apart by a probe and by a fine-tuned network, read file by file."""
    from paperlib.core.data import write_image

    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 6)):
        for name, low in (("n01", 0), ("n02", 128)):
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            for i in range(n):
                write_image(tmp_path / "imagenet" / split / name / f"{i}.png", rng.integers(low, low + 128, (24, 20, 3), dtype=np.uint8))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    monkeypatch.setattr(mae, "save_weights", lambda *a: None)
    monkeypatch.setitem(vit.RECIPES["linprobe"], "blr", 50.0)                   # the recipes' rates are for batches of thousands
    monkeypatch.setitem(vit.RECIPES["finetune"]["variants"]["vit_base"], "blr", 0.05)
    preset = replace(PAPER.presets["paper"], img_size=16, patch_size=4, embed_dim=24, depth=1, heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_heads=2, steps=3, batch_size=8,
                     finetune_steps=12, finetune_batch=8, probe_train=24, probe_test=12, probe_steps=40, probe_batch=24)
    _, labels, test, test_labels = mae.pictures(preset)
    assert labels.tolist() == [0] * 12 + [1] * 12 and sorted(test_labels.tolist()) == [0] * 6 + [1] * 6 != test_labels.tolist()
    assert all((test[i].mean() > 0) == bool(test_labels[i]) for i in range(12))
    result = experiment(preset, 0, torch.device("cpu"))
    assert result["imagenet_probe"] == result["probe"] > 0.9 and result["imagenet_finetuned"] == result["finetuned"]
    assert {c.id: c.ours for c in PAPER.claims if c.id.startswith("imagenet")} == {"imagenet-finetuned": "imagenet_finetuned", "imagenet-probe": "imagenet_probe"}


def test_the_full_preset_follows_the_official_recipes():
    full, pre, tuned, probe = PAPER.presets["paper"], *(vit.RECIPES[k] for k in ("pretrain", "finetune", "linprobe"))
    assert (full.batch_size, full.weight_decay, full.warmup) == (pre["batch"], pre["weight_decay"], pre["warmup"] / pre["epochs"])
    assert full.lr == pytest.approx(pre["blr"] * pre["batch"] / 256)
    assert (full.finetune_batch, full.probe_batch, full.pool, full.recipe) == (tuned["batch"], probe["batch"], "cls", "vit_base")
    epochs = tuned["variants"]["vit_base"]["epochs"]
    for steps, recipe, n in ((full.steps, pre, pre["epochs"]), (full.finetune_steps, tuned, epochs), (full.probe_steps, probe, probe["epochs"])):
        assert steps == pytest.approx(n * 1_281_167 / recipe["batch"], rel=2e-3)


def test_fine_tuning_has_the_recipes_rates_and_ours_as_before(monkeypatch):
    """The official recipe: 5e-4 for 256 pictures, layer decay .65, drop path .1, down to 1e-6; short runs as they were recorded: 1e-3, .75, none, down to 0."""
    torch.manual_seed(0)
    model, seen = MAE(**TINY), {}
    def stop(net, batches, loss, optimizer, steps, scheduler, **options):
        factors = [f(s) for f in scheduler.lr_lambdas[:1] for s in (0, steps // 20, steps)]
        seen[options["desc"]] = sorted({g["initial_lr"] for g in optimizer.param_groups}), factors, net.blocks[-1].drop_path.rate, batches.batch_size
        raise StopIteration
    monkeypatch.setattr(mae, "fit", stop)
    train = mae.LabelledCrops(Crops(Labelled(torch.zeros(20, 3, 16, 16, dtype=torch.uint8).random_(), torch.arange(20) % 2, ("a", "b")), 16), torch.arange(20) % 2, torch.arange(20))
    base = replace(PAPER.presets["small"], img_size=16, embed_dim=24, depth=2, heads=2, finetune_steps=100)
    for preset in (replace(base, recipe="vit_base", finetune_batch=1024), base):
        for pretrained in (True, False):
            with pytest.raises(StopIteration):
                mae.finetune(model, train, None, None, preset, 0, torch.device("cpu"), pretrained)
        rates, factors, drop, batch = seen["mae-finetune"]
        if preset.recipe:
            assert rates == pytest.approx([2e-3 * 0.65**k for k in (3, 2, 1, 0)]) and seen["mae-scratch"][0] == pytest.approx([2e-3])
            assert factors == pytest.approx([0, 1, 1e-6 / 2e-3]) and (drop, batch) == (0.1, 1024)
        else:
            assert rates == pytest.approx([1e-3 * 0.75**k for k in (3, 2, 1, 0)]) and seen["mae-scratch"][0] == pytest.approx([1e-3])
            assert factors == pytest.approx([0.1, 0.6, 0], abs=1e-3) and (drop, batch) == (0.0, 128)


@pytest.mark.parametrize("mask", ["random", "block", "columns"])
def test_a_plain_autoencoder_runs(mask):
    """Nothing hidden, as the page promises: trained and measured on all patches."""
    run = paperlib.reproduce("mae", mask_ratio=0.0, mask=mask, steps=3, device="cpu", probe_train=0, rounds=1)
    assert run.metrics["explained"] < 1 and len(run.samples["explained_during"]) > 1


def test_training_restores_better_than_the_mean_colour():
    run = paperlib.reproduce("mae", steps=120, device="cpu", probe_train=300, probe_test=100)
    assert run.metrics["explained"] > 0.1 > run.samples["explained_during"]["000000"]
    assert run.metrics["loss_last"] < run.metrics["loss_first"]


def test_a_canvas_is_made_of_one_or_three_channels():
    rng = np.random.default_rng(0)
    for picture in (rng.integers(0, 255, (20, 30), np.uint8), rng.integers(0, 255, (20, 30, 3), np.uint8), torch.rand(1, 20, 30)):
        canvas = mae.as_canvas(picture, 16)
        assert canvas.shape == (3, 16, 16) and abs(canvas.mean()) < 1e-5
    for picture in (np.zeros((20, 30, 4), np.uint8), torch.rand(2, 3, 20, 30), torch.rand(4, 20, 30)):
        with pytest.raises(ValueError, match="as_canvas: expected a picture of 1 or 3 channels"):
            mae.as_canvas(picture)


def test_mask_tokens_inside_train_too():
    torch.manual_seed(0)
    model = MAE(**TINY, mask_in_encoder=True)
    out = model(torch.randn(2, 3, 16, 16))
    out.loss.backward()
    assert out.latent.shape == (2, 17, 24) and out.pred.shape == (2, 16, 48)
    assert model.mask_token.grad is None and model.encoder_mask_token.grad.abs().sum() > 0


def test_lars_moves_a_matrix_by_its_own_length():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(5, 7, dtype=torch.float64))
    before, optimizer = w.detach().clone(), LARS([w], lr=2.0, momentum=0.9, weight_decay=0.1, trust=1e-3)
    w.grad = torch.randn(5, 7, dtype=torch.float64)
    optimizer.step()
    u = w.grad + 0.1 * before
    assert torch.allclose(w, before - 2.0 * 1e-3 * before.norm() / u.norm() * u, atol=1e-12)


@GPU
def test_same_on_the_gpu(tiny):
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    assert torch.allclose(tiny(x, 0.75, noise).pred, tiny.cuda()(x.cuda(), 0.75, noise.cuda()).pred.cpu(), atol=1e-4)
