"""BayeSR against the official implementation's numbers, its names of weights, its modes, pictures of any size, and input that should be refused."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import paperlib
from paperlib.core.data import dataset
from paperlib.core.images import imresize
from paperlib.core.training import fit
from paperlib.superres import bayesr
from paperlib.superres.bayesr import (
    MODES,
    PAPER,
    BayeSR,
    Prior,
    bayesian_loss,
    experiment,
    hyper_posteriors,
    require_sound,
    self_loss,
    training_crops,
    variational_loss,
    variational_terms,
)
from paperlib.superres.bayesr_layers import (
    Adversary,
    Crops,
    Downsampling,
    Enlargement,
    KernelChain,
    PatchDiscriminator,
    PlainSR,
    SubPixel,
    degradation_kernel,
    degrade_each,
    draw_noise,
    fit_kernel,
    from_tensorflow,
    gan_loss,
    gaussian_kernel,
    gradient_energy,
    kernel_penalties,
    pad_symmetric,
    restore,
    set_kernel,
    to_tensorflow,
    train_chain,
)

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def load(shared, case):
    """Return the official weights, the arrays with channels first, and the card of a case."""
    path = shared / "golden" / f"bayesr__{case}.npz"
    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    state = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    first = {k: torch.from_numpy(v).movedim(-1, 1) if v.ndim == 4 else torch.from_numpy(v) for k, v in arrays.items() if not k.startswith("state.")}
    return state, first, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def noise_of(arrays):
    return tuple(arrays[f"input.noise_{k}"] for k in "mzx")


def near(got, arrays, card, name):
    assert got.shape == arrays[f"output.{name}"].shape
    assert (got - arrays[f"output.{name}"]).abs().max() <= card["suggested_atol"][name], name


def test_golden_posteriors_and_losses(shared):
    state, arrays, card = load(shared, "supervised_x4")
    args = card["config"]["args"]
    model, prior = BayeSR.from_official(state, **args), Prior(sigma0=args["sigma0"])
    with torch.no_grad():
        q = model.posterior(arrays["input.lr"], noise_of(arrays))
    hyper = hyper_posteriors(q, prior)
    found = {"mum": q.mean_m, "muz": q.mean_z, "mux": q.mean_x, "log_varm": q.log_var_m, "log_varz": q.log_var_z, "log_varx": q.log_var_x, "err": q.misfit,
             "log_muv": hyper.v.log(), "log_muw": hyper.w.log(), "log_mup": hyper.rho.log(), "hr_hat": (q.x + q.z).clamp(0, 1), "sr": (q.x + q.z).clamp(0, 1),
             "loss_xzm": sum(variational_terms(q, hyper, prior).values()), "loss": variational_loss(q, prior) + args["tau"] * self_loss(arrays["input.hr"], q)}
    assert found.keys() == card["suggested_atol"].keys()
    for name, value in found.items():
        near(value, arrays, card, name)


def test_golden_test_path(shared):
    state, arrays, card = load(shared, "test_x4_pad")
    model = BayeSR.from_official(state, **card["config"]["args"])
    with torch.no_grad():
        near(model(arrays["input.lr"], noise=noise_of(arrays)).mean.clamp(0, 1), arrays, card, "sr")


def test_golden_pieces(shared):
    state, arrays, card = load(shared, "pieces")
    img, logits, delta = (arrays[f"input.{k}"] for k in ("img", "logits", "delta_lr"))
    chain = KernelChain(2)
    chain.load_state_dict({k.removeprefix("down."): v for k, v in from_tensorflow(state).items()})
    filtered = lambda x, k, s=1: F.conv2d(x.flatten(0, 1)[:, None], k[None, None].float(), stride=s).unflatten(0, x.shape[:2])[:, :, 0]
    each = lambda x: torch.stack([F.conv2d(a[:, None], k[None])[:, 0] for a, k in zip(x, arrays["input.kernel"])])[..., ::2, ::2]
    near(gradient_energy(img), arrays, card, "DxDy")
    near(torch.cat([-F.pad(img.diff(dim=-1), (0, 1)), -F.pad(img.diff(dim=-2), (0, 0, 0, 1))], 1), arrays, card, "DxDy_grad")
    near(filtered(pad_symmetric(img, 3, 3, 3, 3), gaussian_kernel(7, 0.5)), arrays, card, "GaussBlur_7_0p5")
    near(filtered(pad_symmetric(img, 2, 2, 2, 2), gaussian_kernel(5, 2.0, 1.0))[..., ::2, ::2], arrays, card, "GaussBlur_5_1_2_down2")
    near(each(img), arrays, card, "degradation_s2")
    near(each(pad_symmetric(img, 2, 2, 2, 2)), arrays, card, "degradation_s2_pad")
    with torch.no_grad():
        near(chain(img), arrays, card, "generator")
        kernel = chain.kernel()
        near(kernel, arrays, card, "curr_k")
    for kind in ("GAN", "LSGAN", "WGAN"):                                        # the official function averages over a list of outputs
        for real in (True, False):
            got = (gan_loss(logits, real, kind) + gan_loss(2 * logits[:1], real, kind)) / 2
            near(got, arrays, card, f"GANloss_{kind}_{'real' if real else 'fake'}")
    for name, value in kernel_penalties(kernel).items():
        near(value, arrays, card, {"sum": "SumOfWeightsLoss", "boundary": "BoundariesLoss", "centre": "CentralizedLoss", "sparsity": "SparsityLoss"}[name])
    near((img - 1).abs().mean(), arrays, card, "kernelgan_GANloss_real")
    near((filtered(F.pad(img, (3, 3, 3, 3)), degradation_kernel(2), 2) - delta).square().mean(), arrays, card, "DownsampleLoss")


def test_official_names_make_the_round_trip(shared):
    state, _, card = load(shared, "supervised_x4")
    model = BayeSR.from_official({f"{k}:0": v for k, v in state.items()}, **card["config"]["args"])
    back = model.to_official()
    assert back.keys() == state.keys() and all(np.array_equal(back[k].numpy(), v) for k, v in state.items())
    judge = {f"HR.{k}": v for k, v in PatchDiscriminator(3, 4).state_dict().items()}
    named = to_tensorflow(judge)
    assert named["SmSpNet/Discriminator/HR/conv1/kernel"].shape == (4, 4, 4, 8) and "SmSpNet/Discriminator/HR/bn1/moving_variance" in named
    again = from_tensorflow(named | {"SmSpNet/cnnm/input/kernel/Adam": np.zeros((3, 3, 3, 4), np.float32), "global_step": np.zeros(())})
    assert all(torch.equal(again[k], v) for k, v in judge.items() if "num_batches" not in k) and len(again) == sum("num_batches" not in k for k in judge)


def test_official_weights_that_do_not_fit_are_named(shared):
    state, _, card = load(shared, "supervised_x4")
    args = card["config"]["args"]
    gone = {k: v for k, v in state.items() if "upz/output2/bias" not in k}
    for given, config, message in ((gone, args, "missing head_z.output2.bias"), (state, args | {"d_cnnx": 3, "d_cnnz": 3, "d_cnnm": 3}, "unexpected"), (state, args | {"filters": 8}, "another shape"),
                                   (state | {"SmSpNet/cnnq/input/kernel": gone["SmSpNet/cnnm/input/kernel"]}, args, "SmSpNet/cnnq"), (state, args | {"setupUnet": True}, "missing"),
                                   (state, args | {"d_cnnm": 3}, "unexpected"), (state, args | {"up_type": "interpolation"}, "unexpected"), (state, args | {"BN": True}, "BN=True")):
        with pytest.raises(ValueError, match=message):
            BayeSR.from_official(given, **config)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (9, 14)])
@pytest.mark.parametrize("scale", [2, 4])
def test_any_size_is_restored(shape, scale):
    torch.manual_seed(0)
    y = torch.rand(2, 3, *shape)
    for model in (BayeSR(scale, 3, 8, 6, scale + 6, skip=True), BayeSR(scale, 3, 8, 1), PlainSR(scale, 3, 8, 1)):
        assert restore(model, y).shape == (2, 3, shape[0] * scale, shape[1] * scale)
        assert model.training


VARIANTS = [{"scale": 2}, {"scale": 3}, {"scale": 1}, {"scale": 4, "up": "subpixel"}, {"scale": 3, "up": "subpixel"}, {"scale": 2, "up": "interpolation"}, {"scale": 2, "attention": False},
            {"scale": 2, "unet": True, "blocks": (2, 6, 6)}, {"scale": 2, "unet": True}, {"scale": 3, "unet": True, "blocks": (1, 1, 3)}, {"scale": 4, "unet": True, "blocks": (1, 4, 8)}, {"scale": 1, "unet": True, "blocks": 4}, {"scale": 4, "blocks": (1, 2, 3)}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_official_variants_run_and_make_the_round_trip(variant):
    torch.manual_seed(0)
    model = BayeSR(**{"channels": 3, "width": 8, "blocks": 2} | variant).eval()
    y = torch.rand(2, 3, 8, 8)
    q = model.posterior(y, draw_noise(model, y))
    assert q.mean.shape == (2, 3, 8 * model.scale, 8 * model.scale) and q.misfit.shape == y.shape
    assert torch.allclose(q.misfit, y - q.m - model.down(q.x + q.z), atol=1e-5)
    blocks = variant.get("blocks", 2)
    depths = (blocks,) * 3 if isinstance(blocks, int) else blocks
    config = {"upscale": model.scale, "in_channel": 3, "filters": 8, "up_type": model.up, "use_CA": variant.get("attention", True), "setupUnet": model.unet,
              **{f"d_cnn{k}": d for k, d in zip("mzx", depths)}}
    twin = BayeSR.from_official({k: v.numpy() for k, v in model.to_official().items()}, **config)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))
    assert torch.equal(restore(model, y), restore(twin, y))


def plainly(state, args, y, noise, kernels=None):
    """Return the official inference for official variables, one operation at a time: m, mean and draw of z and x, misfit."""
    width, s, unet = args["filters"], args["upscale"], args["setupUnet"]

    def conv(name, x, stride=1):
        k = torch.as_tensor(state[f"SmSpNet/{name}/kernel"]).permute(3, 2, 0, 1)
        bias = state.get(f"SmSpNet/{name}/bias")
        return F.conv2d(x, k, None if bias is None else torch.as_tensor(bias), stride, padding=k.shape[-1] // 2)

    def enlarge(x, factor):                                                      # TensorFlow 1: pixel i looks at i / factor
        for axis in (2, 3):
            n = x.shape[axis]
            rows = torch.zeros(n * factor, n)
            for i in range(n * factor):
                rows[i, i // factor] += 1 - i % factor / factor
                rows[i, min(i // factor + 1, n - 1)] += i % factor / factor
            x = torch.einsum("ij,bcjw->bciw" if axis == 2 else "ij,bchj->bchi", rows, x)
        return x

    def resnet(name, x, depth):
        first = x = conv(f"{name}/input", x)
        for i in range(depth):
            change = conv(f"{name}/ResBlock{i}/conv1", conv(f"{name}/ResBlock{i}/conv0", x).relu())
            gate = change.mean((2, 3), keepdim=True)
            for j in range(2 * args["use_CA"]):
                gate = conv(f"{name}/ResBlock{i}/CALayer/conv{j}", gate)
                gate = gate.relu() if j == 0 else gate.sigmoid()
            x = x + (change * gate if args["use_CA"] else 0.2 * change)
        return x + first

    def network(name, x, depth):
        if not unet:
            return resnet(name, x, depth)
        twice = lambda part, t: conv(f"{name}/{part}/conv1", conv(f"{name}/{part}/conv0", t).relu())
        x, levels, kept = enlarge(x, s), max(0, (depth - 2) // 2), []
        for i in range(levels):
            kept.append(twice(f"down_layer{i}", x))
            x = (kept[-1][..., ::2, ::2] + kept[-1][..., 1::2, ::2] + kept[-1][..., ::2, 1::2] + kept[-1][..., 1::2, 1::2]) / 4
        x = twice("bottom/layer1", twice("bottom/layer0", x))
        for i in range(levels):
            x = twice(f"up_layer{i}", torch.cat([enlarge(x, 2), kept.pop()], 1))
        return x

    def head(name, x, times):
        f = 3 if s == 3 else 2
        for i in range(times):
            scope = f"{name}/upsample_x{f ** (i + 1)}"
            if args["up_type"] == "interpolation":
                x = x.repeat_interleave(f, 2).repeat_interleave(f, 3)
            elif args["up_type"] == "subpixel":
                b, _, h, w = x.shape
                x = conv(f"{scope}/subpixel", x).view(b, f, f, width, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, width, h * f, w * f)
            else:
                k, b, _, h, w = torch.as_tensor(state[f"SmSpNet/{scope}/conv_transpose/kernel"]), *x.shape
                canvas = torch.zeros(b, width, f * h + 4, f * w + 4)
                for i_h in range(h):
                    for i_w in range(w):
                        canvas[:, :, f * i_h : f * i_h + 5, f * i_w : f * i_w + 5] += torch.einsum("bi,hwoi->bohw", x[:, :, i_h, i_w], k)
                x = canvas[:, :, 1 : 1 + f * h, 1 : 1 + f * w] + torch.as_tensor(state[f"SmSpNet/{scope}/conv_transpose/bias"])[:, None, None]
        out = conv(f"{name}/output2", conv(f"{name}/output1", x))
        return out[:, : args["in_channel"]], out[:, args["in_channel"] :].clamp(-np.log(1e10), 0)

    def down(u):
        if kernels is not None:
            return degrade_each(u, kernels, s)
        for _ in range(int(np.log2(s))):
            u = u.flatten(0, 1)[:, None]
            for i in range(6):
                u = conv(f"Generator/conv{i}", u, 1 if i < 5 else 3 if s == 3 else 2)
            u = u.unflatten(0, (len(y), -1))[:, :, 0]
        return u

    times = 0 if unet else int(np.log2(s))
    draw = lambda maps, eps: maps[0] + (maps[1] / 2).exp() * eps
    f_m = resnet("cnnm", y, args["d_cnnm"])
    m = draw(head("upm", f_m, 0), noise[0])
    f_z = torch.cat([network("cnnz", y - m, args["d_cnnz"]), enlarge(f_m, s) if unet else f_m], 1)
    maps_z = head("upz", f_z, times)
    z = draw(maps_z, noise[1])
    maps_x = head("upx", torch.cat([network("cnnx", y - m - down(z), args["d_cnnx"]), f_z], 1), times)
    x = draw(maps_x, noise[2])
    return m, maps_z[0], z, maps_x[0], x, y - down(x) - down(z) - m


OFFICIAL = {"upscale": 2, "in_channel": 3, "filters": 16, "up_type": "transpose", "use_CA": True, "setupUnet": False, "d_cnnm": 2, "d_cnnz": 2, "d_cnnx": 2}


@pytest.mark.parametrize("change", [{"upscale": 3}, {"upscale": 1, "task": "DEN"}, {"upscale": 4, "up_type": "subpixel", "in_channel": 1}, {"upscale": 3, "up_type": "subpixel"}, {"upscale": 4, "up_type": "interpolation"},
                                    {"use_CA": False}, {"setupUnet": True, "d_cnnz": 6, "d_cnnx": 6}, {"setupUnet": True, "upscale": 3, "d_cnnz": 2, "d_cnnx": 4}, {"setupUnet": True, "upscale": 1, "d_cnnz": 4, "d_cnnx": 5}], ids=str)
def test_official_variants_against_one_operation_at_a_time(change):
    torch.manual_seed(0)
    args = OFFICIAL | change
    model = BayeSR(args["upscale"], args["in_channel"], 16, (args["d_cnnm"], args["d_cnnz"], args["d_cnnx"]), attention=args["use_CA"], up=args["up_type"], unet=args["setupUnet"])
    state = {k: v.numpy() for k, v in model.to_official().items()}
    y = torch.rand(2, args["in_channel"], 8, 12)
    noise = draw_noise(model, y)
    with torch.no_grad():
        q = BayeSR.from_official(state, **args)(y, noise=noise)
        for got, wanted in zip((q.m, q.mean_z, q.z, q.mean_x, q.x, q.misfit), plainly(state, args, y, noise)):
            assert torch.allclose(got, wanted, atol=1e-5)


def test_a_checkpoint_without_an_operator_wants_kernels(shared):
    torch.manual_seed(0)
    whole = {k: v for k, v in BayeSR(2, 3, 16, 2).to_official().items()}
    state = {k: v for k, v in whole.items() if "Generator" not in k}             # so it is where each picture has its own kernel
    model, (_, arrays, _) = BayeSR.from_official(state, **OFFICIAL, gauss_blur=True), load(shared, "pieces")
    y, kernels = torch.rand(2, 3, 8, 12), arrays["input.kernel"]
    noise = draw_noise(model, y)
    with torch.no_grad():
        q = model(y, noise=noise, kernels=kernels)
    for got, wanted in zip((q.m, q.mean_z, q.z, q.mean_x, q.x, q.misfit), plainly(state, OFFICIAL, y, noise, kernels)):
        assert torch.allclose(got, wanted, atol=1e-5)
    assert model.to_official().keys() == state.keys()
    with pytest.raises(ValueError, match="no operator A"):
        model(y)
    with pytest.raises(ValueError, match=r"missing down\.convs\.0"):
        BayeSR.from_official({k: v for k, v in whole.items() if "Generator/conv0" not in k}, **OFFICIAL)


def test_the_names_of_weights_tell_a_factor_of_three():
    states = {s: BayeSR(s, 3, 16, 2).to_official() for s in (2, 3)}                # of the same shapes
    for scale, other in ((2, 3), (3, 2)):
        with pytest.raises(ValueError, match=f"upscale={scale}"):
            BayeSR.from_official(states[other], **OFFICIAL | {"upscale": scale})
    for name in ("cnnm/ResBlockX/conv0/kernel", "upz/upsample_x7/conv_transpose/kernel", "cnnm/input/foo"):
        with pytest.raises(ValueError, match=f"no such variable in BayeSR: 'SmSpNet/{name}'"):
            BayeSR.from_official(states[2] | {f"SmSpNet/{name}": torch.zeros(1)}, **OFFICIAL)


def test_a_kernel_is_centred_where_the_stride_puts_it():
    for stride, middle in ((2, (6, 7)), (3, (7, 7))):                              # half a pixel, or one, beyond 6
        kernel = torch.zeros(13, 13, dtype=torch.float64)
        for i in middle:
            kernel[i, i] += 0.5
        assert kernel_penalties(kernel, stride)["centre"] < 1e-20


def test_denoising_has_no_factor():
    state = BayeSR(1, 3, 16, 2).to_official()
    model = BayeSR.from_official(state, **OFFICIAL | {"upscale": 4, "task": "DEN"})      # the official default of the factor
    assert model.scale == 1 and model(torch.rand(1, 3, 5, 6)).mean.shape == (1, 3, 5, 6)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_model_takes_any_size_and_draws_when_asked(scale):
    torch.manual_seed(0)
    model, y = BayeSR(scale, 3, 8, (1, 2, 6)), torch.rand(2, 3, 7, 9)
    before = y.clone()
    with torch.no_grad():
        q = model(y)
        padded = model.posterior(pad_symmetric(y, 0, 3, 0, 1))
        assert all(torch.equal(a, b[..., : a.shape[-2], : a.shape[-1]]) for a, b in zip(q, padded))
        assert torch.equal(q.mean.clamp(0, 1), restore(model, y)) and torch.equal(y, before)
        small, large = (2, 3, 7, 9), (2, 3, 7 * scale, 9 * scale)
        assert [tuple(t.shape) for t in q] == [small] * 2 + [large] * 4 + [small] + [large] * 2 + [small]
        assert torch.equal(q.x, q.mean_x) and torch.equal(q.mean, q.x + q.z)
        torch.manual_seed(1)
        drawn = model(y, sample=True)
        torch.manual_seed(1)
        assert all(torch.equal(a, b) for a, b in zip(drawn, model(y, noise=draw_noise(model, torch.empty(2, 3, 8, 12)))))
    assert not torch.equal(drawn.x, drawn.mean_x)
    for bad, message in (((torch.zeros(1),) * 3, "noise for m, z, x"), (draw_noise(model, y), "noise for m, z, x"), (draw_noise(model, torch.empty(2, 3, 8, 12))[:2], "noise for m, z, x")):
        with pytest.raises(ValueError, match=message):
            model(y, noise=bad)
    for bad in (y[:, :1], y[0], y.byte(), y * torch.nan):
        with pytest.raises(ValueError, match="float in|NaN"):
            model(bad)


def test_the_losss_gradient_is_what_the_formulas_say():
    torch.manual_seed(0)
    prior, k = Prior(2.0, 3.0, 8.0, 1e-3, 2e-3, 1e-5, 100.0), {"dtype": torch.float64}
    small, large = (2, 1, 3, 4), (2, 1, 6, 8)
    q = bayesr.Posterior(*(0.1 * torch.randn(shape, **k).requires_grad_() for shape in [small] * 2 + [large] * 4 + [small] + [large] * 2 + [small]))
    names = ("mean_m", "log_var_m", "mean_z", "log_var_z", "mean_x", "log_var_x", "misfit")
    slopes = dict(zip(names, torch.autograd.grad(variational_loss(q, prior), [getattr(q, n) for n in names])))
    v, w, rho = hyper_posteriors(q, prior)
    laplacian = torch.zeros(large, **k)
    for (i, j), (a, b) in [((i, j), (i + 1, j)) for i in range(5) for j in range(8)] + [((i, j), (i, j + 1)) for i in range(6) for j in range(7)]:
        edge = 2 * v[..., i, j] * (q.mean_x[..., i, j] - q.mean_x[..., a, b]).detach()
        laplacian[..., i, j] += edge
        laplacian[..., a, b] -= edge
    wanted = {"mean_m": 2 * prior.sigma0 * q.mean_m, "log_var_m": prior.sigma0 * q.log_var_m.exp() - 1, "mean_z": 2 * w * q.mean_z, "log_var_z": w * q.log_var_z.exp() - 1,
              "mean_x": laplacian, "log_var_x": 4 * v * q.log_var_x.exp() - 1, "misfit": 2 * rho * q.misfit}
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name] / rho.sum(), rtol=1e-10), name


def test_subpixels_come_in_tensorflows_order():
    layer = SubPixel(1, 3)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.copy_(torch.arange(12.0))
    block = layer(torch.zeros(1, 1, 1, 1))[0]                                    # channel k of 12: place k // 3 of the block, then colour k % 3
    assert block[:, 0, 0].tolist() == [0, 1, 2] and block[:, 0, 1].tolist() == [3, 4, 5] and block[:, 1, 0].tolist() == [6, 7, 8]


def test_a_kernel_for_each_picture(shared):
    _, arrays, card = load(shared, "pieces")
    kernels = arrays["input.kernel"]
    near(degrade_each(arrays["input.img"], kernels, 2), arrays, card, "degradation_s2_pad")
    model = BayeSR(2, 3, 4, 1)
    y = torch.rand(2, 3, 6, 7)
    q = model.posterior(y, kernels=kernels)
    assert torch.allclose(q.misfit, y - q.m - degrade_each(q.x + q.z, kernels, 2), atol=1e-5)


def test_restore_leaves_the_mode_and_refuses_what_is_no_batch():
    model = BayeSR(2, 1, 8, 1).eval()
    for bad, message in ((torch.rand(1, 3, 8, 8), r"\(B, 1, H, W\)"), (torch.rand(8, 8), "float in"), (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8"),
                         (np.zeros((1, 1, 8, 8)), "ndarray"), (torch.full((1, 1, 4, 4), np.nan), "NaN"), (torch.rand(1, 1, 0, 4), "float in")):
        with pytest.raises(ValueError, match=message):
            restore(model, bad)
    assert not model.training
    with pytest.raises(ValueError, match="a PlainSR has nothing to draw"):
        restore(PlainSR(2, 1, 8, 1), torch.rand(1, 1, 4, 4), sample=True)


def test_paths_agree_where_nothing_is_random():
    torch.manual_seed(0)
    model, y = BayeSR(2, 1, 8, 2, 8), torch.rand(1, 1, 10, 12)
    zero = tuple(torch.zeros_like(t) for t in draw_noise(model, y))
    with torch.no_grad():
        a, b = model.posterior(y), model.posterior(y, zero)
        assert all(torch.equal(s, t) for s, t in zip(a, b))
        drawn = model.posterior(y, draw_noise(model, y, torch.Generator().manual_seed(1)))
    assert torch.equal(a.mean_m, drawn.mean_m) and not torch.equal(a.mean_x, drawn.mean_x)      # m comes first; what follows sees its draw
    assert torch.allclose(drawn.misfit, y - drawn.m - model.down(drawn.x + drawn.z), atol=1e-5)


def test_operators_agree_and_are_linear():
    u, v = torch.rand(2, 3, 24, 20, dtype=torch.float64), torch.rand(2, 3, 24, 20, dtype=torch.float64)
    for down in (Downsampling(degradation_kernel(2, 0.8)), KernelChain(2, 4).double(), Downsampling(degradation_kernel(4), 4)):
        with torch.no_grad():
            assert torch.allclose(down(2 * u - v), 2 * down(u) - down(v), atol=1e-12)
    assert torch.allclose(Downsampling(degradation_kernel(4), 4)(u), imresize(u, 0.25), atol=1e-6)
    assert torch.allclose(Enlargement(4)(u[..., :5, :3]), imresize(u[..., :5, :3], 4), atol=1e-6)
    with pytest.raises(ValueError, match="multiples of 2"):
        Downsampling(degradation_kernel(2))(u[..., :23, :])


@pytest.mark.parametrize("scale", [2, 4])
def test_a_kernel_is_found_from_pairs(scale):
    kernel = degradation_kernel(scale, 0.7)
    kernel = kernel + 0.01 * torch.rand(kernel.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)     # no symmetry to hide behind
    high = [torch.rand(2, 160, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = fit_kernel([(u, Downsampling(kernel, scale)(u[None])[0]) for u in high], scale, len(kernel) + 2)
    assert torch.allclose(found[1:-1, 1:-1], kernel, atol=1e-6)
    with pytest.raises(ValueError, match="no pair"):
        fit_kernel([], scale, len(kernel))
    with pytest.raises(ValueError, match="size=7"):
        fit_kernel([], scale, 7)


def test_the_chain_learns_and_stays_frozen():
    chain = KernelChain(2, 8)
    chain.requires_grad_(False)
    pairs = [(u, Downsampling(degradation_kernel(2))(u[None])[0]) for u in torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))]
    losses = train_chain(chain, pairs, steps=60)
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    assert not any(p.requires_grad for p in chain.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lam", [0.0, 1e-3])
def test_every_mode_trains(mode, lam):
    result = experiment(PAPER.preset("smoke", {"mode": mode, "lam": lam, "steps": 2, "batch_size": 2, "width": 4, "gan_width": 2, "noise": 5.0}), 0, torch.device("cpu"))
    assert all(np.isfinite(v) for m in result.values() for v in (m.values() if isinstance(m, dict) else [m]))
    assert ("spearman" in result) == (mode != "plain")


def test_training_sees_what_its_mode_may():
    preset = lambda mode: PAPER.preset("smoke", {"mode": mode})
    crops = {mode: training_crops(preset(mode))[0] for mode in MODES}
    assert crops["unsupervised"].large is crops["unsupervised"].small
    same = lambda small, large: any(s.shape[-1] * 2 == u.shape[-1] and torch.allclose(Downsampling(degradation_kernel(2))(u), s) for s in small for u in large)
    assert not same(crops["pseudo"].small, crops["pseudo"].large) and same(crops["supervised"].small, crops["supervised"].large)


def test_no_gradient_passes_through_the_hyper_posteriors():
    torch.manual_seed(0)
    model, y = BayeSR(2, 1, 8, 1, 8), torch.rand(1, 1, 8, 8)
    q = model.posterior(y, draw_noise(model, y))
    assert not any(t.requires_grad for t in hyper_posteriors(q, Prior()))
    held = variational_loss(q, Prior(), adaptive=False)
    hyper = bayesr.prior_means(q, Prior())
    assert all(t.unique().numel() == 1 for t in hyper) and torch.isclose(held, sum(variational_terms(q, hyper, Prior()).values()) / hyper.rho.sum())


def test_a_killed_adversarial_training_goes_on(tmp_path):
    preset = PAPER.preset("smoke", {"mode": "unsupervised", "lam": 1e-3, "gan_width": 2})
    small = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))

    def run(name, *stops):
        for stop in stops:                                                       # everything is made anew, as after a crash
            torch.manual_seed(stop)
            model = set_kernel(BayeSR(2, 1, 4, 1, 8), degradation_kernel(2))
            rival = Adversary(bayesian_loss(preset, Prior()), 1, 2, 1e-3, 1e-3)
            if stop == stops[0]:
                model.load_state_dict(first[0])
                rival.judges.load_state_dict(first[1])

            def batches(step, rank, world, stop=stop):
                if step == stop:
                    raise KeyboardInterrupt
                return small

            try:
                fit(model, batches, rival, torch.optim.Adam(model.parameters(), lr=1e-3), 6, device="cpu", hooks=(rival,), progress=False, checkpoint=tmp_path / f"{name}.pt", checkpoint_every=1)
            except KeyboardInterrupt:
                pass
        return model.state_dict() | {f"judge.{k}": v for k, v in rival.judges.state_dict().items()}

    first = set_kernel(BayeSR(2, 1, 4, 1, 8), degradation_kernel(2)).state_dict(), Adversary(None, 1, 2, 1e-3, 1e-3).judges.state_dict()
    whole, cut = run("whole", 99), run("cut", 3, 99)
    assert all(torch.equal(whole[k], cut[k]) for k in whole) and not torch.equal(whole["net_x.input.weight"], first[0]["net_x.input.weight"])


@pytest.mark.parametrize(("field", "value"), [("mode", "magic"), ("scale", 3), ("channels", 2), ("kernel_size", 9), ("kernel_size", 6), ("blur", 3.0), ("blur", -1.0), ("tau", -1.0), ("steps", 0),
                                              ("phi_n", 0.0), ("tests", ()), ("patch", 1), ("ema", 1.0), ("schedule", "never"), ("sigmas", (0,)), ("lr", 0.0)])
def test_bad_presets_are_refused_before_any_work(field, value, monkeypatch):
    monkeypatch.setattr(bayesr, "train", lambda *a: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=field if field != "blur" or value < 0 else "kernel_size"):
        experiment(PAPER.preset("small", {field: value}), 0, torch.device("cpu"))


def test_the_full_preset_is_sound_and_has_the_official_size():
    preset = PAPER.presets["paper"]
    require_sound(preset)
    model = BayeSR(**bayesr.settings(preset) | {"scale": 4, "kernel_size": 0})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_630_066
    assert sum(p.numel() for p in model.down.parameters()) == 150_656
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633


def test_constructors_and_kernels_refuse():
    for call, message in ((lambda: BayeSR(5), "scale=5"), (lambda: set_kernel(BayeSR(2, 1, 4, 1), torch.ones(8, 8)), "none that the model"), (lambda: gan_loss(torch.zeros(2), True, "hinge"), "hinge"),
                          (lambda: Prior(sigma0=-1.0), "sigma0"), (lambda: Crops([torch.rand(1, 1, 4, 4)], [torch.rand(1, 1, 8, 8)], 8, 2, True), "8 x 8"),
                          (lambda: BayeSR(2, blocks=(1, 2)), "blocks="), (lambda: BayeSR(2, width=0), "width=0"), (lambda: gaussian_kernel(5, 1.0, 0.0), "sigma_y=0.0"), (lambda: kernel_penalties(torch.rand(7, 7)), "at least 9"),
                          (lambda: degrade_each(torch.rand(2, 3, 8, 8), torch.rand(1, 1, 5, 5), 2), "one for each"), (lambda: degrade_each(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 4, 4), 2), "k odd"),
                          (lambda: train_chain(KernelChain(2, 4), [(torch.rand(1, 16, 16), torch.rand(1, 8, 8))], 1), "9 x 9"),
                          (lambda: self_loss(torch.rand(1, 1, 8, 8), BayeSR(2, 3, 4, 1)(torch.rand(1, 3, 4, 4))), "large pictures")):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(("name", "blur", "gain"), [("supervised_x2_t91", 0.0, 1.0), ("unsupervised_x2_t91", 1.2, 1.0)])
def test_weights_that_come_along_beat_bicubic(name, blur, gain):
    model = paperlib.load("bayesr", name)
    found = bayesr.score(model, dataset("photos", split="test"), PAPER.preset("small", {"blur": blur}))
    assert all(found["psnr"][k] > found["psnr_bicubic"][k] for k in found["psnr"])
    assert np.mean(list(found["psnr"].values())) > np.mean(list(found["psnr_bicubic"].values())) + gain


@GPU
def test_a_gpu_restores_what_a_cpu_does():
    torch.manual_seed(0)
    model, y = BayeSR(2, 3, 8, 2, 8, skip=True), torch.rand(1, 3, 9, 11)
    there = restore(BayeSR(2, 3, 8, 2, 8, skip=True).cuda().requires_grad_(False), y)
    assert there.is_cuda
    allow, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        assert torch.allclose(restore(model, y), restore(model.cuda(), y).cpu(), atol=1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allow
