"""Perspective: pixel features against plain twins, boosting, the classifier on data of three kinds, files, and input that should be refused."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import paperlib
from paperlib.core.paper import recorded
from paperlib.core.scenes import Frames
from paperlib.depth import perspective
from paperlib.depth.joint_boost import HistBoost, JointBoost, above_zero, fibonacci_thresholds
from paperlib.depth.perspective import (
    CanonicalDepthClassifier,
    Eye,
    canonical_rows,
    decode,
    depth_levels,
    draw_pixels,
    found_shares,
    grid_points,
    level_of,
    room_frames,
    voters,
)
from paperlib.depth.pixel_features import COLOURS, Columns, Vocabulary, colour_planes, draw_columns, rectangle_counts

TINY = {"levels": 8, "ratio": 1.4, "canonical_depth": 9.0, "words": 6, "columns": 60, "reach": 10, "rounds": 6, "candidates": 20, "pixels": 400, "stride": 8, "segments": 20}
SHORT = {"frames": 6, "test_frames": 3, "height": 48, "words": 6, "columns": 60, "reach": 10, "rounds": 4, "candidates": 20, "pixels": 300, "stride": 8, "segments": 20}


@pytest.fixture(scope="module")
def rooms() -> Frames:
    return room_frames(6, (48, 64), 1)


@pytest.fixture(scope="module")
def fitted(rooms) -> CanonicalDepthClassifier:
    return CanonicalDepthClassifier(**TINY).fit(rooms)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_counts_equal_cutting_out(height, width, seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 3, (2, height, width)).astype(rng.choice([np.uint8, np.uint16]))
    columns, points = draw_columns(20, 3, 6, rectangles=7, kinds=2, seed=seed), rng.integers(-4, 16, (5, 2))
    found = rectangle_counts(words, points, columns)
    for m, (kind, word, (top, left, bottom, right)) in enumerate(zip(*columns)):
        for n, (y, x) in enumerate(points):
            assert found[m, n] == (words[kind, max(0, y + top):max(0, y + bottom), max(0, x + left):max(0, x + right)] == word).sum()


def test_counts_refuse_what_does_not_fit():
    columns = Columns(np.array([3], np.int32), np.array([0], np.int32), np.array([[0, 0, 1, 1]], np.int32))
    with pytest.raises(ValueError, match="descriptor 3, words are of 2"):
        rectangle_counts(np.zeros((2, 4, 4), np.uint8), np.zeros((1, 2), int), columns)


@pytest.mark.parametrize("call, message", [
    (lambda: colour_planes(np.full((4, 4, 3), 180, np.uint8)), "floats in"), (lambda: colour_planes(np.full((4, 4, 3), 2.0)), "of 2 to 2"), (lambda: Vocabulary.fit([], 5), "a picture"),
    (lambda: draw_columns(5, 4, 0), "reach=0"), (lambda: draw_columns(5, 0, 4), "words=0"), (lambda: fibonacci_thresholds(100), "1 to 80"), (lambda: level_of(np.ones(3), np.ones(1)), "1 levels")])
def test_feature_settings_that_make_no_sense_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("space", COLOURS)
def test_words_in_every_colour_space(rooms, space):
    picture = rooms.rgb[0].movedim(0, -1).numpy()
    one, two = (Vocabulary.fit([picture], 5, space, seed=3, samples=500)(picture) for _ in range(2))
    assert one.shape == (4, 48, 64) and one.max() < 5 and np.array_equal(one, two)
    assert all(len(np.unique(kind)) > 1 for kind in one)


def test_boosting_ignores_rows_without_weight():
    rng = np.random.default_rng(0)
    counts, target = rng.poisson(8, (20, 300)), rng.integers(0, 3, 300)
    weight = (np.arange(300) < 200).astype(float)
    other = target.copy()
    other[200:] = (other[200:] + 1) % 3
    one, two = (JointBoost(10, 20).fit(counts, t, weight) for t in (target, other))
    assert np.array_equal(one.column_, two.column_) and np.allclose(one.below_, two.below_, atol=1e-6)


def test_a_class_may_be_absent():
    rng = np.random.default_rng(1)
    counts, target = rng.poisson(8, (20, 300)), rng.integers(0, 2, 300)
    counts[4, target == 1] += 20
    model = JointBoost(12, 20).fit(counts, target, classes=4)
    assert model.decision(counts).shape == (4, 300) and (model.decision(counts).argmax(0) == target).mean() > 0.95
    assert np.isfinite(model.below_).all()
    assert np.allclose(np.exp(HistBoost(3).fit(counts, target, classes=4).log_likelihood(counts)).sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("booster", [JointBoost(4, 20), HistBoost(3)])
@pytest.mark.parametrize("change, message", [
    ({"target": -1}, "classes of 0 to 2"), ({"classes": 2}, "classes of 0 to 1"), ({"weight": np.zeros(60)}, "one above 0"), ({"weight": np.full(60, np.nan)}, "weight"), ({"weight": -np.ones(60)}, "weight"),
    ({"weight": np.ones(9)}, r"got \(9,\)"), ({"rounds": 0}, "rounds=0"), ({"rounds": 2.5}, "rounds=2.5"), ({"counts": np.zeros((0, 60))}, "counts")])
def test_rows_that_cannot_be_learnt_from_are_named(booster, change, message):
    rng = np.random.default_rng(0)
    counts, target = change.get("counts", rng.poisson(8, (20, 60))), np.arange(60) % 3 + change.get("target", 0)
    booster = type(booster)(change.get("rounds", 3))
    with pytest.raises(ValueError, match=message):
        booster.fit(counts, target, change.get("weight"), change.get("classes", 3))


@pytest.mark.parametrize("booster", [JointBoost(4, 20), HistBoost(3)])
def test_boosters_answer_only_what_they_learnt(booster):
    rng = np.random.default_rng(0)
    counts = rng.poisson(8, (30, 200)).astype(np.uint16)
    with pytest.raises(ValueError, match="is not fitted"):
        type(booster)().log_likelihood(counts)
    booster.fit(counts, rng.integers(0, 3, 200))
    with pytest.raises(ValueError, match=r"expected counts \(30, N\).*\(2, 3\)"):
        booster.log_likelihood(np.ascontiguousarray(counts[:2, :3]))  # the compiled loop would read what lies behind
    only = type(booster)(3).fit(counts, np.ones(200, int), None, 3).log_likelihood(counts)
    assert only.shape == (3, 200) and (only.argmax(0) == 1).all() and np.allclose(np.exp(only).sum(0), 1, atol=1e-4)
    few = [[0, 9, 1, 8] * 20, [3, 3, 4, 4] * 20]  # lists are taken as arrays are
    assert (type(booster)(3, seed=0).fit(few, [0, 1, 0, 1] * 20).log_likelihood(few).argmax(0).tolist()) == [0, 1, 0, 1] * 20


def test_sparse_rows_hold_all_that_is_above_the_first_threshold():
    counts = np.array([[0, 3, 2, 8], [0, 0, 0, 0], [5, 1, 100, 2]])
    index, level, ends = above_zero(counts, fibonacci_thresholds(8))
    assert index.tolist() == [1, 3, 0, 2] and level.tolist() == [1, 3, 2, 8] and ends.tolist() == [0, 2, 2, 4]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 5), st.floats(1.05, 3), st.integers(2, 30))
def test_levels_are_their_own_nearest(near, ratio, levels):
    grid = depth_levels(near, ratio, levels)
    assert level_of(grid, grid).tolist() == list(range(levels))
    assert level_of(grid * ratio**0.49, grid).tolist() == list(range(levels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert level_of(np.array([0.0, near / ratio, grid[-1] * ratio, np.inf, np.nan]), grid).tolist() == [-1] * 5


def test_held_back_levels_are_not_drawn(rooms):
    grid = depth_levels(0.8, 1.4, 8)
    keep = np.ones(8)
    keep[5:] = 0
    pixels = draw_pixels(rooms, 500, grid, 0, keep)
    own = level_of(pixels.depth, grid)
    assert len(pixels) == 500 and own.min() >= 0 and own.max() < 5
    rows = canonical_rows(pixels, grid, 2, 0.3)
    assert rows.level.max() < 5 and (rows.target == 1).sum() == 2 * (rows.target == 0).sum()
    at = np.floor(pixels.at).astype(int)
    assert np.array_equal(rooms.depth[pixels.picture, 0, at[:, 0], at[:, 1]].numpy(), pixels.depth)


def test_a_level_alone_has_no_negatives():
    pixels = perspective.Pixels(np.zeros(4, int), np.zeros((4, 2)), np.full(4, 2.0), np.zeros(4, int))
    rows = canonical_rows(pixels, np.array([1.0, 2.0, 4.0]), 3, 0.3)
    assert len(rows.of) == 4 and not rows.target.any()


def test_gathering_streams_or_takes_pyramids(rooms, fitted):
    pixels, eye = draw_pixels(rooms, 100, fitted.eye_.grid, 2), fitted.eye_
    rows = canonical_rows(pixels, eye.grid, 1, 0.3)
    pyramids = [eye.pyramid(x) for x in rooms.rgb]
    assert np.array_equal(eye.gather(rooms, pixels, rows, None, 0), eye.gather(rooms, pixels, rows, pyramids, 0))


def test_several_colour_spaces_average(rooms):
    two = CanonicalDepthClassifier(**(TINY | {"spaces": ("lab", "grey")})).fit(rooms)
    pyramid = two.eye_.pyramid(rooms.rgb[0])
    assert pyramid[0].shape[0] == 8
    whole, boosters = two.predict_scores(rooms.rgb[0]), two.boosters_
    alone = []
    for s in (0, 1):
        ask = two.eye_.count(pyramid[3], perspective.grid_points((48, 64), 8), (48, 64), s)
        found = boosters[s][0].log_likelihood(ask)
        alone.append(found[0] - found[1])
    assert np.allclose(whole[3, 0], np.mean(alone, 0), atol=1e-5)


@pytest.mark.parametrize("changed", [{"scaling": "untied"}, {"scaling": "none"}, {"target": "joint", "classes": 10}, {"target": "label", "scaling": "none", "classes": 10},
                                     {"booster": "hist", "columns": 12, "rounds": 2}, {"segments": 0}])
def test_every_kind_answers(rooms, changed, fitted):
    model = CanonicalDepthClassifier(**(TINY | changed)).fit(rooms, eye=None if "columns" in changed else fitted.eye_)
    depth, label = model.predict_both(rooms.rgb[:2])
    assert depth.shape == (2, 1, 48, 64) and label.shape == (2, 48, 64) and np.isfinite(model.predict_scores(rooms.rgb[0])).all()
    if changed.get("target") != "label":
        assert set(depth.unique().tolist()) <= set(np.float32(model.eye_.grid).tolist())
    assert label.max() < max(1, model.classes)


def test_untied_says_never_at_levels_without_pixels(rooms, fitted):
    grid = fitted.eye_.grid
    pixels = draw_pixels(rooms, 400, grid, 0, np.where(np.arange(8) < 5, 1.0, 0.0))
    model = CanonicalDepthClassifier(**(TINY | {"scaling": "untied"})).fit(rooms, pixels, eye=fitted.eye_)
    assert model.boosters_[0][6] is None and (model.predict_scores(rooms.rgb[0])[5:] == -20).all()


def test_more_words_than_a_byte_holds(rooms, fitted):
    rng, eye = np.random.default_rng(0), Eye(fitted.eye_.grid, fitted.eye_.focal, 9.0, 6.0)
    of = fitted.eye_.vocabularies[0]
    eye.vocabularies = [Vocabulary({k: (c[rng.integers(0, 6, 400)] + 0.1 * rng.normal(size=(400, c.shape[1]))).astype(np.float32) for k, c in of.centres.items()}, of.scales)]
    words = eye.pyramid(rooms.rgb[0])[-1]
    assert words.dtype == np.uint16 and words.max() > 255


def test_a_longer_lens_is_undone(rooms, fitted):
    """A picture of twice the size through twice the focal length is the same picture; blocks make the resampling exact."""
    eye = Eye(fitted.eye_.canonical_depth / np.array([4.0, 2.0]), fitted.eye_.focal, fitted.eye_.canonical_depth, fitted.eye_.canonical_depth / 2, "blocks")
    eye.vocabularies, eye.columns = fitted.eye_.vocabularies, fitted.eye_.columns
    doubled = rooms.rgb[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    for a, b in zip(eye.pyramid(rooms.rgb[0]), eye.pyramid(doubled, 2 * eye.focal)):
        assert a.shape == b.shape and (a == b).mean() > 0.99


@pytest.mark.parametrize("size", [(97, 131), (50, 70), (64, 96)])
def test_exact_resampling_moves_the_curve_at_any_size(size):
    """A picture of repeated pixels is the picture one level nearer, whole blocks or not."""
    changed = {"near": 0.75, "ratio": 2.0, "levels": 5, "canonical_depth": 12.0, "resampling": "blocks", "segments": 0}
    model = CanonicalDepthClassifier(**(TINY | changed)).fit(room_frames(8, (48, 64), 5))
    image, points = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)), grid_points(size, 4)
    before, after = model.predict_scores(image, points), model.predict_scores(image.repeat_interleave(2, 1).repeat_interleave(2, 2), 2 * points)
    assert np.abs(after[:-1] - before[1:]).max() < 1e-5 < np.ptp(before, axis=0).max()
    whole = perspective.rescaled(image, 0.25, "blocks")
    assert whole.shape == (-(-size[0] // 4), -(-size[1] // 4), 3) and np.allclose(whole[3, 5], image[:, 12:16, 20:24].mean((1, 2)))
    assert perspective.shifts(model, Frames(image[None], torch.ones(1, 1, *size), torch.ones(1, 1, *size) > 0), "")["shift_exact"] == 1


def test_words_of_blocks_are_looked_up_where_the_pixel_is(fitted):
    """The last block reaches beyond a picture of 50 rows; the pixel of row 31 is in the second block of 16, though 31 / 50 of four blocks are more than two."""
    eye = Eye(fitted.eye_.grid, fitted.eye_.focal, 16.0, 8.0, "blocks")
    eye.grid, words = np.array([1.0, 2.0]), np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(4, 0)
    eye.columns = [Columns(np.zeros(4, np.int32), np.arange(4, dtype=np.int32), np.tile(np.int32([0, 0, 1, 1]), (4, 1)))]
    found = eye.count(words, np.array([[31.5, 3.0], [33.0, 3.0]]), eye.covered(words, (50, 16), 0), 0)
    assert found.argmax(0).tolist() == [1, 2]


def test_voting_covers_every_pixel_of_odd_sizes():
    rng = np.random.default_rng(0)
    rgb, scores = torch.rand(3, 13, 22, generator=torch.Generator().manual_seed(0)), rng.random((3, 2, 4 * 6))
    for segments in (0, 7):
        where, voted = voters(rgb, scores, 4, segments)
        assert where.shape == (13, 22) and voted.shape[:2] == (3, 2) and where.max() < voted.shape[2]
    assert np.array_equal(voters(rgb, scores, 4, 0)[0][4:8, 8], np.full(4, 6 + 2))


def test_decoding_sums_out_the_other():
    scores = np.log(np.array([[[0.5], [0.1]], [[0.35], [0.34]]]))
    assert [int(v[0]) for v in decode(scores)] == [1, 0]            # the best pair is (0, 0); the best depth is the other


def test_recall_gives_rare_classes_their_say():
    truth = torch.tensor([0] * 300 + [1] * 100 + [2] * 10)[None]
    assert found_shares(torch.zeros_like(truth), truth) == {0: 1.0, 1: 0.0}        # the third class is too small to count
    assert found_shares(truth, truth, first=1) == {1: 1.0} and found_shares(truth, torch.full_like(truth, -1)) == {}


@pytest.mark.parametrize("changed, message", [
    ({"target": "depths"}, "target='depths': expected one of depth"), ({"spaces": ("hsv",)}, "'hsv' is none of lab"), ({"spaces": ()}, "spaces"), ({"rounds": 0}, "rounds=0"),
    ({"ratio": 1.0}, "ratio=1.0"), ({"target": "joint"}, "classes >= 2"), ({"target": "label"}, "label needs 'none'"), ({"scaling": "untied", "target": "joint", "classes": 10}, "joint needs 'canonical'")])
def test_settings_are_refused(rooms, changed, message):
    with pytest.raises(ValueError, match=message):
        CanonicalDepthClassifier(**(TINY | changed)).fit(rooms)


def test_pictures_are_refused(rooms, fitted):
    with pytest.raises(ValueError, match="no camera"):
        CanonicalDepthClassifier(**TINY).fit(Frames(rooms.rgb, rooms.depth, rooms.mask))
    with pytest.raises(ValueError, match=r"expected pictures \(B, 3, H, W\)"):
        fitted.predict(rooms.rgb[0])
    with pytest.raises(ValueError, match=r"expected a picture \(3, H, W\)"):
        fitted.predict_scores(rooms.rgb[:1])
    with pytest.raises(ValueError, match="may be drawn"):
        draw_pixels(Frames(rooms.rgb, rooms.depth, torch.zeros_like(rooms.mask), rooms.camera), 5, fitted.eye_.grid)


def test_files_that_are_none(tmp_path, rooms, fitted):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no classifier"):
            CanonicalDepthClassifier.load(tmp_path / name)
    fitted.save(tmp_path / "whole.npz")
    whole, rng, refused = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(0), 0
    for i in range(60):                                                # cut off, or with wrong bytes, which zlib or zipfile may be the one to meet
        broken = bytearray(whole)
        for k in rng.integers(0, len(whole), 3):
            broken[k] ^= 255
        (tmp_path / "broken.npz").write_bytes(bytes(broken)[:None if i % 3 else int(rng.integers(0, len(whole)))])
        try:                                                           # a wrong date in the archive harms nothing
            again = CanonicalDepthClassifier.load(tmp_path / "broken.npz")
            assert np.array_equal(again.predict_scores(rooms.rgb[0]), fitted.predict_scores(rooms.rgb[0]))
        except ValueError as error:
            assert "broken.npz holds no classifier" in str(error)
            refused += 1
    assert refused > 40
    with pytest.raises(ValueError, match="booster='joint'"):
        CanonicalDepthClassifier(**TINY).save(tmp_path / "unfitted.npz")
    untied = CanonicalDepthClassifier(**(TINY | {"scaling": "untied"})).fit(rooms, draw_pixels(rooms, 300, fitted.eye_.grid, 0, np.arange(8) < 5), eye=fitted.eye_)
    untied.save(tmp_path / "untied.npz")
    again = CanonicalDepthClassifier.load(tmp_path / "untied.npz")
    assert again.boosters_[0][6] is None and np.array_equal(again.predict_scores(rooms.rgb[0]), untied.predict_scores(rooms.rgb[0]))
    numbers = CanonicalDepthClassifier(**(TINY | {"levels": np.int64(8), "near": np.float32(0.8), "random_state": np.int64(3)})).fit(rooms)
    numbers.save(tmp_path / "numbers.npz")                             # settings may be NumPy's numbers
    again = CanonicalDepthClassifier.load(tmp_path / "numbers.npz")
    assert again.random_state == 3 and np.array_equal(again.predict_scores(rooms.rgb[0]), numbers.predict_scores(rooms.rgb[0]))


@pytest.mark.parametrize("changed, message", [({"data": "roms"}, "data='roms'"), ({"folder": "x"}, "folder='x'"), ({"data": "folder"}, "folder=''"), ({"common": (4.0, 1.0)}, "common="), ({"classes": 3}, "10 on rooms"),
                                              ({"spaces": ("lab", "cmyk")}, "spaces="), ({"keep": 2.0}, "keep=2.0"), ({"reach": 200}, "reach=200"), ({"words": 30000}, "words=30000"), ({"booster": "ada"}, "booster='ada'"), ({"levels": 3}, "levels=3")])
def test_presets_are_refused_before_any_work(changed, message):
    with pytest.raises(ValueError, match=message):
        paperlib.paper("perspective").preset("small", changed)


@pytest.fixture
def own_folder(tmp_path, rooms):
    """A folder as a user would bring it: two pictures to learn from, one to be measured on."""
    for part, at in {"train": (0, 1), "test": (2,)}.items():
        for kind in ("color", "depth", "label"):
            (tmp_path / part / kind).mkdir(parents=True)
        for i in at:
            Image.fromarray((255 * rooms.rgb[i]).byte().permute(1, 2, 0).numpy()).save(tmp_path / part / "color" / f"{i}.png")
            Image.fromarray((1000 * rooms.depth[i, 0]).numpy().astype(np.uint16)).save(tmp_path / part / "depth" / f"{i}.png")
            Image.fromarray((rooms.semantic[i] + 1).byte().numpy()).save(tmp_path / part / "label" / f"{i}.png")
        K = rooms.camera.K[0].T.flatten().tolist()
        (tmp_path / part / "camera_intrinsic.json").write_text(json.dumps({"width": 64, "height": 48, "intrinsic_matrix": K}))
    return tmp_path


def test_a_folder_of_ones_own(own_folder):
    short = SHORT | {"data": "folder", "folder": str(own_folder), "classes": 3, "far": 1000.0}
    metrics = paperlib.reproduce("perspective", "small", device="cpu", **short).metrics
    assert 0 <= metrics["joint_class_recall"] <= 1 and metrics["train_share_held"] == 0 and "rare_delta_1" not in metrics
    assert not any("far_class_recall" in k for k in metrics)          # nothing is that far: no score, and not one of 0
    for part in ("train", "test"):
        shutil.rmtree(own_folder / part / "label")
    assert "joint_delta_1" not in paperlib.reproduce("perspective", "small", device="cpu", **short).metrics


def test_a_test_picture_without_depth_is_left_out_and_named(own_folder):
    short = SHORT | {"data": "folder", "folder": str(own_folder), "classes": 3}
    for kind in ("color", "depth", "label"):
        shutil.copy(own_folder / "test" / kind / "2.png", own_folder / "test" / kind / "3.png")
    Image.fromarray(np.full((48, 64), 60000, np.uint16)).save(own_folder / "test" / "depth" / "3.png")
    with pytest.warns(UserWarning, match="no depth from .* in 3: left out"):
        metrics = paperlib.reproduce("perspective", "small", device="cpu", **short).metrics
    assert metrics["frames_skipped"] == 1 and 0 <= metrics["delta_1"] <= 1
    (own_folder / "test" / "depth" / "3.png").rename(own_folder / "test" / "depth" / "2.png")
    for kind in ("color", "label"):
        (own_folder / "test" / kind / "3.png").unlink()
    with pytest.raises(ValueError, match="in 2: no test picture can be scored"):
        paperlib.reproduce("perspective", "small", device="cpu", **short)


def test_a_folder_with_gaps_says_which(own_folder):
    short = SHORT | {"data": "folder", "folder": str(own_folder)}
    with pytest.raises(ValueError, match="classes=200: the training set has"):
        paperlib.reproduce("perspective", "small", device="cpu", **(short | {"classes": 200}))
    shutil.move(own_folder / "test" / "label", own_folder / "hidden")
    with pytest.raises(ValueError, match="labels in the training set only"):
        paperlib.reproduce("perspective", "small", device="cpu", **short)
    shutil.move(own_folder / "hidden", own_folder / "test" / "label")
    assert perspective.load_frames(paperlib.paper("perspective").preset("small", short | {"height": 24, "classes": 3}), 0)[1].rgb.shape[2:] == (24, 32)
    label = next((own_folder / "train" / "label").iterdir())
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(label)
    with pytest.raises(ValueError, match=rf"{label.name}: expected a grey picture of \(48, 64\)"):
        paperlib.reproduce("perspective", "small", device="cpu", **short)
    label.unlink()
    with pytest.raises(ValueError, match="1 labels for 2 pictures"):
        paperlib.reproduce("perspective", "small", device="cpu", **short)
    shutil.rmtree(own_folder / "train" / "depth")
    with pytest.raises(FileNotFoundError, match="depth/"):
        paperlib.reproduce("perspective", "small", device="cpu", **short)


def test_the_kitchen_is_scored_where_eigens_page_does(shared, monkeypatch):
    """The mean-depth map at these pixels is the one that Eigen's page has recorded; its cells are of 4 x 4 pixels, ours of one."""
    preset = paperlib.paper("perspective").preset("small", {"data": "redkitchen"})
    train, test = perspective.load_frames(preset, 0)
    assert (len(train), len(test), train.semantic) == (80, 20, None)
    monkeypatch.setattr(CanonicalDepthClassifier, "predict_both", lambda *a: (test.depth.clamp(min=0.1), None))
    found = perspective.beside_eigen(CanonicalDepthClassifier(), train, test, None)
    theirs = [r.metrics["mean_delta_1"] for r in recorded("eigen") if r.overrides == {"data": "redkitchen"}]
    assert found["mean_map_delta_1"] == pytest.approx(theirs[0], abs=0.02) and found["eigen_grid_delta_1"] == 1
    settings_found = perspective.settings_of(preset, train, 3)
    assert 0.5 < settings_found["near"] < 1 and 6 < settings_found["levels"] < 14 and settings_found["random_state"] == 3


