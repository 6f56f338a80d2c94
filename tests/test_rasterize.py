"""The rasterizer of Gaussians: golden cases on every back end, agreement of gradients, determinism, odd sizes and bad input."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import torch

from paperlib.render import rasterize as page
from paperlib.render.rasterize import Rendering, project, rasterize, tile_lists

TRITON = pytest.param("triton", marks=pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed"))
NAMES = ("means", "quats", "scales", "opacities", "sh_coeffs", "w2c", "K", "background", "shifts")
CASES = ("deg0_opaque", "deg3_offcentre")


def scene(n=300, degree=2, seed=0, width=45, height=37):
    """Gaussians around the camera, in front, beside and behind; float64 leaves by name, and the size of the picture."""
    g = torch.Generator().manual_seed(seed)
    w2c = torch.eye(4, dtype=torch.float64)
    w2c[:3, :3] = page.rotations(torch.randn(1, 4, generator=g).double())[0]
    w2c[:3, 3] = torch.tensor([0.1, -0.2, 2.5])
    K = torch.tensor([[48.0, 0, 0.45 * width], [0, 52.0, 0.55 * height], [0, 0, 1]], dtype=torch.float64)
    values = (torch.rand(n, 3, generator=g) * 5 - 2.5, 3 * torch.randn(n, 4, generator=g), (0.6 * torch.randn(n, 3, generator=g) - 2.3).exp(), 0.05 + 0.9 * torch.rand(n, generator=g),
              0.4 * torch.randn(n, (degree + 1) ** 2, 3, generator=g), w2c, K, torch.tensor([0.2, 0.5, 0.9]), torch.zeros(n, 2))
    return dict(zip(NAMES, (v.float().double() for v in values))), width, height


def draw(given, width, height, backend="numba", dtype=torch.float32, **options):
    """Return the rendering, its five channels (H, W, 5) and the leaves, on a GPU for Triton where there is one."""
    leaves = {k: v.to("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu", dtype).clone().requires_grad_() for k, v in given.items()}
    r = rasterize(*(leaves[k] for k in NAMES[:7]), width, height, leaves["background"], backend, shifts=leaves["shifts"], **options)
    return r, torch.cat([r.image, r.opacity[..., None], r.depth[..., None]], 2).double().cpu(), leaves


def gradients(given, width, height, backend, dtype, **options):
    """Return the five channels and the gradients of a random sum of them, by name."""
    probe = torch.randn(height, width, 5, generator=torch.Generator().manual_seed(9)).double()
    _, out, leaves = draw(given, width, height, backend, dtype, **options)
    return out.detach(), dict(zip(NAMES, (g.cpu() for g in torch.autograd.grad((out * probe).sum(), list(leaves.values())))))


def off(a, b):
    """Return the relative L2 difference."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_a_picture_changed_in_place_changes_no_gradient():
    given, width, height = scene(200)
    _, wanted = gradients(given, width, height, "numba", torch.float32)
    probe = torch.randn(height, width, 5, generator=torch.Generator().manual_seed(9)).double()
    r, out, leaves = draw(given, width, height)
    r.image.detach().clamp_(0, 0.2)
    found = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
    assert all(torch.equal(a, wanted[k]) for a, k in zip(found, NAMES))


def test_quaternions_of_any_norm_in_float64():
    given, width, height = scene(200)
    plain = draw(given, width, height, dtype=torch.float64)[1]
    for norm in (1e-60, 1e60):
        assert torch.allclose(draw(given | {"quats": norm * given["quats"]}, width, height, dtype=torch.float64)[1], plain, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [({"quats": np.ones((200, 4))}, "quats: expected a tensor, got ndarray"), ({"sh_coeffs": [1.0]}, "sh_coeffs: expected a tensor, got list"),
                                                 ({"background": None}, "background: expected a tensor or an array, got NoneType"), ({"means": torch.zeros(200, 3).half()}, "float16")])
