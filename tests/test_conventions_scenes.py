"""docs/conventions.md for cameras, depth, normals and labels."""
import math

import pytest
import torch

from paperlib.core.scenes import (
    LABELS,
    Box,
    Camera,
    Mesh,
    Plane,
    RoomConfig,
    Scene,
    Sphere,
    backproject,
    get_rays,
    look_at,
    make_view,
    opengl_to_opencv,
    project,
    render,
)

EYE = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("axis, moves", [((1.0, 0, 0), (1, 0)), ((0, 1.0, 0), (0, 1)), ((0, 0, 1.0), (0, 0))])
def test_convention_camera_axes_are_right_down_forward(axis, moves):
    camera = Camera.from_fov(60, 48, 64)
    before, after = (project(torch.tensor([p]), camera)[0][0, 0] for p in ((0, 0, 4.0), tuple(a + b for a, b in zip((0, 0, 4.0), axis))))
    assert (after - before).sign().tolist() == list(moves)


def test_convention_the_columns_of_c2w_are_right_down_forward_position():
    pose = look_at((1.0, 2, 3), (1, 7, 3))                       # looks along +y of a world whose z is up
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(pose, expected)


@pytest.mark.parametrize("row, column", [(0, 0), (0, 63), (47, 0), (20, 31)])
def test_convention_pixel_centres_lie_at_one_half(row, column):
    camera = Camera.from_fov(75, 48, 64, look_at((0, 0, 1.5), (2, 3, 1)))
    rays_o, rays_d = get_rays(48, 64, camera.K[0], camera.c2w[0])
    uv, _ = project((rays_o + 3 * rays_d)[row, column][None], camera)
    torch.testing.assert_close(uv[0, 0], torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64))


def test_convention_rays_have_length_one_along_the_axis():
    camera = Camera.from_fov(100, 24, 32, look_at((0, 0, 1), (3, 1, 0)))
    rays_d = get_rays(24, 32, camera.K[0], camera.c2w[0])[1]
    torch.testing.assert_close(rays_d @ camera.c2w[0, :3, 2], torch.ones(24, 32, dtype=torch.float64))
    assert rays_d.norm(dim=-1).max() > 1.2


def test_convention_opengl_poses_look_along_minus_z():
    turned = opengl_to_opencv(EYE)
    assert turned[:3, 2].tolist() == [0, 0, -1] and turned[:3, 1].tolist() == [0, -1, 0]
    K = Camera.from_fov(60, 24, 32).K[0]
    ours, theirs = get_rays(24, 32, K, turned), get_rays(24, 32, K, EYE, convention="opengl")
    torch.testing.assert_close(ours, theirs)
    assert (theirs[1][0, :, 1] > 0).all() and (theirs[1][..., 2] == -1).all()      # the first row looks up


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 2, 3])
def test_convention_a_resized_camera_sees_the_resized_picture(scale):
    """On a plane 1/z is linear in the pixel, so the mean of 1/z over a block is 1/z at the block's centre: the coarse pixel's."""
    scene = Scene(planes=(Plane((0.2, -1, 0.3), 5.0), Plane((0, 0, 1), 0.5)))
    fine = Camera.from_fov(50, 48, 72, look_at((0, 0, 3), (0, 4, 3.5)))
    other = fine.resize(round(48 * scale), round(72 * scale))
    small, large = sorted((fine, other), key=lambda c: c.height)
    block = large.height // small.height
    inverse = [1 / render(Scene(planes=scene.planes[:1]), c, dtype=torch.float64).depth for c in (small, large)]
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(inverse[1], block), inverse[0])


def test_convention_a_cropped_camera_sees_the_crop():
    scene, camera = make_view(RoomConfig(), 3, 60, 80)
    whole, part = render(scene, camera), render(scene, camera.crop(13, 22, 30, 41))
    torch.testing.assert_close(part.depth, whole.depth[..., 13:43, 22:63], rtol=1e-5, atol=1e-5)
    assert torch.equal(part.semantic, whole.semantic[:, 13:43, 22:63])


def test_convention_rendered_depth_is_along_the_axis():
    facing = render(Scene(planes=(Plane((0, -1, 0), 3.0),)), Camera.from_fov(90, 64, 64, look_at((0, 0, 0), (0, 1, 0))))
    torch.testing.assert_close(facing.depth, torch.full_like(facing.depth, 3.0))


@pytest.mark.parametrize("thing", [
    {"planes": (Plane((0, -1, 0), 4.0),)}, {"boxes": (Box((0, 5, 0), (9, 2, 9), yaw=0.0),)}, {"spheres": (Sphere((0, 104, 0), 100.0),)},
    {"meshes": (Mesh(((-9, 4, -9), (9, 4, -9), (0, 4, 9)), ((0, 1, 2),)),)}, {"meshes": (Mesh(((-9, 4, -9), (9, 4, -9), (0, 4, 9)), ((0, 2, 1),)),)}])
def test_convention_normals_face_the_camera_in_its_frame(thing):
    seen = render(Scene(**thing), Camera.from_fov(20, 9, 9, look_at((0, 0, 0), (0, 1, 0))))
    torch.testing.assert_close(seen.normals[0, :, 4, 4], torch.tensor([0.0, 0, -1]))
    assert (seen.normals.norm(dim=1) - 1).abs().max() < 1e-5


def test_convention_the_layout_of_frames():
    scene, camera = make_view(RoomConfig(), 0, 24, 32, n=2)
    f = render(scene, camera)
    assert f.rgb.shape == f.normals.shape == (2, 3, 24, 32) and f.depth.shape == f.mask.shape == (2, 1, 24, 32)
    assert f.semantic.shape == f.instance.shape == (2, 24, 32) and f.semantic.dtype == f.instance.dtype == torch.int64
    assert f.rgb.dtype == f.depth.dtype == torch.float32 and f.mask.dtype == torch.bool
    assert f.rgb.min() >= 0 and f.rgb.max() <= 1 and f.semantic.max() < len(LABELS)


def test_convention_unknown_depth_is_zero_and_masked():
    f = render(Scene(spheres=(Sphere((0, 5, 0), 1.0, label="box", instance=7),)), Camera.from_fov(60, 32, 32, look_at((0, 0, 0), (0, 1, 0))))
    sky = ~f.mask
    assert sky.any() and (f.depth[sky] == 0).all() and (f.depth[f.mask] > 0).all()
    assert (f.semantic[sky[:, 0]] == LABELS.index("void")).all() and (f.instance[sky[:, 0]] == 0).all()
    assert (f.normals.norm(dim=1)[sky[:, 0]] == 0).all() and (f.instance[f.mask[:, 0]] == 7).all()


def test_convention_backprojection_is_in_the_world():
    camera = Camera.from_fov(70, 6, 8, look_at((4.0, -1, 2), (0, 0, 1)))
    points = backproject(torch.zeros(1, 1, 6, 8, dtype=torch.float64), camera)
    torch.testing.assert_close(points[0, :, 2, 3], torch.tensor([4.0, -1, 2], dtype=torch.float64))


def test_convention_fields_of_view_are_horizontal_and_in_degrees():
    camera = Camera.from_fov(80, 60, 90)
    left, right = get_rays(1, 2, camera.resize(1, 2).K[0], EYE, offset=0)[1][0, 0], get_rays(1, 3, camera.resize(1, 2).K[0], EYE, offset=0)[1][0, 2]
    angle = math.degrees(math.atan(right[0]) - math.atan(left[0]))
    assert angle == pytest.approx(80) and camera.K[0, 0, 0] == camera.K[0, 1, 1]
