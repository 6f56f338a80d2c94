"""core.scenes where it loops over scenes, sizes, workers, files and devices."""
import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from paperlib.core import scenes as S
from paperlib.core.scenes import (
    LABELS,
    Box,
    Camera,
    Frames,
    Material,
    Mesh,
    Plane,
    RoadConfig,
    RoomConfig,
    Scene,
    SceneStream,
    Sensor,
    Sphere,
    backproject,
    get_rays,
    look_at,
    make_view,
    render,
)

CONFIGS = {"room": RoomConfig(), "road": RoadConfig()}


def brute_force(scene: Scene, rays_o: np.ndarray, rays_d: np.ndarray) -> np.ndarray:
    """Depth of the first surface on rays (R, 3): every ray against every surface, in float64."""
    a, hits = scene.arrays, [np.full(len(rays_o), np.inf)]
    p, b, s, _ = np.cumsum(a["counts"])
    with np.errstate(divide="ignore", invalid="ignore"):
        for n, d in zip(a["normal"], a["offset"][:, 0]):
            front, slope = rays_o @ n + d, rays_d @ n
            hits.append(np.where((front > 0) & (slope < 0), -front / slope, np.inf))
        for R, c, h in zip(a["frame"][p:b], a["center"][p:b], a["half"][p:b]):
            o, d = (rays_o - c) @ R.T, rays_d @ R.T
            t = np.sort([(-h - o) / d, (h - o) / d], axis=0)
            hits.append(np.where((t[0].max(1) <= t[1].min(1)) & (t[0].max(1) > 0), t[0].max(1), np.inf))
        for c, h in zip(a["center"][b:s], a["half"][b:s]):
            o = rays_o - c
            A, B, C = (rays_d**2).sum(1), (o * rays_d).sum(1), (o**2).sum(1) - h[0] ** 2
            t = (-B - np.sqrt(np.maximum(B * B - A * C, 0))) / A
            hits.append(np.where((B * B >= A * C) & (t > 0), t, np.inf))
        for v in a["triangles"]:
            n = np.cross(v[1] - v[0], v[2] - v[0])
            t = (n @ v[0] - rays_o @ n) / (rays_d @ n)
            q = rays_o + t[:, None] * rays_d
            inside = [np.cross(n, v[(i + 1) % 3] - v[i]) @ (q - v[i]).T >= 0 for i in range(3)]
            hits.append(np.where(np.all(inside, 0) & (t > 0), t, np.inf))
    return np.min(hits, 0)


def view(kind: str, seed: int, height: int = 45, width: int = 61) -> tuple[Scene, Camera]:
    if kind == "still life":
        return S.still_life(seed), S.orbit_cameras(5, height, width)[seed % 5]
    return make_view(CONFIGS[kind], seed, height, width)


# ---- the ray caster ----

@pytest.mark.parametrize("kind", ["room", "road", "still life"])
@pytest.mark.parametrize("seed", range(4))
def test_depth_is_that_of_brute_force(kind, seed):
    scene, camera = view(kind, seed)
    o, d = (r[0].reshape(-1, 3).numpy() for r in get_rays(45, 61, camera.K, camera.c2w))
    plain = brute_force(scene, o, d).reshape(45, 61)
    exact = render(scene, camera, dtype=torch.float64)
    assert np.array_equal(exact.mask[0, 0].numpy(), np.isfinite(plain))
    known = np.isfinite(plain)
    np.testing.assert_allclose(exact.depth[0, 0].numpy()[known], plain[known], rtol=1e-9)
    single = render(scene, camera).depth[0, 0].double().numpy()
    relative = np.abs(single - plain)[known] / plain[known]
    assert (relative > 1e-5).mean() < 2e-3 and np.median(relative) < 2e-7         # but for rays along an outline


@pytest.mark.parametrize("kind", ["room", "road", "still life"])
@pytest.mark.parametrize("seed", range(3))
def test_shadows_are_those_of_brute_force(kind, seed):
    scene, camera = view(kind, seed)
    white = lambda things: tuple(t._replace(material=Material((1, 1, 1), (1, 1, 1))) for t in things)
    scene = replace(scene, planes=white(scene.planes), boxes=white(scene.boxes), spheres=white(scene.spheres), meshes=white(scene.meshes),
                    ambient=0.0, light=scene.light._replace(power=1.0), sky=(0, 0, 0))
    seen = render(scene, camera, dtype=torch.float64)
    mask = seen.mask[0, 0].numpy()
    points = backproject(seen.depth, camera)[0].movedim(0, -1).numpy()[mask]
    normals = (seen.normals[0].movedim(0, -1) @ camera.c2w[0, :3, :3].T).numpy()[mask]
    light = np.array(scene.light.position)
    way = np.broadcast_to(light, points.shape) if scene.light.sun else light - points
    cosine = (normals * way).sum(1) / np.linalg.norm(way, axis=1)
    away = points + 1e-4 * seen.depth[0, 0].numpy()[mask][:, None] * normals
    blocked = brute_force(replace(scene, planes=()), away, way) < (np.inf if scene.light.sun else 1)
    expected = np.where(blocked, 0, cosine.clip(0))
    got = (seen.rgb[0, 0].numpy() ** 2)[mask]
    assert (np.abs(got - expected) > 1e-6).mean() < 2e-3
    assert 0.005 < blocked.mean() < 0.95                                          # there is shadow, and light


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 8), (9, 130), (131, 5)])
def test_any_size(size):
    scene, camera = make_view(RoomConfig(), 5, 96, 128)
    camera = camera.resize(*size)
    o, d = (r[0].reshape(-1, 3).numpy() for r in get_rays(*size, camera.K, camera.c2w))
    np.testing.assert_allclose(render(scene, camera, dtype=torch.float64).depth[0, 0].numpy().ravel(), brute_force(scene, o, d), rtol=1e-9)