def test_wrong_types_are_named(change, message):
    given, width, height = scene(200)
    given = given | change
    with pytest.raises(ValueError, match=message):
        rasterize(*(given[k] for k in NAMES[:7]), width, height, given["background"])


@pytest.mark.parametrize("backend, dtype", [("dense", torch.float64), ("dense", torch.float32), ("tiles", torch.float32), ("numba", torch.float32), pytest.param(*TRITON.values, torch.float32, marks=TRITON.marks)])
@pytest.mark.parametrize("case", CASES)
def test_golden(shared, case, backend, dtype):
    z, card = np.load(shared / f"golden/splat__{case}.npz"), json.loads((shared / f"golden/splat__{case}.json").read_text())
    given = {k[6:]: torch.from_numpy(z[k]) for k in z.files if k.startswith("input.")}
    given = {k: v.to("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu") for k, v in given.items()}
    leaves = [given[k].to(dtype).requires_grad_() for k in NAMES[:5]]
    r = rasterize(*leaves, given["w2c"], given["K"], card["width"], card["height"], given["background"], backend)
    ((r.image * given["weight_image"]).sum() + (r.opacity * given["weight_opacity"]).sum()).backward()
    for ours, key in ((r.image, "image"), (r.opacity, "opacity"), (r.depth, "depth_sum")):
        assert np.quantile(np.abs(ours.detach().cpu().numpy() - z[f"output.{key}"]), 0.999) < (1e-12 if dtype == torch.float64 else 1e-5), key
    for leaf, key in zip(leaves, NAMES):
        assert off(leaf.grad.cpu(), torch.from_numpy(z[f"grad.{key}"])) < (1e-12 if dtype == torch.float64 else 2e-5), key


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("antialiased", [False, True])
def test_numba_agrees_with_dense_in_all_gradients(degree, antialiased):
    given, width, height = scene(degree=degree, seed=degree)
    plain, wanted = gradients(given, width, height, "dense", torch.float64, antialiased=antialiased)
    ours, grads = gradients(given, width, height, "numba", torch.float32, antialiased=antialiased)
    assert (ours - plain).abs().quantile(0.999) < 1e-4 * plain.abs().max()
    for name in NAMES:
        assert off(grads[name], wanted[name]) < 2e-3, name


def test_numba_agrees_with_dense_to_float32_where_no_pixel_sits_on_a_threshold():
    given, width, height = scene(40, seed=3)
    given["opacities"].fill_(0.3)
    plain, wanted = gradients(given, width, height, "dense", torch.float64)
    ours, grads = gradients(given, width, height, "numba", torch.float32)
    assert (ours - plain).abs().max() < 2e-5
    assert all(off(grads[k], wanted[k]) < 1e-4 for k in NAMES), {k: off(grads[k], wanted[k]) for k in NAMES}


@pytest.mark.parametrize("backend", ["tiles", TRITON])
def test_other_back_ends_agree_with_numba(backend):
    given, width, height = scene(25, degree=1, seed=4, width=20, height=18)
    ours, wanted = gradients(given, width, height, "numba", torch.float32)
    other, grads = gradients(given, width, height, backend, torch.float32)
    assert (ours - other).abs().max() < 1e-4
    assert all(off(grads[k], wanted[k]) < 1e-4 for k in NAMES), {k: off(grads[k], wanted[k]) for k in NAMES}


def test_the_same_bits_whatever_the_threads_and_in_ten_runs():
    given, width, height = scene(2000)
    most, threads = numba.config.NUMBA_NUM_THREADS, torch.get_num_threads()
    if most == 1:
        pytest.skip("one thread: nothing to compare")
    found = []
    try:
        for run in range(10):
            torch.set_num_threads(1 + run % most)  # the compiled loops follow
            found.append(gradients(given, width, height, "numba", torch.float32))
            assert numba.get_num_threads() == 1 + run % most
    finally:
        torch.set_num_threads(threads)
    for out, grads in found[1:]:
        assert torch.equal(out, found[0][0])
        assert all(torch.equal(grads[k], found[0][1][k]) for k in NAMES)


