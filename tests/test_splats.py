"""Files of Gaussians: layouts that others write, round trips, and files that are not what they seem."""

from __future__ import annotations

import dataclasses
from dataclasses import fields

import numpy as np
import pytest
import torch

from paperlib.core.splats import Gaussians, read_ply, read_splat, write_ply, write_splat
from paperlib.render.rasterize import rasterize


def gaussians(n=7, degree=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Gaussians(torch.randn(n, 3, generator=g), torch.randn(n, 4, generator=g), torch.randn(n, 3, generator=g) - 2, torch.randn(n, generator=g),
                     0.3 * torch.randn(n, (degree + 1) ** 2, 3, generator=g))


def same(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Gaussians))


def ply(path, columns, values, form="binary_little_endian", kinds=None, extra=""):
    """Write a PLY by hand, as other programs do."""
    kinds = kinds or ["float"] * len(columns)
    head = f"ply\nformat {form} 1.0\ncomment by hand\nelement vertex {len(values)}\n" + "".join(f"property {k} {c}\n" for k, c in zip(kinds, columns)) + extra + "end_header\n"
    if form == "ascii":
        path.write_text(head + "\n".join(" ".join(repr(float(v)) for v in row) for row in values) + "\n")
    else:
        sign = "<" if "little" in form else ">"
        row = np.dtype([(c, sign + {"float": "f4", "double": "f8", "uchar": "u1"}[k]) for c, k in zip(columns, kinds)])
        path.write_bytes(head.encode() + np.array([tuple(v) for v in values], row).tobytes())