def test_blocks_do_not_show(monkeypatch):
    scene, camera = view("road", 1, 90, 120)
    whole = render(scene, camera)
    monkeypatch.setattr(S, "_BLOCK", 37)
    pieces = render(scene, camera)
    torch.testing.assert_close(pieces.rgb, whole.rgb, rtol=0, atol=1e-5)
    assert torch.equal(pieces.depth, whole.depth) and torch.equal(pieces.instance, whole.instance)


def test_a_frame_does_not_depend_on_its_batch():
    pairs = [view("room", 0), view("road", 0), view("room", 1), view("still life", 2)] * 5     # more than one group of frames
    batch = render([s for s, _ in pairs], Camera.cat([c for _, c in pairs]))
    for i in (0, 1, 3, 18):
        alone = render(*pairs[i])
        assert torch.equal(batch.depth[i:i + 1], alone.depth) and torch.equal(batch.semantic[i:i + 1], alone.semantic)
        torch.testing.assert_close(batch.rgb[i:i + 1], alone.rgb, rtol=0, atol=1e-5)


def test_things_around_behind_and_across_the_camera():
    """Boxes that reach behind the camera, that hold it between them, and that lie wholly behind."""
    boxes = (Box((0, 0, -1), (30, 30, 0.2)), Box((-2, 0, 0), (0.2, 40, 3)), Box((2.5, 1, 0), (0.2, 40, 3), yaw=0.03), Box((0, -9, 0), (30, 0.2, 30)))
    scene = Scene(boxes=boxes, spheres=(Sphere((0, -5, 0), 2.0),), meshes=(Mesh(((-3, -3, 1.2), (3, -3, 1.2), (0, 30, 1.4)), ((0, 1, 2),)),))
    for target in ((0, 1, 0), (1, 0.3, 0.1), (-0.2, -1, 0.05), (0.1, 0.2, -1)):
        camera = Camera.from_fov(110, 40, 56, look_at((0, 0, 0), target))
        o, d = (r[0].reshape(-1, 3).numpy() for r in get_rays(40, 56, camera.K, camera.c2w))
        plain = brute_force(scene, o, d)
        depth = render(scene, camera, dtype=torch.float64).depth[0, 0].numpy().ravel()
        np.testing.assert_allclose(np.where(depth > 0, depth, np.inf), plain, rtol=1e-9)


def test_supersampling_changes_colour_alone():
    scene, camera = view("room", 2)
    one, three = render(scene, camera), render(scene, camera, samples=3)
    assert torch.equal(one.depth, three.depth) and torch.equal(one.instance, three.instance)
    assert 0 < (one.rgb - three.rgb).abs().mean() < 0.05


def test_an_empty_scene_is_sky():
    f = render(Scene(sky=(0.25, 0.04, 1.0)), Camera.from_fov(60, 9, 11))
    assert not f.mask.any() and (f.semantic == 0).all()
    torch.testing.assert_close(f.rgb[0, :, 4, 5], torch.tensor([0.5, 0.2, 1.0]))


@pytest.mark.parametrize("thing, message", [
    ({"boxes": (Box((0, 0, 0), (1, 0, 1)),)}, "no size"), ({"spheres": (Sphere((0, 0, np.nan), 1),)}, "at no place"),
    ({"boxes": (Box((0, 0, 0), (1, 1, 1), label="throne"),)}, "'throne'"), ({"planes": (Plane((0, 0, 1), 0, Material(pattern="tartan")),)}, "'tartan'"),
    ({"meshes": (Mesh(((0, 0, 0), (1, 0, 0), (2, 0, 0)), ((0, 1, 2),)),)}, "no size")])
def test_impossible_surfaces_are_named(thing, message):
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        render(Scene(**thing), Camera.from_fov(60, 8, 8))


@pytest.mark.parametrize("args, message", [((0, 8, 8), "degrees"), ((180, 8, 8), "degrees"), ((60, 0, 8), "one pixel"), ((60, 10.5, 8), "whole numbers")])
def test_impossible_cameras_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        Camera.from_fov(*args)


