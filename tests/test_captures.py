"""Readers of pictures with cameras: folders written here by hand, a model written by COLMAP, recorded sets, and folders that are not what they seem."""

from __future__ import annotations

import base64
import io
import json
import lzma
import math
import os
import re
import struct
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from paperlib.core import captures
from paperlib.core.captures import (
    ColmapCamera,
    Lens,
    capture,
    colmap_model,
    distort,
    doctor,
    findings_table,
    focus,
    frusta,
    own_scene,
    poses_from_photos,
    read_blender,
    read_capture,
    read_colmap,
    read_llff,
    read_transforms,
    show_cameras,
    shrink,
    straighten,
    to_colmap,
    train_and_held,
    write_colmap,
    write_transforms,
)
from paperlib.core.scenes import Camera, opengl_to_opencv, orbit_cameras, project, sample_at


@pytest.fixture(scope="module")
def scene():
    return own_scene(40, views=10, n_points=200)


@pytest.fixture(scope="module")
def sound():
    """A scene with enough views for the doctor."""
    return own_scene(40, views=24)


def recorded(name, **options):
    """Return a recorded set, or skip; in CI it must be there."""
    try:
        return capture(name, **options)
    except FileNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error).splitlines()[0])


def premultiplied(x):
    return torch.cat([x[..., :3] * x[..., 3:], x[..., 3:]], -1)


def png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(pixels) * 255).round().astype(np.uint8)).save(path)


def gl(c, i):
    return opengl_to_opencv(c.camera.c2w[i].double()).tolist()


def blender(folder, c, split="train"):
    """Write a scene as NeRF's Blender export does: an angle, names without ending, poses with OpenGL's axes."""
    angle = 2 * math.atan(0.5 * c.camera.width / c.camera.K[0, 0, 0].item())
    frames = []
    for i in range(len(c)):
        png(folder / split / f"r_{i}.png", c.images[i])
        frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.0125, "transform_matrix": gl(c, i)})
    (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return folder


def ngp(folder, c, sub="images", **fields):
    """Write a scene as instant-ngp's script does; fields replace those of the file."""
    K = c.camera.K[0]
    data = {"fl_x": K[0, 0].item(), "fl_y": K[1, 1].item(), "cx": K[0, 2].item(), "cy": K[1, 2].item(), "w": float(c.camera.width), "h": float(c.camera.height)}
    frames = []
    for i in range(len(c)):
        png(folder / sub / f"{i:04d}.png", c.images[i])
        frames.append({"file_path": f"images/{i:04d}.png", "sharpness": 30.0, "transform_matrix": gl(c, i)})
    data = {**data, "frames": frames, **fields}
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return folder


def edit(folder, change, file="transforms.json"):
    """Change the frames' file in place."""
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))
    return folder


# ---------------------------------------------------------------- the object


def test_a_capture_says_what_does_not_fit(scene):
    for change, words in (({"names": scene.names[:3]}, "as many of each"), ({"images": scene.images[..., :2]}, "as many of each"),
                          ({"images": scene.images * 2}, "in .0, 1"), ({"images": scene.images.masked_fill(scene.images > 0.5, math.nan)}, "in .0, 1"),
                          ({"points": None}, "or neither"), ({"colors": scene.colors[:5]}, "or neither"), ({"points": scene.points * math.nan}, "not finite"), ({"near": 5.0}, "near < far"), ({"near": 0.0}, "near < far"),
                          ({"far": math.inf}, "near < far"), ({"images": scene.images[:0], "names": (), "camera": scene.camera[[]]}, "at least one")):
        with pytest.raises(ValueError, match=words):
            replace(scene, **change)


def test_views_are_picked_by_number_slice_and_list(scene):
    assert scene[3].names == ("view_003",) and scene[-1].names == ("view_009",) and len(scene[2:5]) == 3
    some = scene[[7, 0]]
    assert some.names == ("view_007", "view_000") and torch.equal(some.images, scene.images[[7, 0]]) and torch.equal(some.camera.c2w, scene.camera.c2w[[7, 0]])
    assert torch.equal(some.depth, scene.depth[[7, 0]])
    assert scene[np.int64(3)].names == ("view_003",)
    with pytest.raises(IndexError):
        scene[10]


def test_every_eighth_view_is_held_out(scene):
    train, held = scene.split()
    assert held.names == ("view_000", "view_008") and len(train) == 8 and not set(train.names) & set(held.names)
    for bad, n in ((1, 10), (0, 10), (8, 1)):
        with pytest.raises(ValueError, match="at least two views"):
            scene[list(range(n))].split(bad)


def test_backgrounds(scene):
    assert torch.equal(scene.on("white"), scene.on(1.0)) and torch.equal(scene.on("black"), premultiplied(scene.images)[..., :3])
    red = scene.on([1.0, 0.0, 0.0])
    assert torch.equal(red[scene.images[..., 3] == 0].unique(dim=0), torch.tensor([[1.0, 0.0, 0.0]]))
    opaque = replace(scene, images=scene.on("white"))
    assert torch.equal(opaque.on("black"), opaque.images)
    with pytest.raises(ValueError, match="'pink'"):
        scene.on("pink")


def test_extent_is_that_of_the_cameras(scene):
    p = scene.camera.position.numpy()
    assert scene.extent == pytest.approx(1.1 * max(np.linalg.norm(p - p.mean(0), axis=1)), rel=1e-5) and scene[0].extent == 0


def test_a_smaller_capture_sees_the_same(scene):
    small = scene.resized(20, 10)
    assert small.images.shape == (10, 20, 10, 4) and small.depth.shape == (10, 1, 20, 10)
    uv, _ = project(scene.points, scene.camera)
    assert torch.allclose(project(small.points, small.camera)[0], uv * torch.tensor([0.25, 0.5]), atol=1e-4)
    assert torch.allclose(small.on("white"), shrink(scene.on("white"), 20, 10), atol=1e-6)
    assert scene.resized(40, 40).images is scene.images
    for size in ((41, 40), (0, 3)):
        with pytest.raises(ValueError, match="1 x 1 to 40 x 40"):
            scene.resized(*size)


def test_areas_are_those_of_the_pixels():
    """By hand: five pixels into three, so that pixel 1 is two thirds in the first and one third in the second."""
    x = torch.tensor([0.0, 1, 0, 0, 0]).reshape(1, 1, 5, 1).expand(1, 1, 5, 3)
    assert torch.allclose(shrink(x, 1, 3)[0, 0, :, 0], torch.tensor([0.4, 0.2, 0.0]), atol=1e-6)
    clear = torch.tensor([[1.0, 0, 0, 1], [0.0, 1, 0, 0]]).reshape(1, 1, 2, 4)              # red, and a green that is not there
    assert torch.allclose(shrink(clear, 1, 1).flatten(), torch.tensor([1.0, 0, 0, 0.5]))


def test_our_scene_is_exact_and_repeats(scene):
    again = own_scene(40, views=10, n_points=200)
    assert torch.equal(again.images, scene.images) and torch.equal(again.points, scene.points) and again.synthetic and "synthetic" in again.source
    assert not torch.equal(own_scene(40, 1, views=10).images, scene.images)
    uv, z = project(scene.points, scene.camera)
    seen = (sample_at(scene.depth, uv[:, None], "nearest")[:, 0, 0] / z - 1).abs() < 0.01
    off = (sample_at(scene.images[..., :3].movedim(3, 1), uv[:, None])[:, :, 0].mT - scene.colors).abs().mean(-1)
    assert seen.sum(0).min() >= 2 and off[seen].median() < 0.4 * off[~seen].nanmedian() and scene.near < z.min() and scene.far > z.max()
    edge = (scene.images[..., 3] > 0) & (scene.images[..., 3] < 1)
    assert edge.any() and (scene.images[..., :3][scene.images[..., 3] == 0] == 0).all()


def test_another_device_or_dtype_keeps_all(scene):
    moved = scene.to("cpu")
    assert moved.names == scene.names and torch.equal(moved.points, scene.points) and torch.equal(moved.camera.K, scene.camera.K)


# ---------------------------------------------------------------- Blender, instant-ngp, nerfstudio