@pytest.mark.parametrize("width, height", [(1, 1), (16, 16), (17, 15), (1, 50), (33, 64)])
def test_any_size_of_picture(width, height):
    given, _, _ = scene(60, width=width, height=height)
    plain, wanted = gradients(given, width, height, "dense", torch.float64)
    for backend, dtype in (("numba", torch.float32), ("tiles", torch.float64)):
        ours, grads = gradients(given, width, height, backend, dtype)
        assert (ours - plain).abs().quantile(0.99) < 1e-4 * max(plain.abs().max(), 1), backend
        assert off(grads["means"], wanted["means"]) < 2e-3, backend


def test_equal_depths_keep_the_order_of_their_indices():
    given, width, height = scene(200, degree=0)
    given["means"][:] = torch.tensor([0.05, 0.0, 0.0])          # all at one place: only the colours and sizes differ
    given["w2c"][:3, :3] = torch.eye(3)
    outs = [draw(given, width, height, backend)[1].detach() for backend in ("numba", "tiles", "dense")]
    assert max((o - outs[0]).abs().quantile(0.999).item() for o in outs) < 1e-5


def test_a_pixel_stops_before_the_splat_that_would_end_its_light():
    n = 300
    given, width, height = scene(n, degree=0)
    given["w2c"][:3, :3], given["w2c"][:3, 3] = torch.eye(3), 0
    given["means"][:] = torch.stack([torch.zeros(n), torch.zeros(n), torch.linspace(2, 4, n)], 1)
    given["scales"].fill_(300.0)                                              # so wide that alpha is a half at every pixel
    given["opacities"].fill_(0.5)
    given["sh_coeffs"].fill_(0.0)
    r, out, _ = draw(given, width, height)
    assert torch.allclose(r.opacity, torch.full_like(r.opacity, 1 - 0.5**13), atol=1e-5)     # 0.5^13 > 1e-4 > 0.5^14, and they are 6e-5 apart
    plain, wanted = gradients(given, width, height, "dense", torch.float64)
    ours, grads = gradients(given, width, height, "numba", torch.float32)
    assert (ours - plain).abs().quantile(0.99) < 1e-4
    assert (grads["opacities"][40:] == 0).all() and off(grads["sh_coeffs"], wanted["sh_coeffs"]) < 1e-3


def extreme(name):
    """Return a scene that is legal and unkind."""
    given, width, height = scene(60)
    if name == "no gaussians":
        given = {k: v[:0] if k in (*NAMES[:5], "shifts") else v for k, v in given.items()}
    elif name == "all behind":
        given["w2c"][2] = torch.tensor([0, 0, 0, -3.0])
        given["w2c"][:3, :3] = torch.eye(3)
        given["means"][:, 2] = -1
    elif name == "far to the side":
        given["w2c"][:3, 3] = torch.tensor([1000.0, 0, 3])
    elif name == "at the camera":
        given["means"][:] = -torch.linalg.solve(given["w2c"][:3, :3], given["w2c"][:3, 3])
    elif name == "flat":
        given["scales"][:, 0] = 0
    elif name == "points":
        given["scales"][:] = 0
    elif name == "enormous":
        given["scales"][:] = 1e6
    elif name == "needles":
        given["scales"][:] = torch.tensor([1e3, 1e-9, 1e-9])
    elif name == "quaternions of any norm":
        given["quats"] *= torch.logspace(-30, 30, 60)[:, None].double()
    elif name == "transparent":
        given["opacities"][:] = 0
    elif name == "opaque":
        given["opacities"][:] = 1
    elif name == "far away":
        given["means"] *= 1e30
    elif name == "long focal length":
        given["K"][0, 0] = given["K"][1, 1] = 1e7
    return given, width, height


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", ["no gaussians", "all behind", "far to the side", "at the camera", "flat", "points", "enormous", "needles", "quaternions of any norm",
                                  "transparent", "opaque", "far away", "long focal length"])