def test_depths_that_leave_no_choice_of_levels_are_named(rooms):
    preset = paperlib.paper("perspective").preset("small", {"data": "redkitchen", "ratio": 4.0})
    with pytest.raises(ValueError, match="ratio=4.0: training depths from .* make [23] levels"):
        perspective.settings_of(preset, rooms, 0)


def test_missing_data_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="NYU Depth v2"):
        paperlib.reproduce("perspective", "paper", device="cpu")


@pytest.mark.parametrize(("change", "message"), [({"rounds": "many"}, "rounds='many'"), ({"rounds": True}, "rounds=True"), ({"reach": 140}, "reach=140"), ({"levels": 3.5}, "levels=3.5"), ({"stride": 2.5}, "stride=2.5"), ({"words": 16.5}, "words=16.5"),
                                               ({"random_state": "x"}, "random_state='x'"), ({"random_state": -1}, "random_state=-1"), ({"spaces": "lab"}, "spaces='lab'"), ({"target": "joint", "classes": 3}, "labels go up to")])
def test_settings_of_a_wrong_kind_are_named(change, message):
    page = perspective
    frames = page.room_frames(2, (24, 32), 0)
    with pytest.raises(ValueError, match=message):
        page.CanonicalDepthClassifier(**{"words": 8, "columns": 50, "rounds": 2, "pixels": 100, "classes": 10} | change).fit(frames)