def test_bad_matrices_and_counts_are_named():
    good = Camera.from_fov(60, 8, 8)
    skewed, flat = good.K.clone(), good.K.clone()
    skewed[0, 0, 1], flat[0, 0, 0] = 0.1, 0
    for K in (skewed, flat, good.K * 2):
        with pytest.raises(ValueError, match="fx, fy > 0"):
            replace(good, K=K)
    with pytest.raises(ValueError, match="rotation"):
        replace(good, c2w=2 * torch.eye(4))
    with pytest.raises(ValueError, match=r"\(1, 3, 2\)"):
        replace(good, c2w=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="each of 1 cameras, got 2"):
        render([Scene(), Scene()], good)
    with pytest.raises(ValueError, match="one sample"):
        render(Scene(), good, samples=0)
    with pytest.raises(ValueError, match="one size"):
        Camera.cat([good, good.resize(4, 4)])
    with pytest.raises(ValueError, match="expected depth"):
        backproject(torch.ones(1, 1, 4, 4), good)


# ---- what scenes are drawn from ----

@pytest.mark.parametrize("kind", CONFIGS)
def test_cameras_stand_where_they_may(kind):
    config = CONFIGS[kind]
    for seed in range(60):
        scene, camera = make_view(config, seed, 30, 40)
        x, y, z = camera.position[0].tolist()
        assert scene.space[0] < x < scene.space[2] and scene.space[1] <= y <= scene.space[3]
        assert config.camera_height[0] <= z <= config.camera_height[1] and z < scene.ceiling
        assert S._clearance(scene, camera.position.numpy())[0] > 0.1
        pitch = float(torch.rad2deg(torch.asin(camera.c2w[0, 2, 2])))
        fov = 2 * float(torch.rad2deg(torch.atan(20 / camera.K[0, 0, 0])))
        assert config.pitch[0] - 1e-6 <= pitch <= config.pitch[1] + 1e-6 and config.fov[0] - 1e-6 <= fov <= config.fov[1] + 1e-6
        assert abs(float(camera.c2w[0, 2, 0])) < 1e-9                             # no roll


def test_rooms_are_closed_and_of_the_size_asked_for():
    sides = []
    for seed in range(40):
        scene, camera = make_view(RoomConfig(), seed, 15, 20)
        sides += [scene.space[2] - scene.space[0], scene.space[3] - scene.space[1]]
        assert render(scene, camera).mask.all()
    assert 2 <= min(sides) < 3 and 9 < max(sides) <= 10


def test_every_label_of_a_place_occurs():
    indoors = {"wall", "floor", "ceiling", "window", "door", "picture", "bed", "chair", "sofa", "table", "cabinet", "shelf", "lamp", "box", "plant"}
    outdoors = {"void", "road", "pavement", "grass", "building", "car", "tree", "pole", "fence", "person"}
    for kind, labels in (("room", indoors), ("road", outdoors)):
        stream = SceneStream(CONFIGS[kind], 60, 80, 16)
        seen = torch.cat([stream[i].semantic.unique() for i in range(8)]).unique()
        assert {LABELS[i] for i in seen} == labels
    assert indoors | outdoors == set(LABELS)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_one_cue_at_a_time(kind, seed):
    base_scene, base_camera = make_view(CONFIGS[kind], seed, 45, 61)
    base = render(base_scene, base_camera)
    for cue in ({"haze": 0.1}, {"texture": 0.3}, {"object_size": 0.7}):
        scene, camera = make_view(replace(CONFIGS[kind], **cue), seed, 45, 61)
        assert torch.equal(camera.c2w, base_camera.c2w) and torch.equal(camera.K, base_camera.K)
        f = render(scene, camera)
        assert torch.equal(f.depth, base.depth) == ("object_size" not in cue)
        assert not torch.equal(f.rgb, base.rgb)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("scale", [1 / 12, 0.5, 7.0])
def test_a_dolls_house_gives_the_same_picture(kind, scale):
    base, doll = (render(*make_view(replace(CONFIGS[kind], scale=s, haze=0.02), 4, 45, 61), dtype=torch.float64) for s in (1.0, scale))
    torch.testing.assert_close(doll.depth / scale, base.depth, rtol=1e-9, atol=0)
    assert ((doll.rgb - base.rgb).abs().amax(1) > 1e-6).double().mean() < 1e-3       # a pixel right on a line of a pattern may fall on either side
    assert torch.equal(doll.semantic, base.semantic)


@pytest.mark.parametrize("fields, message", [
    ({"camera_height": (2.0, 1.0)}, "camera_height"), ({"texture": 1.5}, "texture"), ({"object_size": 0.1}, "object_size"),
    ({"scale": 0.0}, "scale"), ({"fov": (0.0, 60.0)}, "fov"), ({"pitch": (-95.0, 0.0)}, "pitch"), ({"haze": -1.0}, "haze")])
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RoomConfig(**fields)


def test_other_configurations_are_refused():
    with pytest.raises(ValueError, match="RoomConfig or a RoadConfig"):
        make_view(S.SceneConfig(), 0, 8, 8)
    with pytest.raises(ValueError, match="factor > 0"):
        Scene().scaled(0)


# ---- the stream ----