def test_a_blender_scene_comes_back(tmp_path, scene):
    blender(tmp_path, scene)
    back = read_capture(tmp_path)
    assert back.names == tuple(f"train/r_{i}" for i in range(10)) and (back.near, back.far) == (2.0, 6.0) and not back.synthetic
    assert torch.allclose(back.camera.c2w, scene.camera.c2w, atol=1e-6) and torch.allclose(back.camera.K, scene.camera.K, atol=1e-4)
    assert (premultiplied(back.images) - premultiplied(scene.images)).abs().max() < 1.01 / 255
    half = capture(tmp_path, size=20)                                                        # what the original calls half_res
    assert torch.equal(half.images, back.resized(20, 20).images) and torch.allclose(half.camera.K[0], torch.tensor([0.5, 0.5, 1.0])[:, None] * back.camera.K[0])
    assert torch.equal(capture(tmp_path, size=(20, 10)).images, back.resized(20, 10).images)
    blender(tmp_path, scene[:2], "test")
    assert len(capture(tmp_path, split="test")) == 2
    with pytest.raises(ValueError, match="'rest'"):
        read_blender(tmp_path, "rest")
    with pytest.raises(FileNotFoundError, match="transforms_val.json"):
        read_blender(tmp_path, "val")
    for size in (41, 0, (3, 99), 2.5, (2.0, 2)):
        with pytest.raises(ValueError, match="size="):
            capture(tmp_path, size=size)


def test_points_of_other_programs(tmp_path, scene):
    """Colours as floats in [0, 1], a cloud of nobody, files that are none of it; the doctor says so too."""
    ply = lambda kind, rows: f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n" + "".join(f"property {k} {n}\n" for k, n in zip(["float"] * 3 + [kind] * 3, "x y z red green blue".split())) + "end_header\n" + "\n".join(rows) + "\n"
    ngp(tmp_path, scene, ply_file_path="a.ply")
    for kind, rows, wanted in (("float", ["0 0 0 0.5 1 0"], [0.5, 1, 0]), ("float", ["0 0 0 51 255 0"], [0.2, 1, 0]), ("uchar", ["0 0 0 1 0 0"], [1 / 255, 0, 0])):
        (tmp_path / "a.ply").write_text(ply(kind, rows))
        assert np.allclose(read_transforms(tmp_path).colors, [wanted])
    (tmp_path / "a.ply").write_text(ply("uchar", []))
    assert read_transforms(tmp_path).points is None
    edit(tmp_path, lambda d: d.update(ply_file_path=5))
    with pytest.raises(ValueError, match="ply_file_path, the name of a PLY, got 5"):
        read_transforms(tmp_path)
    edit(tmp_path, lambda d: d.pop("ply_file_path"))
    np.savez(tmp_path / "sparse_points.npz", points=np.zeros((3, 3)))
    cut = (tmp_path / "sparse_points.npz").read_bytes()[:60]
    for data in (None, cut):
        if data is not None:
            (tmp_path / "sparse_points.npz").write_bytes(data)
        with pytest.raises(ValueError, match="sparse_points.npz: expected xyz and rgb"):
            read_transforms(tmp_path)
        assert doctor(tmp_path)[0].check == "reading"
    np.savez(tmp_path / "sparse_points.npz", xyz=np.zeros((3, 3), np.float32), rgb=np.full((3, 3), 0.5))
    assert (read_transforms(tmp_path).colors == 0.5).all()                       # floats up to 1 are colours here too
    for xyz, rgb, words in ((np.zeros((3, 2)), np.zeros((3, 3)), "not both"), (np.zeros((3, 3)), np.zeros((2, 3)), "not both"), (np.zeros((3, 3)), np.full((3, 3), 300), "colors of points in")):
        np.savez(tmp_path / "sparse_points.npz", xyz=xyz, rgb=rgb)
        with pytest.raises(ValueError, match=words):
            read_transforms(tmp_path)


def test_near_or_far_alone_is_taken(tmp_path, scene):
    ngp(tmp_path, scene)
    both = read_transforms(tmp_path)
    assert read_transforms(tmp_path, near=0.5).near == 0.5 and read_transforms(tmp_path, near=0.5).far == both.far
    assert read_transforms(tmp_path, far=50.0).near == both.near and read_transforms(tmp_path, far=50.0).far == 50.0


def test_sizes_splits_and_grounds_that_are_none(tmp_path, scene):
    ngp(tmp_path, scene)
    for size in (True, (10,), (10, 10, 10)):
        with pytest.raises(ValueError, match="in whole pixels"):
            read_transforms(tmp_path, size=size)
    with pytest.raises(ValueError, match="whole number every >= 2"):
        scene.split(2.5)
    with pytest.raises(ValueError, match="a number, or three"):
        scene.on((0.0, 1.0))
    for bad in ({"n_points": 0}, {"n_points": 2.5}, {"radius": 0}, {"radius": -3.0}, {"radius": 1e5}):
        with pytest.raises(ValueError, match="own_scene: expected|sparse_points: expected"):
            own_scene(8, views=2, **bad)
    none = replace(scene, points=torch.zeros(0, 3), colors=torch.zeros(0, 3))
    assert ("warning", "points") in [(f.level, f.check) for f in doctor(none)] and "nan" not in str(doctor(none))


def test_a_picture_stands_once(tmp_path, scene):
    ngp(tmp_path, scene)
    edit(tmp_path, lambda d: d["frames"].append({**d["frames"][3], "file_path": "images/0003"}))
    with pytest.raises(ValueError, match=r"0003.png more than once"):
        read_transforms(tmp_path)
    edit(tmp_path, lambda d: d["frames"][-1].update(file_path="images/../images/0003"))     # another way to the same file
    with pytest.raises(ValueError, match=r"0003.png more than once"):
        read_transforms(tmp_path)
    edit(tmp_path, lambda d: d["frames"][-1].update(file_path="/"))
    assert "1 of 11 frames have no picture" in read_transforms(tmp_path).notes[0]


def test_names_are_in_natural_order(tmp_path, scene):
    assert sorted(["r_10", "r_2", "1²2", "1²10"], key=captures._natural) == ["1²2", "1²10", "r_2", "r_10"]    # a digit to Unicode, no number to Python
    blender(tmp_path, replace(scene[[0, 1] * 6], names=tuple("ab" * 6)))
    edit(tmp_path, lambda d: d["frames"].reverse(), "transforms_train.json")
    assert read_capture(tmp_path).names == tuple(f"train/r_{i}" for i in range(12))


def test_convention_opengl_poses_are_read_as_opencv(tmp_path, scene):
    back = read_capture(ngp(tmp_path, scene))
    assert torch.allclose(back.camera.c2w, scene.camera.c2w, atol=1e-6)
    assert focus(back.camera)[1].min() > 0                                                  # they look at the scene, not away from it


def test_missing_pictures_are_left_out_and_counted(tmp_path, scene):
    ngp(tmp_path, scene)
    for i in (2, 5):
        (tmp_path / f"images/{i:04d}.png").unlink()
    back = read_capture(tmp_path)
    assert len(back) == 8 and back.expected == 10 and "2 of 10 frames have no picture, the first images/0002.png" in repr(back)
    assert torch.allclose(back.camera.c2w, scene.camera.c2w[[0, 1, 3, 4, 6, 7, 8, 9]], atol=1e-6)
    for p in (tmp_path / "images").iterdir():
        p.unlink()
    with pytest.raises(FileNotFoundError, match=r"10 pictures and none is there; the first would be .*0000\.png"):
        read_capture(tmp_path)


def test_smaller_pictures_in_another_folder_scale_the_camera(tmp_path, scene):
    ngp(tmp_path, scene, sub="images_2", w=80.0, h=80.0, fl_x=2 * scene.camera.K[0, 0, 0].item(), fl_y=2 * scene.camera.K[0, 1, 1].item(), cx=44.0, cy=38.0)
    back = read_capture(tmp_path)
    assert torch.allclose(back.camera.K[0], torch.tensor([[scene.camera.K[0, 0, 0], 0, 22.0], [0, scene.camera.K[0, 1, 1], 19.0], [0, 0, 1]]))
    (tmp_path / "images_2").rename(tmp_path / "tiny")
    with pytest.raises(FileNotFoundError, match="images= names another folder"):
        read_capture(tmp_path)
    assert len(read_capture(tmp_path, images="tiny")) == 10