def test_pictures_and_focal_lengths_that_make_no_sense_are_named():
    page = perspective
    frames = page.room_frames(4, (24, 32), 0)
    model = page.CanonicalDepthClassifier(words=8, columns=50, rounds=2, pixels=200, reach=6, candidates=20).fit(frames)
    for rgb, focal, message in ((255 * frames.rgb[:2], None, "float in"), (frames.rgb[:0], None, r"\(0, 3, 24, 32\)"), (frames.rgb[:2].numpy(), None, "ndarray"), (frames.rgb[:2], 0.0, "focal length above 0"),
                                (frames.rgb[:3], [20.0, 20.0], "one or 3")):
        with pytest.raises(ValueError, match=message):
            model.predict(rgb, focal)


def test_no_random_state_is_a_new_seed(rooms, fitted):
    one, two = (CanonicalDepthClassifier(**(TINY | {"random_state": None})).fit(rooms, eye=fitted.eye_) for _ in range(2))
    assert not np.array_equal(one.boosters_[0][0].column_, two.boosters_[0][0].column_) and one.get_params()["random_state"] is None


def of_pixels(frames, **changed):
    """Frames and 40 pixels of them, with fields changed."""
    pixels = draw_pixels(frames, 40, depth_levels(0.8, 1.4, 8))
    return frames, perspective.Pixels(*(changed.get(k, lambda v: v)(getattr(pixels, k)) for k in pixels._fields))