@pytest.mark.parametrize("sensor", [None, Sensor.structured_light()])
def test_batches_do_not_depend_on_the_number_of_workers(sensor):
    stream = SceneStream(RoomConfig(), 16, 24, 2, seed=3, sensor=sensor)
    expected = [stream[i] for i in range(5)]
    for workers in (0, 1, 2, 3):
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        for a, b in zip(expected, loader):
            assert a.names == b.names and torch.equal(a.depth, b.depth)
            torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-5)
    assert pickle.loads(pickle.dumps(stream))[2].names == expected[2].names


def test_processes_share_one_stream():
    whole = SceneStream(RoomConfig(), 8, 8, 1, seed=1)
    parts = [iter(SceneStream(RoomConfig(), 8, 8, 1, seed=1, rank=r, world_size=3)) for r in range(3)]
    assert [next(parts[i % 3]).names for i in range(6)] == [whole[i].names for i in range(6)]


def test_seeds_give_other_scenes():
    depths = torch.cat([SceneStream(RoomConfig(), 8, 8, 4, seed=s)[i].depth for s in range(3) for i in range(2)])
    assert len(depths.flatten(1).unique(dim=0)) == 24


@pytest.mark.parametrize("options, message", [({"batch_size": 5, "views": 2}, "multiple of views"), ({"rank": 2, "world_size": 2}, "rank < world_size")])
def test_impossible_streams_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SceneStream(RoomConfig(), **options)


# ---- sensors ----

def wall(angle: float = 0.0, height: int = 60, width: int = 80) -> Frames:
    """A wall 3 m away, turned by an angle in degrees."""
    a = np.radians(angle)
    return render(Scene(planes=(Plane((np.sin(a), -np.cos(a), 0), 3.0 * np.cos(a)),)), Camera.from_fov(10, height, width, look_at((0, 0, 0), (0, 1, 0))))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_holes_grow_with_the_angle():
    shares = [float(Sensor(grazing=70).measure(wall(a), generator()).mask.float().mean()) for a in (0, 60, 68, 70, 72, 80)]
    assert shares[0] == 1 and shares[-1] < 0.02 and shares[3] == pytest.approx(0.5, abs=0.05)
    assert shares == sorted(shares, reverse=True)


def test_frames_without_normals_are_measured_by_those_of_their_depth():
    f = replace(wall(75), normals=None)
    inner = Sensor(grazing=70).measure(f, generator()).mask[..., 1:-1, 1:-1]
    assert inner.float().mean() < 0.15 and Sensor(grazing=80).measure(f, generator()).mask[..., 1:-1, 1:-1].float().mean() > 0.85


def test_range_dropout_steps_and_edges():
    f = wall()
    assert not Sensor(near=3.1).measure(f, generator()).mask.any() and not Sensor(far=2.9).measure(f, generator()).mask.any()
    assert float(Sensor(dropout=0.3).measure(f, generator()).mask.float().mean()) == pytest.approx(0.7, abs=0.03)
    stepped = Sensor(step=0.5, noise=0.3).measure(f, generator()).depth
    torch.testing.assert_close((stepped / 0.5).round() * 0.5, stepped)
    near = render(Scene((Plane((0, -1, 0), 4.0),), (Box((0, 2, 0), (0.6, 0.1, 9)),)), Camera.from_fov(40, 20, 200, look_at((0, 0, 0), (0, 1, 0))))
    lost = ~Sensor(edge=3).measure(near, generator()).mask
    assert lost[0, 0, 10].sum() == 6 and (near.depth[lost] > 3).all()              # three pixels on either side, all of the wall behind


def test_a_sensor_leaves_the_truth_alone_and_sky_unknown():
    scene, camera = make_view(RoadConfig(), 0, 60, 80)
    truth = render(scene, camera)
    before = truth.depth.clone()
    for sensor in (Sensor.lidar(), Sensor.structured_light(), Sensor(noise=0.5)):
        one, two = sensor.measure(truth, generator()), sensor.measure(truth, generator())
        assert torch.equal(one.depth, two.depth) and not (one.mask & ~truth.mask).any()
        assert (one.depth[~one.mask] == 0).all() and (one.depth[one.mask] > 0).all()
    assert torch.equal(truth.depth, before)


# ---- many views ----

@pytest.mark.parametrize("kind", ["room", "road"])
def test_views_agree(kind):
    """No view sees beyond a point that another one sees."""
    scene, camera = make_view(CONFIGS[kind], 6, 30, 40, n=3)
    seen = render(scene, camera, dtype=torch.float64)
    for i in range(3):
        points = backproject(seen.depth[i:i + 1], camera[i])[0].movedim(0, -1)[seen.mask[i, 0]].numpy()
        for j in range(3):
            eye = camera.position[j].numpy()
            assert (brute_force(scene, np.broadcast_to(eye, points.shape), points - eye) < 1 + 1e-9).all()


@pytest.mark.parametrize("make", [lambda: (S.still_life(1), S.orbit_cameras(9, 60, 80)),
                                  lambda: (s := S.room(RoomConfig(side=(3, 5)), 1), S.inside_cameras(s, 9, 60, 80))])