PLAIN = ["x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3", "f_dc_0", "f_dc_1", "f_dc_2"]


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("rest", [0, 9, 24, 45])
def test_ply_of_any_degree_order_and_format(tmp_path, form, rest):
    columns = [*(f"f_rest_{k}" for k in range(rest)), *PLAIN]          # another order, no normals
    values = np.arange(3 * len(columns)).reshape(3, -1) / 8
    ply(tmp_path / "a.ply", columns, values, form)
    found, at = read_ply(tmp_path / "a.ply"), {c: k for k, c in enumerate(columns)}
    assert found.means[1].tolist() == [values[1, at[c]] for c in "xyz"] and found.quats[2, 3] == values[2, at["rot_3"]]
    for k in range(rest // 3):
        for ch in range(3):
            assert found.sh_coeffs[1, 1 + k, ch] == values[1, at[f"f_rest_{ch * rest // 3 + k}"]]


def test_ply_with_other_types_and_elements(tmp_path):
    ply(tmp_path / "a.ply", [*PLAIN, "red"], np.ones((2, 15)), kinds=["double"] * 14 + ["uchar"], extra="element face 1\nproperty list uchar int vertex_indices\n")
    assert len(read_ply(tmp_path / "a.ply")) == 2


def test_a_comment_does_not_end_the_header(tmp_path):
    write_ply(tmp_path / "a.ply", gaussians())
    (tmp_path / "b.ply").write_bytes((tmp_path / "a.ply").read_bytes().replace(b"element", b"comment no end_header yet\nelement", 1))
    assert torch.equal(read_ply(tmp_path / "b.ply").sh_coeffs, gaussians().sh_coeffs)


def test_ply_round_trip_is_exact_also_without_gaussians(tmp_path):
    for degree in range(4):
        for n in (0, 1, 50):
            scene = gaussians(n, degree)
            write_ply(tmp_path / "a.ply", scene)
            assert same(read_ply(tmp_path / "a.ply"), scene)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_a_file_draws_as_the_scene_does(tmp_path):
    scene = gaussians(30)
    write_ply(tmp_path / "a.ply", scene)
    w2c, K = torch.eye(4), torch.tensor([[30.0, 0, 16], [0, 30, 16], [0, 0, 1]])
    w2c[2, 3] = 4
    a, b = (rasterize(*g.activated(), w2c, K, 32, 32, torch.zeros(3)).image for g in (scene, read_ply(tmp_path / "a.ply")))
    assert torch.equal(a, b) and a.max() > 0.1


BAD = {
    "nothing": (b"", "not a PLY file"),
    "a picture": (b"\x89PNG\r\n", "not a PLY file"),
    "a header without an end": (b"ply\nformat ascii 1.0\nelement vertex 1\n", "not a PLY file"),
    "faces first": (b"ply\nformat ascii 1.0\nelement face 1\nproperty float x\nend_header\n1\n", "expected a format and vertices first"),
    "an unknown format": (b"ply\nformat middle_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "expected a format and vertices first"),
    "a list in a vertex": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n1\n", "is not a number"),
    "text cut short": (b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1\n2\n", "cut short: the header promises 3 vertices, the file holds 2"),
    "a count that is no number": (b"ply\nformat ascii 1.0\nelement vertex many\nproperty float x\nend_header\n1\n", "incomplete, or its count is no number"),
    "a property without a name": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float\nend_header\n1\n", "'property float' is incomplete"),
    "a name twice": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n1 1\n", "a.ply: two properties of a vertex have one name: x, x"),
    "words for numbers": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nabc\n", "a vertex is no row of numbers"),
    "a point cloud": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nproperty uchar red\nend_header\n1 2 3 4\n", "a point cloud, not Gaussians"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_ply_is_named(tmp_path, what):
    data, message = BAD[what]
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_ply(tmp_path / "a.ply")


def test_ply_with_a_wrong_number_of_coefficients_or_cut_short(tmp_path):
    path = tmp_path / "a.ply"
    ply(path, [*PLAIN, "f_rest_0"], np.ones((2, 15)))
    with pytest.raises(ValueError, match="1 properties f_rest"):
        read_ply(path)
    write_ply(path, gaussians())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short: the header promises 7 vertices, the file holds 6"):
        read_ply(path)
    with pytest.raises(FileNotFoundError):
        read_ply(tmp_path / "none.ply")


def test_splat_keeps_what_it_can(tmp_path):
    scene = gaussians(200)
    write_splat(tmp_path / "a.splat", scene)
    assert (tmp_path / "a.splat").stat().st_size == 200 * 32
    back = read_splat(tmp_path / "a.splat")
    visible = back.log_scales.double().sum(1).exp() * back.logits.double().sigmoid()
    assert (visible[1:] <= visible[:-1] * 1.3).all()                       # most visible first, but for the rounding of the opacity
    order = torch.cdist(back.means, scene.means).argmin(1)
    assert (back.logits.sigmoid() - scene.logits.sigmoid()[order]).abs().max() < 0.51 / 255
    assert len(back.sh_coeffs[0]) == 1
    assert torch.allclose(back.log_scales, scene.log_scales[order], atol=1e-5)
    assert ((back.sh_coeffs[:, 0] - scene.sh_coeffs[order, 0].clamp(-0.5 / 0.28209479, 0.5 / 0.28209479)).abs() < 0.51 / 255 / 0.28209479).all()
    turned = torch.nn.functional.normalize(scene.quats[order].double(), dim=1)
    assert (back.quats.double() - turned.clamp(-1, 127 / 128)).abs().max() < 0.51 / 128


def test_splat_refuses_what_is_not_finite_and_keeps_tiny_quaternions(tmp_path):
    scene = gaussians(5)
    write_splat(tmp_path / "a.splat", dataclasses.replace(scene, quats=1e-25 * scene.quats))
    write_splat(tmp_path / "b.splat", scene)
    assert (tmp_path / "a.splat").read_bytes() == (tmp_path / "b.splat").read_bytes()
    bad = scene.means.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match="means hold values that are not finite"):
        write_splat(tmp_path / "c.splat", dataclasses.replace(scene, means=bad))
    assert not (tmp_path / "c.splat").exists()
    none = scene.quats.clone()
    none[3] = 0
    with pytest.raises(ValueError, match="1 of norm zero, first Gaussian 3; a rotation needs a direction, nothing was written"):
        write_splat(tmp_path / "c.splat", dataclasses.replace(scene, quats=none))
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize(("at", "value"), [(0, np.nan), (2, np.inf), (3, -1.0), (5, np.nan)])
def test_what_is_no_splat_is_named(tmp_path, at, value):
    write_splat(tmp_path / "a.splat", gaussians(4))
    records = np.fromfile(tmp_path / "a.splat", "<f4").reshape(4, 8)
    records[2, at] = value
    records.tofile(tmp_path / "a.splat")
    with pytest.raises(ValueError, match="record 2 of 4 has a position or a scale that is not finite, or a scale below 0"):
        read_splat(tmp_path / "a.splat")


def test_a_splat_of_no_extent_is_read(tmp_path):
    scene = dataclasses.replace(gaussians(3), log_scales=torch.full((3, 3), -1e3))   # its scale is 0 in float32
    write_splat(tmp_path / "a.splat", scene)
    assert not read_splat(tmp_path / "a.splat").activated()[2].any()


def test_splat_extremes_and_no_gaussians(tmp_path):
    scene = gaussians(2, 0)
    scene.logits[:] = torch.tensor([40.0, -40.0])
    write_splat(tmp_path / "a.splat", scene)
    back = read_splat(tmp_path / "a.splat")
    assert back.logits.isfinite().all() and sorted((255 * back.logits.sigmoid()).round().tolist()) == [0, 255]
    write_splat(tmp_path / "a.splat", gaussians(0))
    assert len(read_splat(tmp_path / "a.splat")) == 0


def test_shapes_are_checked():
    scene = gaussians()
    with pytest.raises(ValueError, match=r"quats: expected \(7, 4\), got \(6, 4\)"):
        Gaussians(scene.means, scene.quats[:6], scene.log_scales, scene.logits, scene.sh_coeffs)
    with pytest.raises(ValueError, match="sh_coeffs: expected"):
        Gaussians(scene.means, scene.quats, scene.log_scales, scene.logits, scene.sh_coeffs[:, :3])