def test_intrinsics_of_a_frame_come_first(tmp_path, scene):
    ngp(tmp_path, scene)
    edit(tmp_path, lambda d: d["frames"][4].update(fl_x=77.0, cx=19.0))
    K = read_capture(tmp_path).camera.K
    assert K[4, 0].tolist() == [77.0, 0, 19.0] and torch.equal(K[[0, 9]], K[[3, 5]])


def test_angles_stand_for_focal_lengths(tmp_path, scene):
    ngp(tmp_path, scene, fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None, camera_angle_x=math.pi / 2, camera_angle_y=2 * math.atan(0.5))
    assert torch.allclose(read_capture(tmp_path).camera.K[0], torch.tensor([[20.0, 0, 20], [0, 40.0, 20], [0, 0, 1]]), atol=1e-4)
    edit(tmp_path, lambda d: d.pop("camera_angle_y"))
    assert read_capture(tmp_path).camera.K[0, 1, 1] == pytest.approx(20.0)
    edit(tmp_path, lambda d: d.update(camera_angle_x=50.0))
    with pytest.raises(ValueError, match=r"frames\[0\].*camera_angle_x in radians, below pi, got 50"):
        read_capture(tmp_path)


def test_points_of_a_ply_are_read(tmp_path, scene):
    ngp(tmp_path, scene, ply_file_path="points.ply")
    rows = "\n".join(f"{x} {y} {z} {r} 20 30" for (x, y, z), r in zip(scene.points.tolist(), range(200)))
    head = "ply\nformat ascii 1.0\nelement vertex 200\n" + "".join(f"property float {c}\n" for c in "xyz")
    colors = "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    (tmp_path / "points.ply").write_text(head + colors + "end_header\n" + rows + "\n")
    back = read_capture(tmp_path)
    assert torch.allclose(back.points, scene.points, atol=1e-5) and torch.allclose(back.colors[7], torch.tensor([7.0, 20, 30]) / 255)
    (tmp_path / "points.ply").write_text(head + "end_header\n" + rows + "\n")
    with pytest.raises(ValueError, match="points.ply"):
        read_capture(tmp_path)
    (tmp_path / "points.ply").unlink()
    with pytest.raises(FileNotFoundError, match="points.ply"):
        read_capture(tmp_path)