def test_sparse_points_lie_on_surfaces_that_views_share(make):
    scene, camera = make()
    exact = S.multi_view(scene, camera, 500, samples=1)
    assert exact.points.shape == exact.colors.shape == (500, 3) and exact.views.min() >= 2 and exact.views.max() <= 9
    eye = camera.position.numpy()
    first = np.stack([brute_force(scene, np.broadcast_to(e, (500, 3)), exact.points.double().numpy() - e) for e in eye])
    sees = np.abs(first - 1) < 1e-3
    assert (sees.sum(0) >= 1).mean() > 0.98
    noisy = S.multi_view(scene, camera, 500, noise=1.0, samples=1)
    off = (noisy.points - exact.points).norm(dim=1).median() * float(camera.K[0, 0, 0])
    assert 0.5 < float(off) / float(exact.frames.depth[exact.frames.mask].median()) < 4    # about a pixel


def test_points_of_more_pixels_than_torch_draws_from(monkeypatch):
    """Forty views of 800 pixels are more categories than `torch.multinomial` takes: the same law is drawn another way."""
    frames = render(S.still_life(0), S.orbit_cameras(4, 24, 32))
    plain = S.sparse_points(frames, 100)[0]
    monkeypatch.setattr(S, "_CATEGORIES", 100)
    points, colors, views = S.sparse_points(frames, 100)
    assert points.shape == colors.shape == (100, 3) and views.min() >= 2 and len(points.unique(dim=0)) == 100
    assert torch.equal(points, S.sparse_points(frames, 100)[0]) and not torch.equal(points, S.sparse_points(frames, 100, seed=1)[0])
    assert (points.mean(0) - plain.mean(0)).norm() < 4 * (plain.std(0) / 10).norm()


def test_points_that_nobody_shares_are_an_error():
    scene = S.still_life(0)
    with pytest.raises(ValueError, match="overlap"):
        S.multi_view(scene, S.orbit_cameras(1, 30, 40), samples=1)


# ---- frames ----

def test_frames_are_cut_joined_and_resized():
    scene, camera = make_view(RoomConfig(), 1, 48, 64, n=3)
    f = replace(render(scene, camera), names=("a", "b", "c"))
    assert f[1].names == ("b",) and len(f[-1]) == 1 and torch.equal(f[-1].depth, f.depth[2:])
    again = Frames.cat([f[0], f[1:]])
    assert again.names == f.names and torch.equal(again.rgb, f.rgb) and torch.equal(again.camera.c2w, f.camera.c2w)
    small = f.resize(16, 32)
    assert small.rgb.shape == (3, 3, 16, 32) and small.semantic.shape == (3, 16, 32) and small.mask.dtype == torch.bool
    assert set(small.depth.unique().tolist()) <= set(f.depth.unique().tolist())            # nothing is blended
    torch.testing.assert_close(small.camera.K, f.camera.resize(16, 32).K)


# ---- files ----