@pytest.mark.parametrize("settings_changed, given, message", [
    ({}, lambda f: (f.rgb,), "expected Frames.*Tensor"), ({}, lambda f: (f.rgb, f.depth), "expected Frames"), ({}, lambda f: (f[:0],), "expected pictures"),
    ({}, lambda f: (Frames(f.rgb * 255, f.depth, f.mask, f.camera),), "from .* to 255"), ({}, lambda f: (Frames((f.rgb * 255).byte(), f.depth, f.mask, f.camera),), "uint8"),
    ({}, lambda f: (Frames(f.rgb, f.depth[:2], f.mask, f.camera),), "expected depth"),
    ({}, lambda f: (Frames(f.rgb, torch.full_like(f.depth, 2.0), f.mask, f.camera),), "only 2.2 m"), ({"scaling": "none"}, lambda f: (Frames(f.rgb, torch.full_like(f.depth, 2.0), f.mask, f.camera),), "only"),
    ({}, lambda f: of_pixels(f, depth=lambda d: 0 * d + 60), "none there among 40"), ({}, lambda f: of_pixels(f, picture=lambda p: p + 99), "pictures 0 to 5"),
    ({}, lambda f: of_pixels(f, at=lambda a: a + 100), r"inside of \(48, 64\)"), ({}, lambda f: of_pixels(f, label=lambda a: a[:3]), "of one length"),
    ({"target": "label", "scaling": "none", "classes": 10}, lambda f: (Frames(f.rgb, f.depth, f.mask, f.camera, None, f.semantic * 0 - 1),), "none among 400 pixels"),
    ({"target": "joint", "classes": 10}, lambda f: (Frames(f.rgb, f.depth, f.mask, f.camera, None, f.semantic * 0 - 1),), "none among 400 pixels"),
    ({"target": "joint", "classes": 10}, lambda f: of_pixels(f, label=lambda a: a + 20), "labels up to"),
])
def test_what_nothing_can_be_learnt_from_is_named(rooms, fitted, settings_changed, given, message):
    frames, *pixels = given(rooms)
    with pytest.raises(ValueError, match=message):
        CanonicalDepthClassifier(**(TINY | settings_changed)).fit(frames, *pixels, eye=fitted.eye_)