BAD_FIELDS = {
    "no frames": (lambda d: d.pop("frames"), "the field frames"),
    "frames empty": (lambda d: d.update(frames=[]), "the field frames"),
    "frames no list": (lambda d: d.update(frames={"a": 1}), "the field frames"),
    "a frame no object": (lambda d: d["frames"].append(3), "the field frames"),
    "no path": (lambda d: d["frames"][2].pop("file_path"), r"frames\[2\].*file_path"),
    "path a number": (lambda d: d["frames"][2].update(file_path=7), r"frames\[2\].*file_path"),
    "no pose": (lambda d: d["frames"][3].pop("transform_matrix"), r"frames\[3\] \(images/0003.png\): transform_matrix: expected a 4 x 4"),
    "pose of words": (lambda d: d["frames"][3].update(transform_matrix=[["a"] * 4] * 4), r"frames\[3\].*4 x 4 matrix of numbers"),
    "pose too small": (lambda d: d["frames"][3].update(transform_matrix=[[1, 0, 0]] * 3), r"frames\[3\].*4 x 4 matrix of numbers"),
    "pose ragged": (lambda d: d["frames"][3].update(transform_matrix=[[1, 0, 0], [1]]), r"frames\[3\].*4 x 4 matrix of numbers"),
    "pose not a number": (lambda d: d["frames"][3]["transform_matrix"][0].__setitem__(3, math.nan), r"frames\[3\].*not finite"),
    "pose singular": (lambda d: d["frames"][3]["transform_matrix"].__setitem__(0, [0, 0, 0, 1]), r"frames\[3\].*singular"),
    "pose all zero": (lambda d: d["frames"][3].update(transform_matrix=[[0] * 4] * 4), r"frames\[3\].*singular"),
    "pose mirrored": (lambda d: d["frames"][3].update(transform_matrix=[[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), r"frames\[3\].*mirrored"),
    "pose scaled": (lambda d: d["frames"][3].update(transform_matrix=[[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]), r"frames\[3\].*scaled by 3"),
    "no focal length": (lambda d: d.pop("fl_x"), r"frames\[0\].*fl_x or camera_angle_x"),
    "focal length 0": (lambda d: d.update(fl_x=0), "fl_x, a finite number above 0, got 0"),
    "focal length a word": (lambda d: d.update(fl_y="wide"), "fl_y, a finite number above 0, got 'wide'"),
    "centre null": (lambda d: d.update(cx=None), "cx, a finite number, got None"),
    "width negative": (lambda d: d.update(w=-40), "w, a finite number above 0"),
    "distortion infinite": (lambda d: d.update(k1=math.inf), "k1, a finite number"),
    "another model": (lambda d: d.update(camera_model="EQUIRECTANGULAR"), "camera_model EQUIRECTANGULAR is not read"),
    "a coefficient of another lens": (lambda d: d.update(k1=0.01, k4=0.02), "k4 is not 0, which a lens OPENCV does not have"),
    "distortion of a pinhole": (lambda d: d.update(camera_model="PINHOLE", k1=0.02), "k1 is not 0, which a lens PINHOLE does not have"),
    "a lens of instant-ngp's": (lambda d: d.update(ftheta_p0=0.0, ftheta_p1=0.02), "a lens with ftheta_p0 is not read"),
    "a number beyond any": (lambda d: d.update(fl_x=10**400), "fl_x, a finite number above 0, got 1000"),
    "a transposed pose": (lambda d: d["frames"][0].update(transform_matrix=np.array(d["frames"][0]["transform_matrix"]).T.tolist()), r"frames\[0\].*last row should be 0, 0, 0, 1.*transposed"),
    "a pose beyond any": (lambda d: d["frames"][0]["transform_matrix"][0].__setitem__(3, 10**400), "expected a 4 x 4 matrix of numbers"),
    "a folder for a PLY": (lambda d: d.update(ply_file_path="."), "ply_file_path, the name of a PLY, got '.'"),
    "folding lens": (lambda d: d.update(k1=-9.0), "0000.png: its distortion .* turns back|0000.png: its distortion .* quarter"),
    "another shape": (lambda d: d.update(w=60), "40 x 40 pixels, its camera 40 x 60: not the same shape"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_bad_field_is_named(tmp_path, scene, case):
    change, words = BAD_FIELDS[case]
    ngp(tmp_path, scene)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=words) as error:
        read_capture(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    (finding,) = doctor(tmp_path)
    assert (finding.level, finding.check) == ("error", "reading") and finding.message == str(error.value)


def test_a_turned_picture_is_told_apart(tmp_path, scene):
    wide = replace(scene, images=scene.images[:, :20], camera=scene.camera.crop(0, 0, 20, 40), depth=None)
    ngp(tmp_path, wide)
    png(tmp_path / "images/0003.png", wide.images[3].transpose(0, 1))
    with pytest.raises(ValueError, match=r"0003.png has 40 x 20 pixels, its camera 20 x 40: .* it was turned"):
        read_capture(tmp_path)


def test_damaged_files_are_named(tmp_path, scene):
    ngp(tmp_path, scene)
    whole = (tmp_path / "images/0004.png").read_bytes()
    for data, words in ((whole[:200], "0004.png"), (b"", "0004.png"), (b"no picture", "0004.png")):
        (tmp_path / "images/0004.png").write_bytes(data)
        with pytest.raises(ValueError, match=words):
            read_capture(tmp_path)
    Image.new("CMYK", (40, 40)).save(tmp_path / "images/0004.png", format="JPEG")
    with pytest.raises(ValueError, match="0004.png is refused: .*CMYK"):
        read_capture(tmp_path)
    text = (tmp_path / "transforms.json").read_text()
    (tmp_path / "transforms.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="transforms.json is no JSON, or it is cut short"):
        read_capture(tmp_path)


def test_pictures_may_differ_by_a_pixel_not_by_more(tmp_path, scene):
    data = ngp(tmp_path, scene, w=None, h=None)
    png(tmp_path / "images/0002.png", F.pad(scene.images[2], (0, 0, 0, 1)))
    back = read_capture(data)
    assert back.images.shape == (10, 40, 40, 4) and (premultiplied(back.images[2]) - premultiplied(scene.images[2])).abs().max() < 1.01 / 255
    png(tmp_path / "images/0002.png", F.pad(scene.images[2], (0, 0, 0, 8)))
    with pytest.raises(ValueError, match="0002.png has 40 x 48 pixels, 0000.png 40 x 40: a capture holds pictures of one size"):
        read_capture(data)


def test_grey_and_opaque_pictures_mix_with_transparent_ones(tmp_path, scene):
    ngp(tmp_path, scene)
    Image.new("L", (40, 40), 51).save(tmp_path / "images/0001.png")
    back = read_capture(tmp_path)
    assert back.images.shape[3] == 4 and torch.allclose(back.images[1], torch.tensor([0.2, 0.2, 0.2, 1.0]))


def test_one_camera_is_read_and_the_doctor_refuses_it(tmp_path, scene):
    back = read_capture(ngp(tmp_path, scene[:1]))
    assert len(back) == 1 and back.near > 0
    assert [f for f in doctor(back) if f.level == "error" and "one camera" in f.message]


def test_written_and_read_again(tmp_path, scene):
    file = write_transforms(scene, tmp_path / "new")
    back = read_transforms(file)
    assert torch.allclose(back.camera.c2w, scene.camera.c2w, atol=1e-6) and torch.allclose(back.camera.K, scene.camera.K, atol=1e-5)
    assert torch.equal(back.points, scene.points) and (back.colors - scene.colors).abs().max() < 0.51 / 255
    assert (premultiplied(back.images) - premultiplied(scene.images)).abs().max() < 1.01 / 255
    assert [f.level for f in doctor(tmp_path / "new") if f.check != "views"] == ["ok"] * 6


@pytest.mark.parametrize("names", [("frame.1", "frame.2", "frame.10"), ("a/b", "a_b", "c"), ("图", "画", "照"), ("A", "a", "b"), ("p.png", "p.jpg", "q")])
def test_no_picture_is_written_over_another(tmp_path, scene, names):
    three = replace(scene[:3], names=names)
    back = read_capture(write_transforms(three, tmp_path))
    assert len(set(back.names)) == 3 and len({n.lower() for n in back.names}) == 3
    assert torch.allclose(back.camera.c2w, three.camera.c2w, atol=1e-5) and (back.on("white") - three.on("white")).abs().max() < 1 / 100


def test_our_scene_may_be_oblong_and_says_what_it_takes(scene):
    wide = capture("still_life", (10, 16), views=4, samples=1, n_points=50)
    assert wide.images.shape == (4, 10, 16, 4) and (wide.camera.height, wide.camera.width) == (10, 16)
    square = capture("still_life", 16, views=4, samples=1, n_points=50)
    assert torch.equal(wide.camera.c2w, square.camera.c2w) and (wide.images - square.images[:, 3:13]).abs().max() < 1e-4   # its middle rows
    for options, words in (({"size": 2.5}, "size=2.5"), ({"size": 0}, "size=0"), ({"size": (8, 8, 8)}, "size=.8, 8, 8."), ({"views": 1}, "views=1"), ({"samples": 0}, "samples=0")):
        with pytest.raises(ValueError, match=f"own_scene: expected whole numbers, got {words}"):
            capture("still_life", **{"size": 8, **options})


def test_folders_without_cameras(tmp_path, scene):
    with pytest.raises(FileNotFoundError, match="expected transforms.json, transforms_train.json, sparse/"):
        read_capture(tmp_path)
    png(tmp_path / "images/a.png", scene.images[0])
    with pytest.raises(FileNotFoundError, match="it holds 1 photos: paperlib data photos"):
        read_capture(tmp_path)
    with pytest.raises(ValueError, match="expected still_life, lego, fox, or a folder"):
        capture(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        read_capture(tmp_path / "images/a.png")


# ---------------------------------------------------------------- lenses

# written by COLMAP itself (pycolmap 4.2.1): where (0.3, -0.4, 1.25) falls
COLMAP_SAYS = {
    "SIMPLE_PINHOLE": ([500, 320, 240], [440.0, 80.0]),
    "PINHOLE": ([500, 510, 320, 240], [440.0, 76.8]),
    "SIMPLE_RADIAL": ([500, 320, 240, 0.05], [440.96, 78.72]),
    "RADIAL": ([500, 320, 240, 0.05, -0.02], [440.89856, 78.80192]),
    "OPENCV": ([500, 510, 320, 240, 0.05, -0.02, 0.003, -0.004], [440.11776, 76.4494464]),
    "OPENCV_FISHEYE": ([500, 510, 320, 240, 0.05, -0.02, 0.01, -0.003], [434.93374338, 83.690109004]),
    "FULL_OPENCV": ([500, 510, 320, 240, 0.05, -0.02, 0.003, -0.004, 0.01, 0.02, -0.01, 0.005], [439.765318642, 76.928766647]),
    "SIMPLE_RADIAL_FISHEYE": ([500, 320, 240, 0.05], [434.978287959, 86.695616055]),
    "RADIAL_FISHEYE": ([500, 320, 240, 0.05, -0.02], [434.930429253, 86.759427662]),
    "SIMPLE_FISHEYE": ([500, 320, 240], [434.151913134, 87.797449155]),
    "FISHEYE": ([500, 510, 320, 240], [434.151913134, 84.753398138]),
}


@pytest.mark.parametrize("model", COLMAP_SAYS)
def test_a_lens_bends_as_colmap_says(model):
    params, uv = COLMAP_SAYS[model]
    lens = captures._colmap_lens(ColmapCamera(model, 640, 480, tuple(map(float, params))), "here")
    x, y = distort(torch.tensor([0.24, -0.32], dtype=torch.float64), lens).tolist()
    assert [x * lens.fx + lens.cx, y * lens.fy + lens.cy] == pytest.approx(uv, abs=2e-9)     # the numbers above have nine digits


@pytest.mark.parametrize("model", ["FOV", "THIN_PRISM_FISHEYE", "EUCM", "DIVISION"])
def test_other_lenses_are_refused_by_name(model):
    count = captures._BY_NAME[model][1]
    with pytest.raises(ValueError, match=f"here: camera model {model} is not read; run COLMAP's image_undistorter"):
        captures._colmap_lens(ColmapCamera(model, 640, 480, (500.0,) * count), "here")


def test_a_straightened_lens_sees_the_same_directions(tmp_path, scene):
    """A photo through a bent lens, read, is the pinhole's picture: the pattern is smooth, so what is left is interpolation."""
    lens = Lens(40, 40, 48.0, 48.0, 21.0, 19.0, "radial", (0.3, 0.05, 0.002, -0.001))
    centres = torch.stack(torch.meshgrid(torch.arange(40.0) + 0.5, torch.arange(40.0) + 0.5, indexing="xy"), -1)
    ray = lambda K: (centres - torch.tensor([K[0][2], K[1][2]])) / torch.tensor([K[0][0], K[1][1]])
    at = ray(lens.K)
    for _ in range(60):
        at = at - (distort(at, lens) - ray(lens.K))
    pattern = lambda xy: (0.5 + 0.4 * torch.sin(5 * xy).prod(-1, keepdim=True)).expand(*xy.shape[:-1], 3)
    ngp(tmp_path, replace(scene[:2], images=pattern(at).expand(2, 40, 40, 3)), fl_x=48.0, fl_y=48.0, cx=21.0, cy=19.0, k1=0.3, k2=0.05, p1=0.002, p2=-0.001)
    back = read_capture(tmp_path)
    K = back.camera.K[0].tolist()
    assert K[0][0] > 48 and K[0][2] == 21 and K[1][2] == 19 and "distortion straightened" in back.notes[-1]
    assert (back.images[0] - pattern(ray(K))).abs().max() < 0.01                             # half a grey level, and h^2 / 8 of the second derivative
    assert (pattern(at) - pattern(ray(lens.K))).abs().max() > 0.05                           # and it was worth doing


def test_no_pixel_of_a_straightened_picture_is_blank():
    for kind, k in (("radial", (0.2, 0.1)), ("radial", (-0.2, 0.03)), ("fisheye", (0.02,)), ("fisheye", ())):
        lens = Lens(60, 80, 70.0, 72.0, 41.0, 28.0, kind, k)
        flat, at = straighten(lens)
        assert at.shape == (60, 80, 2) and flat.fx >= 70 and not flat.bent
        assert (at >= 0.5 - 1e-6).all() and (at <= torch.tensor([79.5, 59.5], dtype=torch.float64) + 1e-6).all()


# ---------------------------------------------------------------- COLMAP

BY_COLMAP = (  # bin/ with rigs and frames, txt/: three pictures and six points, made and written by pycolmap 4.2.1 (its synthesize_dataset)
    "{Wp48S^xk9=GL@E0stWa8~^|S5YJf5;7|Vv9bEu18cG`pBEY+<52W@&H8vd7M%^=_WDq@RF@72!_Xb9>OOmfM)YYR6Ovahy-?l%%iHS;<(Jh@*YB40%1oewl"
    "FWR%^?WL?7b1(W#Pt#gj6<G%_90}r#L`dOPn~wG}?p$Ckh#6+2HC<CHo?p_*uGIlTNCWQlXFF#bgl&lIf@W{n3hf2l=Mr`PP2_u|5sQSo|2QIzef5^gMfoM6"
    "kJ}c3B_vBHayyx&VYQ&zq<Z{;!&YUSaTqCHi}GH}Jt27_!7ER-rm~ZteUHTB;LE$8RFHrgJr;9s@4@9de=|=FrlwEWR(>YpJ3Y*`uq9~n;4=RS$#8^Dr<_AS"
    "j0SiSX%y%U{)OGG+4Jaz1c#d}Ng2s&+`b&eCj|0|YGA3TKBNnwaYa_!3t8l74474bWonYvIrp?^b0ty$SgR-Nh&yF<8S_WVXrT^PN%6&!?KfAc$&B2^D-^{%"
    "E5<`<(OI*0W~Z+ylC3rRjoG%w`f`ayX|sDbs*W;eMB7AsGY`ISLZCUFLf@9Ptg$yW$gvTJS7^)RsiLut+hse$g5r)foCY@V<1k@5*X|VQYEpH+37X3$qO61u"
    "DHtt?+wB+|3z7Y1_k1pO^x}T=-$nHa45%AJ6%VPcL~eA4=^Z4?v`VDWYdD#Xem~xP5%0Uv61`-lF_OExd~%{@xKG@}NBqK!F_!rwhhz3^Auit2{=R@Umgr!e"
    "jXRpL#fU&Cy-MpIy8mA|*Q%i#d8;JH=3z0LNXS9L`gM`hN4*316BW3r0D_G26<{$YURDuAV0AI{ceRT-qrWyq9oyb2Ee&LS{{=E&*o@r{t!b6C6YLiWvVF?*"
    "bL4>EEDGJh_T1n*5=!$?uVJIVuHZ80KVG`oW&9^^xkLqMX3?HZREi*L>XcF=A6pq^Rrs35H?XgG{V(#FSqoW}`nkg+FmCA129oj9946X56#MeN=4ll}00$)?"
    ">U+o)k4Q;>x3|U9-mLAVU3am^431+hXgqet8rre2qA+D$*F@gAFUDEUL%{Ge)V1OM2UXCJ>a83cP~$On__kUYJb4M(qHDYMkjk#$jS<JJPszj?9QeSw4Yg`{"
    ")0XpcQGa$OZ@|duh053)U3_sdOP^M?o)`8fB-=xE_>RD%w@r)3+(-1<HM>~-PsQz*RE)Q+A4R1>*#FFhWKjrWI4^w_t<BNYM5k`+863aUYJ@Fa5IrUso(O4>"
    "?<iSe(8H)k7-v8MUgZK7J%(HP01kA_Zf)IR>B1)kIICf{rBXswqf{JRRDu-MZ3EFGwDQb?kDe<WGW2>yG>#Pk^tB(5XZPJ|R0t3EFGhIQHU(av%R4ef_z8mL"
    "b*RrlQb))4NWUqV2-mHg$;Mj)6N`0#S*+AANV-BYuq-UP(qjYjiYvutTwLL>cnD~@Tn2)%z>v?;5ha!enf+bxn}=)Mmi>7UTKfGOdcr;F8c@`9%6Fus+&j6r"
    "3n_-=7-%EIjOrsrP!JrkT?&+{QsY4)d<`6?*#Om^N4^|&FSP}xr6r<%3xJf_hFKuxlE=I9F;2i+c+5y3rQJ6Ni80;Qz>aFnX?W7n?G=_z1>R%28;SupaqO*!"
    "^-Gu-jpZFo#=Yg6Az9vk>4#6*VjF<X%|jkZ0*AL5mPmgINqX5sVrv&`lk|D0fp;4tDTUi+vmlz5S(gx?1Z_G{B@7ITubXBp-5+-Mfo_*AcE3O*lVyo*h0CFy"
    "g-Ig_+?4N;wVGK2Y%x>0YDOmgx|?<;aX37HtQjNs1tjjD7+yYuV62G#e=Zi5+#-BRPu`v<LGp01R5h`=nXp5B)s1)onR#D}pB?b<Fqq|$$4+mlFu#CB+i*%R"
    "$||qke-AraEkPt<3UMg-UB-J1i*yRXnw4=y&t$zPDqBC}N1r2Hb6PJvq%_v5iQNe=JJMEtFC>fs0$R_YSz+TBbQDh=h?@BeT1{utq4tQ^MtS8WKfa>e6a)fM"
    "&t}8U4t~qN8|i}@nqxE2`4fcYF_adIIKYGPw7u1b>p|r%hHTmZR5ekTS8NdYVnd;0b3pGijac=p`~0#yW=dT@naBKTsCCP!54KwT3EGbB(Eow1@@f_~Wt5_?"
    "k7ya<anX*UGR3Akp*x6FxP9t=U#h_VT}L!$CgY<_;)-^`_=D6wbHP#No*gn3z_PZZpTm>O6)ejpu>d1*pF&zlqe~Lz1M>?1?i-#fLvK5!P0EW%R|*B{;>}oF"
    "UDL;QMzP@p0as>=uFdxWbpO6Pc&aK_=qoORFY4`eCY!oZo`tNJxF^m;@)N9di~%qaMD#pVV3n<?1nH2m_)eUO1MfY$s_V70DWz8#sXEAb5ssl>foFkNZ!4N>"
    "Vohdl{2uSBD*2^-Xc<SR<Cp^$`6%(Cl+<>A>H)%)0Y+N34S@hMJZc0g|81O(npOz4uaM_Ht*Fdv;!_yf_oUKc>8UQKQ%HcPkba+H>F+BE(c+xrJjpB0`16w}"
    "5Bsf_J@x0Nkd6Q;b>Z{KEc;39w+Cje8~<N_ZCAzslt#TR+T55;Nr0rkM~Z}ls~2HnLr6#0mcIEje}J5GqO0lpuwET|&N|CnTT3Gte5KlKFPEkRKPL8i{0-z^"
    "9WBuXiH`=T<4fi|_f@rCw6)#Q4@vS8i`@ncXG^QeN}^%>2T51gAb}KCsslLV!LT?sgX*S#_1eRNJDf+iMFx=$T(AVND#A~1%Xlb4mdPWwJ>5P+TfE_yzi<U*"
    "a&7A<tM4J?s&y|%=vz40sul^S;_P(w2|~ory6Gy-k?+@{UN$xv)G(v#sfiZYT_H_vpT9vqQ_!4blgylU)yZiRNp^32%i5uSk=_91b1_bW$mr|YpKHzhtnqw$"
    "IVV{}4X=Y;E)})rkxJ)#v8Ij6ia*u3iR*4k<gY^47NCd~dFozNOQ6xYymsaM+a}0pZCi204GOiYk<e!ts=nTm<yIH)tp?Bkrry{oAqjCm?XrQNr~vyxgL=FZ"
    "U9qX&m;xTbQ!OoMejA-+2{1Fk&9H`o*16;%j2)j1$Heen<idZ=4`Z8c#z2we<S&xOayE4L!=(TK00000+@7#up;Z`e00FrYfS>^Yn23tWvBYQl0ssI200dcD"
)


@pytest.fixture(scope="module")
def by_colmap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colmap")
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(base64.b85decode(BY_COLMAP)))) as tar:
        tar.extractall(folder, filter="data")
    return folder


def same_model(a, b):
    assert a.cameras == b.cameras and a.images.keys() == b.images.keys()
    for i, one in a.images.items():
        two = b.images[i]
        assert one[:2] == two[:2] and np.allclose([*one.q, *one.t], [*two.q, *two.t], rtol=1e-15, atol=1e-300)
        assert np.array_equal(one.xy, two.xy) and np.array_equal(one.ids, two.ids)
    x, y = np.argsort(a.ids), np.argsort(b.ids)
    assert np.array_equal(a.ids[x], b.ids[y]) and np.array_equal(a.xyz[x], b.xyz[y]) and np.array_equal(a.rgb[x], b.rgb[y])
    assert all(np.array_equal(a.tracks[i], b.tracks[j]) for i, j in zip(x, y))


def test_binary_and_text_are_one(by_colmap, tmp_path):
    assert {p.name for p in (by_colmap / "bin").iterdir()} >= {"rigs.bin", "frames.bin"}
    binary, text = colmap_model(by_colmap / "bin"), colmap_model(by_colmap / "txt")
    assert len(binary.images) == 3 and len(binary.ids) == 6 and binary.cameras[1].model == "OPENCV"
    same_model(binary, text)
    for words in (False, True):
        (tmp_path / str(words)).mkdir()
        write_colmap(binary, tmp_path / str(words), words)
        same_model(binary, colmap_model(tmp_path / str(words)))
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (tmp_path / "False" / name).read_bytes() == (by_colmap / "bin" / name).read_bytes()


def test_points_fall_on_colmaps_keypoints(by_colmap):
    model = colmap_model(by_colmap / "bin")
    place, seen = {k: x for k, x in zip(model.ids.tolist(), model.xyz)}, 0
    for image in model.images.values():
        lens = captures._colmap_lens(model.cameras[image.camera], "")
        at = np.flatnonzero(image.ids >= 0)
        X = np.stack([place[k] for k in image.ids[at].tolist()]) @ captures.quaternion_matrix(image.q).T + image.t
        uv = distort(torch.from_numpy(X[:, :2] / X[:, 2:]), lens).numpy() * [lens.fx, lens.fy] + [lens.cx, lens.cy]
        assert np.abs(uv - image.xy[at]).max() < 1e-9
        seen += len(at)
    for track, k in zip(model.tracks, model.ids):
        assert all(model.images[i].ids[j] == k for i, j in track.tolist())
    assert seen == sum(map(len, model.tracks)) == 18


@pytest.fixture
def sparse(tmp_path, scene):
    """A folder with images/ and sparse/0, of our scene."""
    for name, image in zip(scene.names, scene.images):
        png(tmp_path / f"images/{name}", image) if "." in name else png(tmp_path / f"images/{name}.png", image)
    (tmp_path / "sparse/0").mkdir(parents=True)
    write_colmap(to_colmap(replace(scene, names=tuple(f"{n}.png" for n in scene.names))), tmp_path / "sparse/0")
    return tmp_path


def test_a_sparse_folder_comes_back(sparse, scene):
    for path in (sparse, sparse / "sparse", sparse / "sparse/0"):
        back = capture(path)
        assert back.names == tuple(f"{n}.png" for n in scene.names) and not back.notes
        assert torch.allclose(back.camera.c2w, scene.camera.c2w, atol=1e-5) and torch.allclose(back.camera.K, scene.camera.K)
        assert torch.allclose(back.points, scene.points) and (back.colors - scene.colors).abs().max() < 0.51 / 255
    assert all(f.level == "ok" for f in doctor(sparse) if f.check != "views")
    z = project(scene.points, scene.camera)[1]
    assert back.near < z.quantile(0.01) and back.far > z.quantile(0.99)


def test_the_largest_model_is_taken(sparse, scene):
    (sparse / "sparse/0").rename(sparse / "sparse/1")
    (sparse / "sparse/0").mkdir()
    two = replace(scene[:2], names=("view_000.png", "view_001.png"))
    write_colmap(to_colmap(two), sparse / "sparse/0", text=True)
    back = read_colmap(sparse)
    assert len(back) == 10 and back.notes == ("2 models, with 10, 2 pictures: the largest is taken, 1",)


def test_photos_that_are_not_registered_are_counted(sparse, scene):
    write_colmap(to_colmap(replace(scene[:4], names=tuple(f"{n}.png" for n in scene.names[:4]))), sparse / "sparse/0")
    back = read_colmap(sparse)
    assert len(back) == 4 and back.expected == 10 and back.notes == ("4 of 10 photos are registered",)
    assert doctor(back)[0] == ("error", "views", "4 of 10 pictures have a camera and a file: too few")


def test_lines_without_keypoints_are_read(sparse, scene):
    empty = replace(scene[:3], names=("view_000.png", "view_001.png", "view_002.png"), points=None, colors=None)
    for file in (sparse / "sparse/0").iterdir():
        file.unlink()
    write_colmap(to_colmap(empty), sparse / "sparse/0", text=True)
    assert (sparse / "sparse/0/images.txt").read_text().count("\n\n") == 3 or "\n\n" in (sparse / "sparse/0/images.txt").read_text()
    back = read_colmap(sparse)
    assert len(back) == 3 and back.points is None
    text = "# a comment\n" + (sparse / "sparse/0/images.txt").read_text().rstrip("\n")       # an editor dropped the last, empty line
    (sparse / "sparse/0/images.txt").write_text(text)
    assert len(read_colmap(sparse)) == 3


def test_models_cut_short_are_named(sparse):
    folder = sparse / "sparse/0"
    for name in ("cameras", "images", "points3D"):
        file = folder / f"{name}.bin"
        whole = file.read_bytes()
        for n in (4, 11, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:n])
            with pytest.raises(ValueError, match=f"{name}.bin: cut short"):
                read_colmap(sparse)
        file.write_bytes(whole)
    (folder / "points3D.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no points3D.bin beside"):
        read_colmap(sparse)


def model_with(sparse, change):
    folder = sparse / "sparse/0"
    model = colmap_model(folder)
    change(model)
    write_colmap(model, folder)
    return sparse


BAD_MODELS = {
    "camera missing": (lambda m: m.cameras.pop(3), r"image 3 \(view_002.png\): its camera 3 is not among"),
    "quaternion 0": (lambda m: m.images.update({3: m.images[3]._replace(q=(0.0, 0.0, 0.0, 0.0))}), r"image 3 \(view_002.png\): expected a quaternion wxyz with a norm above 0"),
    "quaternion NaN": (lambda m: m.images.update({3: m.images[3]._replace(q=(math.nan, 0.0, 0.0, 0.0))}), "view_002.png.*quaternion"),
    "translation infinite": (lambda m: m.images.update({3: m.images[3]._replace(t=(math.inf, 0.0, 0.0))}), "view_002.png.*not finite"),
    "lens not read": (lambda m: m.cameras.update({3: ColmapCamera("FOV", 40, 40, (50.0, 50.0, 20.0, 20.0, 0.9))}), "camera 3: camera model FOV is not read"),
    "focal length 0": (lambda m: m.cameras.update({3: ColmapCamera("PINHOLE", 40, 40, (0.0, 50.0, 20.0, 20.0))}), "camera 3: expected finite parameters and a focal length"),
    "no picture": (lambda m: m.images.clear(), "no registered picture"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_named(sparse, case):
    change, words = BAD_MODELS[case]
    with pytest.raises(ValueError, match=words) as error:
        read_colmap(model_with(sparse, change))
    assert str(sparse) in str(error.value)
    assert doctor(sparse)[0].check == "reading"


def test_an_unknown_number_of_a_camera_model(sparse):
    file = sparse / "sparse/0/cameras.bin"
    data = bytearray(file.read_bytes())
    data[12:16] = struct.pack("<i", 99)
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="camera 1 has the model number 99"):
        read_colmap(sparse)


@pytest.mark.parametrize("file, line, words", [
    ("cameras.txt", "1 PINHOLE 40 40 50 50 20", "line 1: camera model PINHOLE with 3"),
    ("cameras.txt", "1 WIDE 40 40 50", "line 1: camera model WIDE"),
    ("images.txt", "1 1 0 0 0 0 0 0 1\n", "images.txt, line 1"),
    ("images.txt", "1 1 0 0 0 0 0 x 1 a.png\n\n", "images.txt, line 1"),
    ("images.txt", "1 1 0 0 0 0 0 0 1 a.png\n1 2\n", "images.txt, line 1"),
    ("points3D.txt", "1 0 0 0 255 255 255\n", "points3D.txt, line 1"),
    ("points3D.txt", "1 0 0 0 255 255 255 0.5 1\n", "points3D.txt, line 1"),
    ("points3D.txt", "1 0 0 0 300 255 255 0.5\n", "points3D.txt, line 1.*0 to 255"),
])
def test_bad_lines_are_named(by_colmap, tmp_path, file, line, words):
    for p in (by_colmap / "txt").iterdir():
        (tmp_path / p.name).write_text(p.read_text())
    (tmp_path / file).write_text(line)
    with pytest.raises(ValueError, match=words):
        colmap_model(tmp_path)


# ---------------------------------------------------------------- LLFF


def llff(folder, c, near=1.5, far=9.0):
    """Write poses_bounds.npy: down, right, back, position; height, width, focal length; bounds."""
    rows = []
    for i, (pose, K) in enumerate(zip(c.camera.c2w.double().numpy(), c.camera.K.double().numpy())):
        png(folder / "images" / f"IMG_{i:03d}.png", c.images[i])
        hwf = np.array([[c.camera.height], [c.camera.width], [K[0, 0]]])
        rows.append(np.concatenate([np.hstack([pose[:3, 1:2], pose[:3, :1], -pose[:3, 2:3], pose[:3, 3:], hwf]).ravel(), [near, far + i]]))
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def test_an_llff_folder_comes_back(tmp_path, scene):
    llff(tmp_path, scene)
    raw = capture(tmp_path, rescale=False, recenter=False)
    assert torch.allclose(raw.camera.c2w, scene.camera.c2w, atol=1e-6) and torch.allclose(raw.camera.K, scene.camera.K, atol=1e-5)
    assert (raw.near, raw.far) == (1.5, 18.0)
    c = read_llff(tmp_path)
    assert c.near == pytest.approx(4 / 3) and c.far == pytest.approx(16.0)
    distances = lambda x: torch.cdist(x.camera.position, x.camera.position)
    assert torch.allclose(distances(c), distances(raw) / (0.75 * 1.5), atol=1e-4)
    assert torch.allclose(captures.mean_pose(c.camera.c2w.double()), torch.eye(4, dtype=torch.float64), atol=1e-5)
    small = read_llff(tmp_path, size=20)
    assert torch.allclose(small.camera.K[0, 0, 0], c.camera.K[0, 0, 0] / 2)


def test_bad_llff_folders(tmp_path, scene):
    with pytest.raises(FileNotFoundError, match="poses_bounds.npy"):
        read_llff(tmp_path)
    llff(tmp_path, scene)
    file = tmp_path / "poses_bounds.npy"
    rows = np.load(file)
    for change, words in ((lambda r: r[:, :16], r"expected an array \(pictures, 17\), got \(10, 16\)"), (lambda r: r[:9], "has 9 rows, .* 10 pictures"),
                          (lambda r: np.where(np.arange(17) == 16, 0.1, r), r"row 0 \(IMG_000.png\): expected 0 < near < far"),
                          (lambda r: np.where((np.arange(17) < 15) & (np.arange(10) == 4)[:, None], 0, r), r"row 4 \(IMG_004.png\): expected a rotation"),
                          (lambda r: np.where(np.arange(17) == 14, 0, r), "row 0, focal length")):
        np.save(file, change(rows))
        with pytest.raises(ValueError, match=words):
            read_llff(tmp_path)
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cut short"):
        read_llff(tmp_path)
    llff(tmp_path, scene)
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match="no folder images/"):
        read_llff(tmp_path)
    assert len(read_llff(tmp_path, images="photos")) == 10
    turned = rows.copy()
    turned[:, :15] = np.stack([row * [[1, 1 - 2 * (i % 2), 1 - 2 * (i % 2), 1, 1]] for i, row in enumerate(rows[:1, :15].reshape(1, 3, 5).repeat(10, 0))]).reshape(10, 15)
    np.save(file, turned)                                                        # one half looks forward, the other back
    with pytest.raises(ValueError, match="the axes of 10 cameras cancel"):
        read_llff(tmp_path, images="photos")


# ---------------------------------------------------------------- recorded sets


def test_fox_has_its_photos_and_points():
    c = recorded("fox")
    assert len(c) == 50 and c.expected == 67 and c.images.shape == (50, 480, 270, 3) and len(c.points) == 5258 and not c.synthetic


def test_the_points_of_fox_fall_where_the_photos_have_their_colours():
    """A point's colour is the mean over the pixels where it was found. Moved by half a pixel in any direction, it fits worse: poses, lens and centres are right."""
    c = recorded("fox")
    with np.load(next(p for r in captures_roots() if (p := r / "fox/sparse_points.npz").is_file())) as z:
        sure = torch.from_numpy((z["track_len"] >= 15) & (z["reproj_err_px"] < 1))
    uv, _ = project(c.points[sure], c.camera)
    photos = c.images.movedim(3, 1)
    off = lambda dx, dy: (sample_at(photos, (uv + torch.tensor([dx, dy]))[:, None])[:, :, 0].mT - c.colors[sure]).abs().mean(-1).nanmedian().item()
    here = off(0.0, 0.0)
    around = [off(dx, dy) for dx, dy in ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))]
    assert here < 0.06 and min(around) > here and max(around) < 1.1 * here                   # a minimum, and symmetric: not between pixels
    assert min(off(4.0, 0.0), off(-4.0, 0.0), off(0.0, 4.0)) > 2 * here


def captures_roots():
    from paperlib.core.data import data_roots

    return list(data_roots().values())


def test_lego_is_what_its_large_pictures_shrink_to():
    """The set was shrunk by its own script, premultiplied; two originals lie beside it, and our reader's arithmetic must give the same bytes."""
    c = recorded("lego")
    assert c.images.shape == (100, 200, 200, 4) and (c.near, c.far) == (2.0, 6.0)
    folder = next(p for r in captures_roots() if (p := r / "nerf_lego").is_dir())
    frames = json.loads((folder / "transforms_train.json").read_text())["frames"]
    for i in (0, 50):
        large = captures._picture(folder / f"full800/r_{i}.png")
        assert (premultiplied(shrink(large[None], 200, 200)[0]) - premultiplied(c.images[i])).abs().max() < 0.51 / 255
    for i, frame in enumerate(frames):
        assert torch.allclose(opengl_to_opencv(torch.tensor(frame["transform_matrix"])), c.camera.c2w[i], atol=1e-5)
    assert c.camera.K[0, 0, 0].item() == pytest.approx(0.5 * 200 / math.tan(0.5 * 0.6911112070083618), rel=1e-6)
    train, held = c.split()
    assert len(held) == 13 and held.names[1] == "train/r_8"


def test_sets_that_are_not_there_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    for name in ("lego", "fox"):
        with pytest.raises(FileNotFoundError, match="Licence: .* To get it|was not found"):
            capture(name)
    (tmp_path / "nerf_lego").mkdir()
    (tmp_path / "nerf_lego/lego_train100_200px_premultiplied_rgba.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="premultiplied_rgba.npz: expected rgba, poses and camera_angle_x"):
        capture("lego")


# ---------------------------------------------------------------- the doctor


def found(c, check):
    (finding,) = [f for f in doctor(c) if f.check == check]
    return finding


def test_the_doctor_finds_a_sound_scene_sound(sound):
    assert [f.level for f in doctor(sound)] == ["ok"] * 7


def broken(c, what):
    K, pose = c.camera.K, c.camera.c2w
    cam = lambda **k: replace(c, camera=replace(c.camera, **k))
    return {
        "one place": lambda: cam(c2w=torch.cat([pose[..., :3], pose[:1, :, 3:].expand(len(c), 4, 1)], -1)),
        "opengl": lambda: cam(c2w=opengl_to_opencv(pose)),
        "order": lambda: replace(c, images=c.images.roll(4, 0)),
        "white": lambda: replace(c, images=torch.cat([torch.ones_like(c.images[:1]), c.images[1:]])),
        "black": lambda: replace(c, images=torch.cat([c.images[:2] * torch.tensor([0.0, 0, 0, 1]), c.images[2:]])),
        "clear": lambda: replace(c, images=c.images * torch.tensor([1.0, 1, 1, 0])),
        "range": lambda: replace(c, near=50.0, far=60.0),
        "centre": lambda: cam(K=K + torch.tensor([[0, 0, 3.0], [0, 0, 0], [0, 0, 0]])),
        "stretched": lambda: cam(K=K * torch.tensor([1.0, 1.5, 1.0])[:, None]),
        "world": lambda: replace(c, points=c.points + 100),
        "no points": lambda: replace(c, points=None, colors=None),
        "elsewhere": lambda: cam(c2w=torch.cat([pose[..., :2].roll(1, -1) * torch.tensor([1.0, -1.0]), pose[..., 2:]], -1)),
        "missing": lambda: replace(c, expected=100),
    }[what]()


@pytest.mark.parametrize("what, check, level, words", [
    ("one place", "parallax", "error", "no parallax"), ("opengl", "common point", "error", "OpenGL axes"), ("order", "points", "warning", "order of the poses"),
    ("white", "pixels", "error", "view_000, is white"), ("black", "pixels", "error", "2 of 24 pictures show nothing, the first, view_000, is black"),
    ("clear", "pixels", "error", "24 of 24 .* transparent"), ("range", "near and far", "error", "makes no sense"), ("centre", "lens", "warning", "7.5% of a side off"),
    ("stretched", "lens", "warning", "stretched"), ("world", "points", "error", "different worlds"), ("no points", "points", "warning", "none"),
    ("elsewhere", "points", "warning", "order of the poses"), ("missing", "views", "error", "24 of 100 pictures have a camera"),
])
def test_the_doctor_names_what_is_broken(sound, what, check, level, words):
    finding = found(broken(sound, what), check)
    assert finding.level == level and re.search(words, finding.message), finding


def test_the_doctor_knows_forward_facing_cameras(scene):
    side = torch.eye(4).repeat(20, 1, 1)
    side[:, 0, 3] = torch.linspace(-1, 1, 20)
    c = replace(scene[[0] * 20], camera=Camera(scene.camera.K[0], side, 40, 40), points=None, colors=None, near=1.0, far=10.0)
    assert found(c, "parallax").level == "ok" and "forward" in found(c, "common point").message


def test_findings_come_as_a_table_what_is_wrong_first(scene):
    table = findings_table(doctor(broken(scene, "white")))
    assert table.rows[0][0] == "error" and table.rows[0][1] == "pixels" and len(table.rows) == 7


def test_frusta_hold_the_pictures_corners():
    camera = Camera.from_fov(90.0, 20, 20, orbit_cameras(3, 20, 20).c2w)
    edges = frusta(camera, 2.0)
    assert edges.shape == (24, 2, 3)
    uv, z = project(torch.from_numpy(edges[:4, 1]), camera[0])
    assert torch.allclose(uv[0], torch.tensor([[0.0, 0], [20, 0], [20, 20], [0, 20]], dtype=torch.float64), atol=1e-9) and torch.allclose(z, torch.full_like(z, 2.0))


def test_cameras_can_be_drawn_without_points(scene):
    import matplotlib.pyplot as plt

    figure = show_cameras({"a": scene, "b": replace(scene[0], points=None, colors=None)})
    assert len(figure.axes) == 2
    plt.close(figure)


# ---------------------------------------------------------------- photos, and the command line


def photos(folder, c):
    for i in range(len(c)):
        png(folder / f"images/{i:02d}.png", c.on("white")[i])
    return folder


def stand_in(folder, script):
    """Write an interpreter that ignores the program it is given."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_photos_report_progress_and_failures(tmp_path, scene):
    photos(tmp_path, scene[:4])
    said = []
    assert poses_from_photos(tmp_path, tmp_path / "out", said.append, stand_in(tmp_path, "echo features of 4 photos; echo noise; echo 'model 0: 4 photos'")) == tmp_path / "out"
    assert said == ["features of 4 photos", "model 0: 4 photos"]
    for script, error, words in (("exit 3", ImportError, r"pip install 'paperlib\[sfm\]'"), ("exit 4", ValueError, "no two of the 4 photos could be joined"),
                                 ("echo broken things >&2; exit 9", ValueError, "COLMAP stopped with code 9: .*broken things")):
        with pytest.raises(error, match=words):
            poses_from_photos(tmp_path, None, said.append, stand_in(tmp_path, script))
    with pytest.raises(FileNotFoundError, match="holds 0 photos"):
        (tmp_path / "empty").mkdir()
        poses_from_photos(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        poses_from_photos(tmp_path / "nowhere")


@pytest.mark.skipif(find_spec("pycolmap") is None, reason="needs pycolmap, the extra sfm")
def test_photos_of_fox_find_their_cameras(tmp_path):
    """Eighteen photos through COLMAP and back: the distances between cameras are those of the set, up to a scale."""
    known = recorded("fox")
    for name in known.names[:18]:
        file = next(p for r in captures_roots() if (p := r / "fox/images_4" / Path(name).name).is_file())
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes())
    c = capture(poses_from_photos(tmp_path))
    assert len(c) >= 16
    at = [int(np.flatnonzero([Path(n).name == m for n in known.names])[0]) for m in c.names]
    one, two = torch.cdist(c.camera.position, c.camera.position), torch.cdist(known.camera.position[at], known.camera.position[at])
    scale = (one * two).sum() / (one * one).sum()
    assert (scale * one - two).abs().max() < 0.05 * two.max()


def paperlib(monkeypatch, capsys, *words):
    """Return exit code, output and complaints of a command, called as the installed one is."""
    from paperlib import cli

    monkeypatch.setattr(sys, "argv", ["paperlib", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0, *capsys.readouterr()


def test_the_command_doctor(tmp_path, scene, monkeypatch, capsys):
    write_transforms(scene, tmp_path)
    code, out, _ = paperlib(monkeypatch, capsys, "data", "doctor", str(tmp_path), "--json")
    assert code == 0 and [r["check"] for r in json.loads(out)] == ["views", "parallax", "common point", "points", "lens", "pixels", "near and far"]
    edit(tmp_path, lambda d: d["frames"][3].update(transform_matrix=[[0] * 4] * 4))
    code, out, _ = paperlib(monkeypatch, capsys, "data", "doctor", str(tmp_path))
    assert code == 1 and "frames[3]" in out and "singular" in out


def test_the_command_photos_says_what_it_lacks(tmp_path, scene, monkeypatch, capsys):
    photos(tmp_path, scene[:2])
    code, _, err = paperlib(monkeypatch, capsys, "data", "photos", str(tmp_path))
    assert code == 2 and "holds 2 photos" in err
    photos(tmp_path, scene[:3])
    monkeypatch.setattr(captures.poses_from_photos, "__defaults__", (None, print, stand_in(tmp_path, "exit 3")))
    code, _, err = paperlib(monkeypatch, capsys, "data", "photos", str(tmp_path))
    assert code == 1 and err.strip() == "paperlib: finding cameras needs pycolmap: pip install pycolmap, or pip install 'paperlib[sfm]'"


def test_a_blender_scene_is_held_out_by_its_own_test_set(blender_lego):
    """Also where it lies in a data folder and is named by a relative path; without one, every so-manyth view is held out."""
    root, whole = blender_lego
    train, held = train_and_held("nerf_synthetic/lego", 12)
    assert (len(train), len(held), train.images.shape[1:3]) == (12, 3, (12, 12))
    assert np.allclose(held.camera.c2w, whole[12:].camera.c2w, atol=1e-6)
    (root / "transforms_test.json").unlink()
    assert [len(c) for c in train_and_held("nerf_synthetic/lego", every=3)] == [8, 4]