def triple(folder, name, depth, pose=None, color=(30, 40), suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    Image.fromarray(rng.integers(0, 255, (*color, 3), dtype=np.uint8)).save(folder / f"{name}.color.{suffix}")
    Image.fromarray(depth).save(folder / f"{name}.depth.png")
    np.savetxt(folder / f"{name}.pose.txt", np.eye(4) if pose is None else pose)


def millimetres(h=30, w=40):
    depth = (1000 + np.arange(h * w).reshape(h, w)).astype(np.uint16)
    depth[0, 0], depth[0, 1] = 0, 65535
    return depth


@pytest.fixture
def seven(tmp_path):
    root = tmp_path / "chess"
    for sequence in (1, 2, 3):
        for frame in (0, 1):
            triple(root / f"seq-{sequence:02d}", f"frame-{frame:06d}", millimetres())
    (root / "TrainSplit.txt").write_text("sequence1\nsequence3\n")
    (root / "TestSplit.txt").write_text("sequence2\n")
    return root


def test_seven_scenes(seven):
    assert len(S.seven_scenes(seven)) == 6 and len(S.seven_scenes(seven, "train")) == 4
    test = S.seven_scenes(seven, "test")
    assert test.names == ("seq-02/frame-000000", "seq-02/frame-000001")
    f = test["seq-02/frame-000001"]
    assert f.depth[0, 0, 0, :3].tolist() == pytest.approx([0, 0, 1.002]) and f.mask[0, 0, 0, :3].tolist() == [False, False, True]
    assert f.camera.K[0, 0, 0] == 585 and f.names == ("seq-02/frame-000001",) and len(test[1:]) == 1
    registered = S.seven_scenes(seven, "test", align="fitted")[0]
    assert registered.rgb.shape == f.rgb.shape and torch.equal(registered.depth, f.depth)


def test_seven_scenes_names_what_is_wrong(seven):
    with pytest.raises(ValueError, match="train, test, all, got 'val'"):
        S.seven_scenes(seven, "val")
    with pytest.raises(KeyError, match="frame-000009"):
        S.seven_scenes(seven)["frame-000009"]
    (seven / "seq-02" / "frame-000001.pose.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"seq-02.frame-000001\.pose\.txt is missing"):
        S.seven_scenes(seven)
    (seven / "TrainSplit.txt").write_text("sequence7\n")
    with pytest.raises(FileNotFoundError, match="seq-07 is missing"):
        S.seven_scenes(seven, "train")
    with pytest.raises(FileNotFoundError, match="was not found"):
        S.seven_scenes(seven / "nothing")


@pytest.mark.parametrize("damage, message", [
    (lambda p: p.with_name("frame-000000.depth.png").write_bytes(p.with_name("frame-000000.depth.png").read_bytes()[:-60]), "depth.png cannot be read"),
    (lambda p: Image.fromarray(np.zeros((30, 40), np.uint8)).save(p.with_name("frame-000000.depth.png")), "16 bits"),
    (lambda p: p.with_name("frame-000000.color.png").write_bytes(b""), "color.png cannot be read"),
    (lambda p: Image.fromarray(np.zeros((15, 20, 3), np.uint8)).save(p.with_name("frame-000000.color.png")), "15 x 20 pixels, its depth 30 x 40"),
    (lambda p: p.with_name("frame-000000.pose.txt").write_text("1 0 0"), "should hold 4 x 4 numbers"),
    (lambda p: p.with_name("frame-000000.pose.txt").write_text("nan " * 16), "no pose"),
    (lambda p: np.savetxt(p.with_name("frame-000000.pose.txt"), np.diag([1, -1, 1, 1])), "right-handed")])
def test_damaged_frames_are_named(seven, damage, message):
    damage(seven / "seq-01" / "x")
    frames = S.seven_scenes(seven)
    with pytest.raises(ValueError, match=f"seq-01.*frame-000000.*{message}" if "depth.png" not in message and "color.png" not in message else message):
        frames[0]
    assert len(frames[1]) == 1                                                    # its neighbour can still be read


def test_redkitchen_layout_and_split(tmp_path):
    for frame in (0, 632, 640, 792):
        triple(tmp_path, f"frame-{frame:06d}", millimetres(), suffix="jpg")
    with pytest.raises(FileNotFoundError, match="camera-intrinsics"):
        S.redkitchen(tmp_path)
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[36.0, 0, 20], [0, 36, 15], [0, 0, 1]])
    assert [n[-3:] for n in S.redkitchen(tmp_path, "train").names] == ["000", "632"] and len(S.redkitchen(tmp_path, "test")) == 2
    raw, shifted = (S.redkitchen(tmp_path, align=a)[0] for a in ("raw", "shift"))
    assert shifted.depth.shape == (1, 1, 18, 38) and torch.equal(shifted.rgb, raw.rgb[..., 12:, 2:]) and torch.equal(shifted.depth, raw.depth[..., :18, :38])
    with pytest.raises(ValueError, match="fitted, shift, raw"):
        S.redkitchen(tmp_path, align="guess")


def test_redkitchen_as_it_lies(shared):
    kitchen = S.redkitchen(shared / "data" / "rgbd_redkitchen")
    assert len(kitchen) == 100 and len(S.redkitchen(shared / "data" / "rgbd_redkitchen", "test")) == 20
    f = kitchen[0]
    assert f.rgb.shape == (1, 3, 480, 640) and f.camera.K[0, 0, 0] == 585 and 0.85 < f.mask.float().mean() < 0.95


def test_lidar_outdoor3_as_it_lies(shared):
    frames = S.lidar_outdoor3(shared / "data" / "lidar_outdoor3")
    assert len(frames) == 3
    for f in (frames[i] for i in range(3)):
        assert f.rgb.shape == (1, 3, 514, 616) and 4000 < f.mask.sum() < 7000 and 1 < f.depth[f.mask].min() and f.depth.max() < 256