def test_pixels_off_the_grid_are_left_out(rooms, fitted):
    pixels = draw_pixels(rooms, 200, fitted.eye_.grid)
    far = perspective.Pixels(pixels.picture, pixels.at, np.where(np.arange(200) < 20, 60.0, pixels.depth), pixels.label)
    seen = [fitted.eye_.pyramid(x) for x in rooms.rgb]
    for scaling in ("canonical", "none"):
        one, two = (CanonicalDepthClassifier(**(TINY | {"scaling": scaling})).fit(rooms, p, seen, fitted.eye_) for p in (far, pixels[20:]))
        assert np.array_equal(one.predict_scores(rooms.rgb[0]), two.predict_scores(rooms.rgb[0]))


@pytest.mark.parametrize("rgb, points, focal, message", [
    (lambda x: x * 255, None, None, "float in"), (lambda x: (x * 255).byte(), None, None, "uint8"), (lambda x: x * torch.nan, None, None, "float in"), (lambda x: x.numpy(), None, None, "ndarray"),
    (lambda x: x, np.zeros((2, 3)), None, r"points \(N, 2\)"), (lambda x: x, np.array([[np.nan, 1.0]]), None, "inside of"), (lambda x: x, np.array([[1.0, 99.0]]), None, "inside of"),
    (lambda x: x, None, -5, "focal length above 0"), (lambda x: x, None, 0, "focal length above 0"), (lambda x: x, None, float("inf"), "focal length above 0"), (lambda x: x, None, "long", "focal length above 0")])