def test_unkind_scenes_give_finite_pictures_and_gradients(name, antialiased):
    given, width, height = extreme(name)
    out, grads = gradients(given, width, height, "numba", torch.float32, antialiased=antialiased)
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads.values()), name
    plain = draw(given, width, height, "dense", torch.float64, antialiased=antialiased)[1]
    if name in ("no gaussians", "all behind", "far to the side", "at the camera", "transparent"):
        assert torch.equal(out[..., :3].float(), given["background"].float().expand(height, width, 3)) and out[..., 3:].abs().max() == 0
    if name not in ("needles", "enormous", "long focal length"):       # there float32 positions decide which side of a threshold a pixel is on
        assert (out - plain).abs().quantile(0.99) < 1e-3, name


def test_no_row_of_a_long_needle_is_left_out():
    """Off the picture's edge and over the whole of it: float32 leaves nothing of the conic's determinant."""
    given, width, height = extreme("needles")
    given["scales"][:, 0] = 100.0
    cam = page.kernels.camera_array(given["w2c"].numpy(), given["K"].numpy(), width, height)
    packed, radii, counts = np.zeros((60, 12), np.float32), np.empty(60, np.float32), np.empty(60, np.int32)
    page.kernels.project_all(*(given[k].float().numpy() for k in NAMES[:5]), np.zeros((60, 2), np.float32), cam, 9, False, width, height, packed, radii, counts)
    splats = torch.from_numpy(packed[radii > 0]).double()
    plain = page.composite_dense(splats[:, :2], splats[:, 2:5], splats[:, 5], splats[:, 6:9], splats[:, 9], given["background"], width, height)[0]
    ours = draw(given, width, height)[0].image
    assert len(splats) > 20 and (ours - plain).abs().max() < 2e-3                # the same float32 splats, at every pixel


def spoil(given, name, index, value):
    given[name][index] = value
    return given