@pytest.fixture
def open3d(tmp_path):
    for name in ("color", "depth"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.fromarray(np.full((30, 40, 3), i * 50, np.uint8)).save(tmp_path / "color" / f"{i:05d}.jpg")
        Image.fromarray(millimetres()).save(tmp_path / "depth" / f"{i:05d}.png")
    (tmp_path / "camera_intrinsic.json").write_text(json.dumps({"width": 40, "height": 30, "intrinsic_matrix": [36, 0, 0, 0, 35, 0, 20, 15, 1]}))
    poses = [look_at((i, 0, 1), (i, 3, 1)).numpy() for i in range(3)]
    (tmp_path / "trajectory.log").write_text("".join(f"{i} {i} {i + 1}\n" + "\n".join(" ".join(map(str, r)) for r in p) + "\n" for i, p in enumerate(poses)))
    return tmp_path


def test_open3d_layout(open3d):
    frames = S.open3d_rgbd(open3d)
    f = frames["00002"]
    assert f.camera.K[0].tolist() == [[36, 0, 20], [0, 35, 15], [0, 0, 1]] and f.camera.position[0].tolist() == [2, 0, 1]
    assert f.depth[0, 0, 0, 2] == pytest.approx(1.002) and S.open3d_rgbd(open3d, depth_scale=500)[0].depth[0, 0, 0, 2] == pytest.approx(2.004)
    (open3d / "trajectory.log").unlink()
    assert torch.equal(S.open3d_rgbd(open3d)[1].camera.c2w[0], torch.eye(4, dtype=torch.float64))


def test_open3d_names_what_is_wrong(open3d):
    (open3d / "depth" / "00001.png").unlink()
    with pytest.raises(ValueError, match="3 pictures, 2 depth maps, 3 poses"):
        S.open3d_rgbd(open3d)
    Image.fromarray(millimetres()).save(open3d / "depth" / "00001.png")
    (open3d / "trajectory.log").write_text("0 0 1\n1 0 0 0\n")
    with pytest.raises(ValueError, match="blocks of five lines"):
        S.open3d_rgbd(open3d)
    (open3d / "trajectory.log").unlink()
    (open3d / "camera_intrinsic.json").write_text("{}")
    with pytest.raises(ValueError, match="nine numbers"):
        S.open3d_rgbd(open3d)
    (open3d / "camera_intrinsic.json").unlink()
    with pytest.raises(FileNotFoundError, match="intrinsic"):
        S.open3d_rgbd(open3d)
    with pytest.raises(FileNotFoundError, match="depth/"):
        S.open3d_rgbd(open3d / "color")


@pytest.fixture
def nyu(tmp_path):
    h5py = pytest.importorskip("h5py", reason="NYUv2's file needs h5py")
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as f:      # as MATLAB writes it: axes reversed
        f["images"] = rng.integers(0, 255, (4, 3, 40, 30), dtype=np.uint8)
        f["depths"] = rng.uniform(1, 5, (4, 40, 30)).astype(np.float32)
        f["rawDepths"] = np.where(rng.random((4, 40, 30)) < 0.2, 0, f["depths"][:]).astype(np.float32)
        f["labels"] = rng.integers(0, 3, (4, 40, 30), dtype=np.uint16)
        f["instances"] = rng.integers(0, 5, (4, 40, 30), dtype=np.uint8)
        refs = f.create_dataset("names", (1, 2), dtype=h5py.ref_dtype)
        for i, name in enumerate(("book", "bottle")):
            f[f"#refs#/{i}"] = np.array([[ord(c)] for c in name], np.uint16)
            refs[0, i] = f[f"#refs#/{i}"].ref
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[2], [4]])})
    return tmp_path


def test_nyu(nyu):
    import h5py

    frames = S.nyuv2(nyu)
    with h5py.File(nyu / "nyu_depth_v2_labeled.mat") as f:
        images, depths, labels = f["images"][:], f["depths"][:], f["labels"][:]
    f = frames[2]
    assert len(frames) == 4 and f.rgb.shape == (1, 3, 30, 40) and f.depth.shape == (1, 1, 30, 40)
    assert f.rgb[0, 1, 7, 11] * 255 == pytest.approx(images[2, 1, 11, 7]) and f.depth[0, 0, 7, 11] == depths[2, 11, 7]
    assert f.semantic[0, 7, 11] == labels[2, 11, 7] and frames.labels == ("unlabelled", "book", "bottle") and f.mask.all()
    assert not S.nyuv2(nyu, raw=True)[2].mask.all()
    assert S.nyuv2(nyu, "train").names == ("0000", "0002") and S.nyuv2(nyu / "nyu_depth_v2_labeled.mat", "test").names == ("0001", "0003")


def test_nyu_names_what_is_wrong(nyu):
    import h5py
    from scipy.io import savemat

    file = nyu / "nyu_depth_v2_labeled.mat"
    with pytest.raises(ValueError, match="train, test, all"):
        S.nyuv2(nyu, "val")
    savemat(nyu / "splits.mat", {"trainNdxs": np.array([[9]])})
    with pytest.raises(ValueError, match="names frame 9, but the set has 4"):
        S.nyuv2(nyu, "train")
    with pytest.raises(ValueError, match="testNdxs"):
        S.nyuv2(nyu, "test")
    (nyu / "splits.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"splits\.mat is missing"):
        S.nyuv2(nyu, "test")
    with h5py.File(file, "a") as f:
        del f["instances"]
    with pytest.raises(ValueError, match="no array 'instances'"):
        S.nyuv2(nyu)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut short"):
        S.nyuv2(nyu)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        S.nyuv2(nyu)


def test_nyu_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install h5py"):
        S.nyuv2(tmp_path)


@pytest.fixture
def kitti(tmp_path):
    drive, raw, truth = "2011_09_26_drive_0002_sync", tmp_path / "raw", tmp_path / "depth"
    for index in (69, 70):
        picture = raw / "2011_09_26" / drive / "image_02" / "data" / f"{index:010d}.png"
        depth = truth / "val" / drive / "proj_depth" / "groundtruth" / "image_02" / f"{index:010d}.png"
        for file in (picture, depth):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((375, 1242, 3), index, np.uint8)).save(picture)
        values = np.zeros((375, 1242), np.uint16)
        values[200:, ::7] = 20 * 256
        Image.fromarray(values).save(depth)
    head = f"2011_09_26/{drive}/image_02/data"
    (tmp_path / "paths.txt").write_text("".join(f"{head}/{i:010d}.jpg {drive}/proj_depth/groundtruth/image_02/{i:010d}.png 721.5377\n" for i in (69, 70))
                                        + f"{head}/0000000071.jpg None 721.5377\n")
    (tmp_path / "drives.txt").write_text(f"2011_09_26/{drive} 69 l\n2011_09_26/{drive} 0000000070 l\n")
    return tmp_path