def test_scores_refuse_what_predict_refuses(rooms, fitted, rgb, points, focal, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict_scores(rgb(rooms.rgb[0]), points, focal)
    if points is None and focal is not None:
        with pytest.raises(ValueError, match=message):
            fitted.predict(rooms.rgb[:1], focal)


@pytest.mark.parametrize("changed, eye_changed, message", [
    ({"levels": 5}, {}, "the eye has levels"), ({"canonical_depth": 5.0}, {}, "canonical_depth 9.0, this classifier 5.0"), ({"spaces": ("rgb",)}, {}, "spaces"), ({"resampling": "blocks"}, {}, "resampling"),
    ({}, {"vocabularies": []}, r"spaces \(\)")])
def test_words_of_other_settings_are_refused(rooms, fitted, changed, eye_changed, message):
    eye = Eye(fitted.eye_.grid, fitted.eye_.focal, 9.0, 6.0)
    eye.vocabularies, eye.columns = eye_changed.get("vocabularies", fitted.eye_.vocabularies), fitted.eye_.columns
    with pytest.raises(ValueError, match=message):
        CanonicalDepthClassifier(**(TINY | changed)).fit(rooms, eye=eye)


def test_pyramids_of_other_pictures_or_levels_are_refused(rooms, fitted):
    words = fitted.eye_.pyramid(rooms.rgb[0])
    for call in (lambda: CanonicalDepthClassifier(**TINY).fit(rooms, None, [words], fitted.eye_), lambda: fitted.predict_both(rooms.rgb[:2], None, [words]),
                 lambda: fitted.predict_scores(rooms.rgb[0], pyramid=words[:3])):
        with pytest.raises(ValueError, match="expected pyramids of"):
            call()


def test_a_mask_of_numbers_is_a_mask(rooms, fitted):
    """As an index, a mask of 0 and 1 as uint8 would be two pixels over and over."""
    grid = fitted.eye_.grid
    whole = draw_pixels(rooms, 200, grid)
    for kind in (torch.uint8, torch.float32):
        found = draw_pixels(Frames(rooms.rgb, rooms.depth, rooms.mask.to(kind), rooms.camera, None, rooms.semantic), 200, grid)
        assert all(np.array_equal(a, b) for a, b in zip(whole, found)) and len(np.unique(found.at, axis=0)) > 100


def test_pictures_of_any_float_and_with_a_gradient(rooms, fitted):
    x = rooms.rgb[:1]
    assert torch.equal(fitted.predict(x.clone().requires_grad_()), fitted.predict(x)) and torch.equal(fitted.predict(x.double()), fitted.predict(x))
    assert torch.equal(fitted.predict(x.bfloat16()), fitted.predict(x.bfloat16().float()))


def test_a_focal_length_in_widths_is_not_taken_for_pixels(rooms, fitted):
    """0.8 is a focal length over the picture's width; in pixels it would enlarge the picture seventyfold."""
    with pytest.raises(ValueError, match="64 wide at least 3.2.*got 0.8"):
        fitted.predict(rooms.rgb[:1], 0.8)