BAD = {
    "a quaternion of norm zero": (lambda g: spoil(g, "quats", 5, 0.0), "quats: 1 of norm zero, first Gaussian 5"),
    "NaN in the means": (lambda g: spoil(g, "means", 4, torch.nan), "means: holds values that are not finite, first in Gaussian 4"),
    "an infinite scale": (lambda g: spoil(g, "scales", (2, 1), torch.inf), "scales: holds values that are not finite, first in Gaussian 2"),
    "a negative scale": (lambda g: spoil(g, "scales", 0, -0.1), "scales: expected activated values, at least 0, got -0.1"),
    "logits for opacities": (lambda g: spoil(g, "opacities", 0, -2.0), "opacities: expected activated values, 0 to 1, got -2"),
    "NaN in the coefficients": (lambda g: spoil(g, "sh_coeffs", (1, 0, 0), torch.nan), "sh_coeffs: holds values that are not finite, first in Gaussian 1"),
    "a singular pose": (lambda g: spoil(g, "w2c", 2, 0.0), "w2c: its 3x3 part is singular"),
    "a transposed pose": (lambda g: g | {"w2c": g["w2c"].mT}, "w2c: its last row should be 0, 0, 0, 1"),
    "a pose with NaN": (lambda g: spoil(g, "w2c", (0, 3), torch.nan), "w2c: holds values that are not finite"),
    "no focal length": (lambda g: spoil(g, "K", (0, 0), 0.0), "K: expected"),
    "a background of NaN": (lambda g: spoil(g, "background", 0, torch.nan), "background: holds values that are not finite"),
    "too few scales": (lambda g: g | {"scales": g["scales"][:3]}, "scales: expected (300, 3) for 300 means, got (3, 3)"),
    "five coefficients": (lambda g: g | {"sh_coeffs": g["sh_coeffs"][:, :5]}, "sh_coeffs: expected (300, 1, 4, 9 or 16, 3), got (300, 5, 3)"),
    "a flat list of means": (lambda g: g | {"means": g["means"].flatten()}, "means: expected a float tensor (N, 3)"),
    "complex scales": (lambda g: g | {"scales": g["scales"].to(torch.complex64)}, "scales: expected a tensor, got torch.complex64"),
    "whole numbers": (lambda g: g | {"means": g["means"].long()}, "means: expected a float tensor (N, 3), got torch.int64"),
    "a pose of the wrong shape": (lambda g: g | {"w2c": g["w2c"][:3, :3]}, "w2c: expected (4, 4) or (3, 4), got (3, 3)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what):
    change, message = BAD[what]
    given, width, height = scene()
    given = change(given)
    with pytest.raises(ValueError) as error:
        rasterize(*(given[k] for k in NAMES[:7]), width, height, given["background"])
    assert message in str(error.value)


def test_bad_options_are_named():
    given, width, height = scene(5)
    five = [given[k] for k in NAMES[:7]]
    for size, message in ((0, "width: expected"), (3.5, "got 3.5"), (True, "got True")):
        with pytest.raises(ValueError, match=message):
            rasterize(*five, size, height, given["background"])
    with pytest.raises(ValueError, match="expected one of auto, dense, tiles, numba, triton, gsplat, got 'cuda'"):
        rasterize(*five, width, height, given["background"], "cuda")
    for degree in (3, 1.0, "1"):
        with pytest.raises(ValueError, match="sh_degree: expected 0 to 2"):
            rasterize(*five, width, height, given["background"], sh_degree=degree)
    with pytest.raises(ValueError, match="shifts: expected a tensor, got list"):
        rasterize(*five, width, height, given["background"], shifts=[[0.0, 0.0]] * 5)
    with pytest.raises(ValueError, match="gsplat"):
        rasterize(*five, width, height, given["background"], "gsplat")


def test_fewer_bands_leave_the_others_without_gradient():
    given, width, height = scene()
    _, grads = gradients(given, width, height, "numba", torch.float32, sh_degree=1)
    assert (grads["sh_coeffs"][:, 4:] == 0).all() and grads["sh_coeffs"][:, :4].abs().max() > 0
    lower = given | {"sh_coeffs": given["sh_coeffs"][:, :4]}
    assert torch.equal(draw(given, width, height, sh_degree=1)[1], draw(lower, width, height)[1])


def test_dtypes_and_shapes_of_what_comes_out():
    given, width, height = scene(50)
    r, _, _ = draw(given, width, height, dtype=torch.float64)
    assert isinstance(r, Rendering) and r.image.dtype == torch.float64 and r.image.shape == (height, width, 3) and r.opacity.shape == r.depth.shape == (height, width)
    assert r.radii.shape == (50,) and not r.radii.requires_grad
    plain = draw(given, width, height, "dense", torch.float64)[0]
    assert torch.equal(plain.radii > 0, r.radii > 0) and torch.allclose(plain.radii, r.radii, rtol=1e-5)
    short = rasterize(*(given[k].float() for k in NAMES[:5]), given["w2c"][:3].numpy(), given["K"], np.int64(width), height, given["background"])   # a 3x4 pose, NumPy, mixed precision
    assert torch.allclose(short.image, r.image.float(), atol=1e-6)


def test_a_pose_of_three_rows_gets_three_rows_and_a_change_in_place_is_noticed():
    given, width, height = scene(50)
    full = gradients(given, width, height, "numba", torch.float32)[1]["w2c"]
    three = gradients(given | {"w2c": given["w2c"][:3]}, width, height, "numba", torch.float32)[1]["w2c"]
    assert torch.equal(three, full[:3]) and (full[3] == 0).all()
    _, out, leaves = draw(given, width, height)
    with torch.no_grad():
        leaves["means"] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_gradient_to_the_shifts_is_the_pull_in_pixels():
    given, width, height = scene(80, seed=6)
    _, grads = gradients(given, width, height, "numba", torch.float32)
    moved = {k: v.clone() for k, v in given.items()}
    step = torch.randn(80, 2, generator=torch.Generator().manual_seed(1)).double()
    moved["shifts"] += 1e-3 * step
    probe = torch.randn(height, width, 5, generator=torch.Generator().manual_seed(9)).double()
    ends = [(draw(g, width, height, "dense", torch.float64)[1] * probe).sum().item() for g in (moved, given)]
    assert (ends[0] - ends[1]) / 1e-3 == pytest.approx((grads["shifts"].double() * step).sum().item(), rel=0.05)


def test_moving_the_camera_is_moving_the_world():
    given, width, height = scene(seed=2)
    _, grads = gradients(given, width, height, "numba", torch.float32)
    by_pose, by_means = grads["w2c"][:3, 3].double(), grads["means"].double().sum(0)
    assert torch.allclose(given["w2c"][:3, :3].T @ by_pose, by_means, rtol=1e-3, atol=1e-3 * by_means.norm().item())   # mu + d and t + W d: one and the same


def test_the_compiled_lists_are_no_longer_than_those_by_boxes():
    given, width, height = scene(1000, width=200, height=150)
    five = [given[k] for k in NAMES[:7]]
    splats = project(*five, width, height)
    lists = tile_lists(splats, width, height)
    assert int(lists.counts.sum()) == len(lists.ids) == len(lists.slots) == int(lists.touched.sum())
    packed, radii, counts = np.zeros((1000, 12), np.float32), np.empty(1000, np.float32), np.empty(1000, np.int32)
    cam = page.kernels.camera_array(given["w2c"].numpy(), given["K"].numpy(), width, height)
    arrays = [given[k].float().numpy() for k in NAMES[:5]]
    page.kernels.project_all(*arrays, np.zeros((1000, 2), np.float32), cam, 9, False, width, height, packed, radii, counts)
    assert 0.5 * len(lists.ids) < counts.sum() < len(lists.ids)


def test_two_threads_and_no_fork(monkeypatch):
    given, width, height = scene()
    wanted, found = draw(given, width, height)[1], []
    workers = [threading.Thread(target=lambda: found.append(draw(given, width, height)[1])) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(found) == 3 and all(torch.equal(f, wanted) for f in found)
    monkeypatch.setattr("paperlib.core.compiled.PROCESS", -1)
    with pytest.raises(RuntimeError, match="do not survive a fork"):
        draw(given, width, height)


def test_the_triton_page_is_imported_without_triton():
    hidden = "import sys; sys.modules['triton'] = None; from paperlib.render import rasterize, rasterize_triton; print('imported')"
    found = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "imported", found.stderr[-500:]


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
def test_the_interpreter_chosen_too_late_is_named():
    late = "import triton, os; os.environ['TRITON_INTERPRET'] = '1'; from paperlib.render.rasterize_triton import make_kernels; make_kernels()"
    found = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=False, env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"})
    assert found.stderr.strip().splitlines()[-1].startswith("RuntimeError: TRITON_INTERPRET=1 was set after"), found.stderr[-500:]


def compile_for_h100():
    """Compile the three kernels to machine code for a GPU that need not be there; in a process of its own, without the interpreter."""
    import os

    os.environ.pop("TRITON_INTERPRET", None)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paperlib.render.rasterize_triton import make_kernels

    kinds = {"width": "i32", "height": "i32", "across": "i32", "ids": "*i64", "slots": "*i64", "starts": "*i64", "used": "*i64"}
    sizes = {"PIXELS": 256, "SIDE": 16, "WIDTH": 16}
    done = []
    for kernel in make_kernels():
        signature = {name: "constexpr" if name in sizes else kinds.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs={k: v for k, v in sizes.items() if k in signature})
        done.append(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
    return done


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
def test_the_triton_kernels_compile_for_a_gpu():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert min(pool.apply(compile_for_h100)) > 1000