def test_kitti(kitti):
    calibration = kitti / "raw" / "2011_09_26" / "calib_cam_to_cam.txt"
    frames = S.kitti(kitti / "raw", kitti / "paths.txt", kitti / "depth")
    f = frames[0]
    assert len(frames) == 2 and f.depth[0, 0, 300, 7] == 20 and f.mask.sum() == 175 * len(range(0, 1242, 7))
    assert f.camera.K[0].tolist() == [[721.5377, 0, 621], [0, 721.5377, 187.5], [0, 0, 1]]
    calibration.write_text("calib_time: 09-Jan-2012 13:57:47\nP_rect_02: 721 0 609 44 0 721 172 0.2 0 0 1 0.003\n")
    for split in ("paths.txt", "drives.txt"):
        again = S.kitti(kitti / "raw", kitti / split, kitti / "depth")
        assert again.names == frames.names and again[1].camera.K[0].tolist() == [[721, 0, 609], [0, 721, 172], [0, 0, 1]]
    cut = S.kb_crop(f)
    assert cut.rgb.shape == (1, 3, 352, 1216) and cut.camera.K[0, 1, 2] == 187.5 - 23 and cut.camera.K[0, 0, 2] == 621 - 13
    masked = f.mask & S.crop_mask("garg", 375, 1242)
    assert 0 < masked.sum() < f.mask.sum()


def test_kitti_names_what_is_wrong(kitti):
    depth = next((kitti / "depth").rglob("0000000070.png"))
    depth.unlink()
    with pytest.raises(FileNotFoundError, match=r"0000000070\.png is missing, and 0 more of 4 files"):
        S.kitti(kitti / "raw", kitti / "paths.txt", kitti / "depth")
    (kitti / "bad.txt").write_text("a/b/image_02/data/1.jpg x 7.0\nonly_one_word\n")
    with pytest.raises(ValueError, match="line 2"):
        S.kitti_split(kitti / "bad.txt")
    (kitti / "bad.txt").write_text("2011_09_26 12 l\n")
    with pytest.raises(ValueError, match="line 1"):
        S.kitti_split(kitti / "bad.txt")
    with pytest.raises(FileNotFoundError, match="no such split"):
        S.kitti_split(kitti / "none.txt")
    (kitti / "one.txt").write_text((kitti / "drives.txt").read_text().splitlines()[0])
    frames = S.kitti(kitti / "raw", kitti / "one.txt", kitti / "depth")
    with pytest.raises(FileNotFoundError, match=r"calib_cam_to_cam\.txt is missing"):
        frames[0]                                                                 # this form of list has no focal length


def test_depth_pictures_come_back(tmp_path):
    depth = np.array([[0.5, 80.0, 0.0], [np.nan, np.inf, 3.25]])
    S.write_depth(tmp_path / "d.png", depth, 256)
    np.testing.assert_array_equal(S.read_depth(tmp_path / "d.png", 256), np.array([[0.5, 80, 0], [0, 0, 3.25]], np.float32))
    for wrong in (np.full((2, 2), 300.0), np.full((2, 2), 1e-4), np.ones(3)):
        with pytest.raises(ValueError, match="expected depth"):
            S.write_depth(tmp_path / "e.png", wrong, 256)
    assert not (tmp_path / "e.png").exists()
    with pytest.raises(FileNotFoundError, match="no such depth map"):
        S.read_depth(tmp_path / "e.png", 256)


def test_absent_sets_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    monkeypatch.setattr(S, "data_roots", lambda: {"PAPERLIB_DATA": tmp_path})
    for read in (S.redkitchen, S.lidar_outdoor3, S.nyuv2):
        with pytest.raises(FileNotFoundError, match="(?s)Licence.*Looked at.*PAPERLIB_DATA"):
            read()


# ---- on a GPU ----

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["room", "road", "still life"])
def test_a_gpu_gives_what_the_cpu_gives(kind):
    scene, camera = view(kind, 0, 120, 160)
    cpu, gpu = render(scene, camera), render(scene, camera, device="cuda")
    assert all(v.is_cuda for v in (gpu.rgb, gpu.depth, gpu.mask, gpu.normals, gpu.semantic, gpu.camera.K))
    apart = (gpu.depth.cpu() - cpu.depth).abs() > 1e-5 * cpu.depth
    assert apart.float().mean() < 1e-3                                            # rays along an outline
    assert ((gpu.rgb.cpu() - cpu.rgb).abs().amax(1) > 1e-3).float().mean() < 5e-3
    sensed = Sensor.structured_light().measure(gpu, torch.Generator("cuda").manual_seed(0))
    assert sensed.depth.is_cuda and sensed.mask.float().mean() > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_and_views_on_a_gpu():
    frames = SceneStream(RoomConfig(), 48, 64, 4, device="cuda", sensor=Sensor.lidar())[0]
    assert frames.depth.is_cuda and frames.mask.any()
    views = S.multi_view(S.still_life(0), S.orbit_cameras(6, 48, 64), 300, device="cuda")
    assert views.points.is_cuda and len(views.points) == 300


