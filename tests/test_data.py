"""Data sets: finding, fetching, checking, reading and writing, on a server of our own and on files made here."""
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paperlib.core import data

ROOT = Path(__file__).resolve().parent.parent
GOOD = bytes(range(256)) * 40
SET5 = ("baby", "bird", "butterfly", "head", "woman")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """No test reaches a network: a connection to anything but this machine is an error of its own kind."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


# ---------------------------------------------------------------- a server that misbehaves


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if name == "absent.png":
            return self.send_error(404)
        self.send_response(200)
        if name == "short.png":  # no length announced, so only the registry can tell
            self.end_headers()
            return self.wfile.write(GOOD[:5000])
        self.send_header("Content-Length", str(len(GOOD)))
        self.end_headers()
        if name == "changed.png":
            self.wfile.write(GOOD[::-1])
        elif name == "truncated.png":
            self.wfile.write(GOOD[:5000])
        elif name == "killed.png":
            self.wfile.write(GOOD[:5000])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close by reset, not politely
            self.connection.close()
        elif name == "slow.png" and self.server.slow.is_set():
            self.wfile.write(GOOD[:5000])
            self.wfile.flush()
            self.server.release.wait(60)
        else:
            self.wfile.write(GOOD)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.asked, httpd.slow, httpd.release = [], threading.Event(), threading.Event()
        httpd.daemon_threads, httpd.handle_error = True, lambda *args: None
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.release.set()
        httpd.shutdown()


def entries(server, *names):
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return tuple(data.Entry("t91", name, len(GOOD), hashlib.sha256(GOOD).hexdigest(), f"{url}/{name}") for name in names)


@pytest.fixture
def registered(server, monkeypatch):
    """Let the set t91 consist of the named files on the server."""
    return lambda *names: monkeypatch.setattr(data, "registry", lambda name: entries(server, *names) if name == "t91" else ())


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetch_writes_checked_files_and_keeps_them(server, registered, tmp_path):
    registered("a.png", "sub/b.png")
    folder = data.fetch("t91", tmp_path, progress=False)
    assert folder == tmp_path / "t91" and tree(folder) == ["a.png", "sub/b.png"]
    assert (folder / "sub/b.png").read_bytes() == GOOD and data.verify("t91", folder) == []
    (folder / "a.png").write_bytes(b"damaged")
    assert data.verify("t91", folder) == [f"a.png: differs from the registered file (7 bytes, {len(GOOD)} registered)"]
    server.asked.clear()
    data.fetch("t91", tmp_path, progress=False)
    assert server.asked == ["/a.png"] and (folder / "a.png").read_bytes() == GOOD  # only the damaged one travelled again
    (folder / "a.png").unlink()
    (folder / "more.png").write_bytes(b"not registered")
    assert data.verify("t91", folder) == ["a.png: missing"]


@pytest.mark.parametrize("name, says", [("truncated.png", "connection broke|5000 bytes came"),
                                        ("short.png", "5000 bytes came, 10240 are registered"), ("changed.png", "its checksum is"),
                                        ("absent.png", "answered 404"), ("killed.png", "connection broke|no connection")])
def test_fetch_fails_in_one_line_and_leaves_nothing_half_written(registered, tmp_path, name, says):
    registered("a.png", name, "never.png")
    with pytest.raises(data.DownloadError, match=says) as caught:
        data.fetch("t91", tmp_path, progress=False)
    message = str(caught.value)
    assert "\n" not in message and f": {name} was not fetched from http://127.0.0.1:" in message and message.count(name) >= 2
    assert tree(tmp_path) == ["t91/a.png"]


def test_fetch_keeps_the_old_file_when_the_new_one_is_bad(registered, tmp_path):
    registered("changed.png")
    (tmp_path / "t91").mkdir()
    (tmp_path / "t91/changed.png").write_bytes(b"mine")
    with pytest.raises(data.DownloadError):
        data.fetch("t91", tmp_path, progress=False)
    assert (tmp_path / "t91/changed.png").read_bytes() == b"mine" and tree(tmp_path) == ["t91/changed.png"]


def test_fetch_without_a_network(monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"  # bound but not listening: refused
        monkeypatch.setattr(data, "registry", lambda name: (data.Entry("t91", "a.png", 1, "0" * 64, url),))
        with pytest.raises(data.DownloadError, match="no connection.*is there a network"):
            data.fetch("t91", tmp_path, progress=False)
    assert tree(tmp_path) == []


def test_a_killed_download_leaves_no_file_and_the_next_one_succeeds(server, registered, tmp_path):
    server.slow.set()
    [entry] = entries(server, "slow.png")
    code = (f"from paperlib.core import data; data.registry = lambda name: (data.Entry(*{tuple(entry)!r}),)\n"
            f"data.fetch('t91', {str(tmp_path)!r}, progress=False)")
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (leftovers := [p for p in (tmp_path / "t91").glob(".*") if data.TEMPORARY in p.name]) and time.monotonic() < deadline:
        assert child.poll() is None, "the download ended before it could be killed"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL
    assert len(leftovers) == 1 and leftovers[0].exists() and not (tmp_path / "t91/slow.png").exists()
    assert data._listed(tmp_path / "t91", (".png",)) == {}  # the leftover is not taken for a picture
    server.slow.clear()
    registered("slow.png")
    os.utime(leftovers[0], (0, 0))  # a leftover that nobody has written to for an hour is removed
    data.fetch("t91", tmp_path, progress=False)
    assert tree(tmp_path) == ["t91/slow.png"] and (tmp_path / "t91/slow.png").read_bytes() == GOOD


def test_fetch_refuses_what_it_cannot_get(tmp_path):
    for name, says in (("photos", "inside installed packages"), ("div2k", "download it from https://data.vision"), ("set55", "did you mean 'set5'")):
        with pytest.raises(ValueError, match=says):
            data.fetch(name, tmp_path)
    assert tree(tmp_path) == []


# ---------------------------------------------------------------- finding


def write_set(folder, names=SET5, value=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3), (value, value, value)).save(folder / (name + suffix))


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Three empty data folders: the one of the environment, of the checkout, and the cache."""
    folders = {name: tmp_path / name for name in ("env", "checkout", "cache")}
    for folder in folders.values():
        folder.mkdir()
    (folders["checkout"] / "registry.tsv").write_text((ROOT / "data/registry.tsv").read_text())
    monkeypatch.setenv("PAPERLIB_DATA", str(folders["env"]))
    monkeypatch.setattr(data, "data_path", folders["checkout"].joinpath)
    monkeypatch.setattr(data, "cache_path", lambda: folders["cache"])
    return folders


def test_lookup_order(roots, monkeypatch):
    found = {row.name: row.found for row in data.available()}
    assert found["photos"] == "installed packages" and found["set5"] == ""
    for value, (label, name) in enumerate((("cache", "cache"), ("data", "checkout"), ("PAPERLIB_DATA", "env")), start=1):
        write_set(roots[name] / "Set5/HR", value=value)
        assert data.dataset("set5")[0].max() == value  # each place added comes before those already there
        assert {row.name: row.found for row in data.available()}["set5"] == label
    monkeypatch.delenv("PAPERLIB_DATA")
    assert data.dataset("set5")[0].max() == 2
    monkeypatch.setenv("PAPERLIB_DATA", str(roots["env"] / "nowhere"))
    with pytest.raises(FileNotFoundError, match="PAPERLIB_DATA is set to .*nowhere.*not a folder"):
        data.dataset("set5")


def test_relative_data_folder_counts_from_the_current_folder_then_from_the_checkout(roots, monkeypatch, tmp_path):
    write_set(tmp_path / "repo/here/Set5", value=1)
    write_set(tmp_path / "nb/here/Set5", value=2)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(data, "checkout", lambda: tmp_path / "repo")
    monkeypatch.setenv("PAPERLIB_DATA", "here")
    for cwd, value in (("nb", 2), ("other", 1)):
        monkeypatch.chdir(tmp_path / cwd)
        assert data.dataset("set5")[0].max() == value


def test_explicit_path_is_used_alone(roots, tmp_path):
    write_set(roots["env"] / "Set5")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        data.dataset("set5", path=empty)
    message = str(caught.value)
    assert str(empty) in message and str(roots["env"]) not in message and str(roots["cache"]) not in message
    with pytest.raises(FileNotFoundError, match="missing-folder is not a folder"):
        data.dataset("set5", path=tmp_path / "missing-folder")


def test_missing_set_says_what_where_and_how(roots):
    with pytest.raises(FileNotFoundError) as caught:
        data.dataset("set5")
    message = str(caught.value)
    for part in ("Set5 (Bevilacqua", "Licence: none stated", "github.com/JingyunLiang", "paperlib data get set5", "PAPERLIB_DATA", "path=",
                 *(str(roots[name] / "Set5") for name in ("env", "checkout", "cache"))):
        assert part in message
    with pytest.raises(FileNotFoundError) as caught:
        data.dataset("div2k", split="valid")
    assert "DIV2K_valid_HR" in str(caught.value) and "paperlib data get" not in str(caught.value)


def test_missing_file_is_named_and_no_other_copy_is_taken(roots):
    write_set(roots["cache"] / "Set5/HR")
    write_set(roots["env"] / "Set5/HR", [name for name in SET5 if name != "bird"])
    with pytest.raises(FileNotFoundError, match="incomplete: bird missing"):
        data.dataset("set5")
    assert {row.name: row.found for row in data.available()}["set5"] == "incomplete"
    assert "HR/bird.png: missing" in data.verify("set5")
    write_set(roots["env"] / "BSD100", [f"{i}" for i in range(99)])
    with pytest.raises(FileNotFoundError, match="99 pictures, 100 expected"):
        data.dataset("bsd100")


@pytest.mark.parametrize("layout, suffix", [("Set5", ".png"), ("Set5/HR", ".png"), ("set5", "_GT.bmp"), ("sr_testsets/Set5_SwinIR/HR", ".png"),
                                            ("benchmark/Set5/HR", ".png"), ("Set5/original", ".png")])
def test_layouts_and_names_that_people_have(roots, layout, suffix):
    write_set(roots["env"] / layout, suffix=suffix)
    (roots["env"] / layout / "notes.txt").write_text("ignored")
    pictures = data.dataset("set5")
    assert pictures.names == SET5 and pictures["bird"].shape == (3, 4, 3)
    for path in (roots["env"], roots["env"] / layout):  # a data folder, and the very folder of the pictures
        assert data.dataset("set5", path=path).paths == pictures.paths


def test_two_files_for_one_name_are_not_chosen_between(roots):
    write_set(roots["env"] / "Set5")
    write_set(roots["env"] / "Set5", ["baby"], suffix=".bmp")
    with pytest.raises(ValueError, match="two files for 'baby': baby.bmp and baby.png"):
        data.dataset("set5")


@pytest.mark.parametrize("folder, scale, opens", [
    ("Set14/x2", None, True), ("Set14/x2", 2, True), ("Set14/x2", 4, True), ("Set14/x2", 3, False),
    ("Set14/x3", 3, True), ("Set14/x3", 2, False), ("Set14/x3", None, False),
    ("Set14/image_SRF_3", 3, True), ("Set14/image_SRF_4", 4, True), ("Set14/image_SRF_4", 2, False),
    ("Set14", 3, False), ("Set14", 2, True)])
def test_a_crop_that_does_not_fit_the_scale_is_refused(roots, folder, scale, opens):
    factor = folder[-1] if folder[-1] in "234" and not folder.endswith("14") else "2"
    write_set(roots["env"] / folder, [f"img_{i:03d}" for i in range(1, 15)], suffix=f"_SRF_{factor}_HR.png")
    if opens:
        assert len(data.dataset("set14", scale=scale)) == 14
    else:
        with pytest.raises((ValueError, FileNotFoundError), match="does not fit|was not found"):
            data.dataset("set14", scale=scale)


def test_originals_come_before_cropped_copies(roots):
    write_set(roots["env"] / "Set14/x2", [f"img_{i:03d}" for i in range(1, 15)], suffix="_SRF_2_HR.png")
    assert "baboon" not in data.dataset("set14").names
    write_set(roots["env"] / "Set14/original", data.SOURCES["set14"].names[0], suffix=".bmp")
    assert all("baboon" in data.dataset("set14", scale=scale).names for scale in (None, 2, 3, 4))


def test_low_resolution_pictures(roots):
    write_set(roots["env"] / "Set5/HR")
    write_set(roots["env"] / "Set5/LR_bicubic/X2", value=9, suffix="x2.png")
    write_set(roots["env"] / "Set5/LR_bicubic/X3", SET5[1:], suffix="x3.png")
    for path in (None, roots["env"] / "Set5", roots["env"] / "Set5/HR"):
        low = data.dataset("set5", path=path).low(2)
        assert low.names == SET5 and low["woman"].max() == 9
    with pytest.raises(FileNotFoundError, match="babyx3.png missing"):
        data.dataset("set5").low(3)
    with pytest.raises(FileNotFoundError, match="none for ×4 .found: ×2, ×3."):
        data.dataset("set5").low(4)


def test_wrong_names_and_options(roots):
    for call, says in ((lambda: data.dataset("sett5"), "did you mean 'set5'"), (lambda: data.dataset("set5", scal=2), "did you mean 'scale'"),
                       (lambda: data.dataset("set5", scale=0), "whole number >= 1"), (lambda: data.dataset("photos", split="val"), "'val'"),
                       (lambda: data.dataset("div2k", split="test"), "'test'"), (lambda: data.dataset("srcnn_weights", scale=2), "it takes none"),
                       (lambda: data.dataset("photos", path="x"), "take no path"), (lambda: data.verify("urban100"), "no checksums")):
        with pytest.raises(ValueError, match=says):
            call()


def test_pictures_behave_like_a_named_sequence(roots):
    write_set(roots["env"] / "Set5")
    pictures = data.dataset("set5", cache=2)
    assert len(pictures) == 5 and [name for name, _ in pictures] == list(SET5) and "bird" in pictures and "cat" not in pictures
    assert pictures[1:3].names == ("bird", "butterfly") and pictures[-1].dtype == np.uint8 and pictures.licence and pictures.source
    pictures["baby"][:] = 7  # a kept picture is handed out as a copy
    assert pictures["baby"].max() == 0
    pictures.paths[0].unlink()
    assert pictures["baby"].shape == (3, 4, 3)  # kept in memory
    pictures.paths[4].unlink()
    with pytest.raises(FileNotFoundError, match="woman.png"):
        pictures["woman"]
    with pytest.raises(KeyError, match="did you mean 'bird'"):
        pictures["birds"]
    with pytest.raises(IndexError):
        pictures[5]


def test_photos_come_from_the_packages_and_the_splits_are_disjoint(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("photos opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    splits = {split: data.dataset("photos", split=split) for split in ("train", "test", "all")}
    assert not set(splits["train"].paths) & set(splits["test"].paths) and not set(splits["train"].names) & set(splits["test"].names)
    assert set(splits["train"].names) | set(splits["test"].names) == set(splits["all"].names) and len(splits["test"]) >= 3
    contents = [hashlib.sha256(array.tobytes()).digest() for _, array in splits["all"]]
    assert len(set(contents)) == len(contents)
    for split in ("train", "test"):  # both have something to restore, and both have colour and grey
        assert {array.ndim for _, array in splits[split]} == {2, 3}
        assert all(np.abs(np.diff(array.astype(float), axis=1)).mean() > 1 for _, array in splits[split])
    assert all(f"{name}: " in splits["test"].licence for name in splits["test"].names) and "china" not in splits["test"].licence


def test_import_is_light():
    code = "import sys, paperlib.core.data as d; d.dataset('photos', split='test')[0]; print([m for m in ('torch', 'skimage', 'sklearn', 'requests') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_data_path_of_a_wheel(monkeypatch, tmp_path):
    assert data.data_path("registry.tsv") == ROOT / "data/registry.tsv"
    with pytest.raises(FileNotFoundError, match="data/weights/none.safetensors does not come with"):
        data.data_path("weights", "none.safetensors")
    (tmp_path / "_data").mkdir()
    (tmp_path / "_data/registry.tsv").write_text("# nothing\n")
    monkeypatch.setattr(data, "checkout", lambda: None)
    monkeypatch.setattr(data, "files", lambda package: tmp_path)
    assert data.data_path("registry.tsv").parent == tmp_path / "_data" and data.registry("t91") == ()


# ---------------------------------------------------------------- the registry and the real copies


def test_registry_is_well_formed():
    rows = [entry for name in data.SOURCES for entry in data.registry(name)]
    lines = [line for line in (ROOT / "data/registry.tsv").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(rows) == len(lines) and len({(row.dataset, row.path) for row in rows}) == len(rows)
    for row in rows:
        assert len(row.sha256) == 64 and set(row.sha256) <= set("0123456789abcdef") and row.bytes > 0
        assert ".." not in row.path and not row.path.startswith("/")
        if row.dataset == "photos":
            assert row.url == "-"
        else:  # pinned to a commit, and every odd character percent-encoded
            host, owner, repo, commit, rest = row.url.removeprefix("https://").split("/", 4)
            assert host == "raw.githubusercontent.com" and len(commit) == 40 and not set(rest) & set(" ()[]")


def test_readme_states_each_set_its_licence_and_its_folders():
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        if len(cells := line.split("|")) > 4:
            rows.setdefault(cells[1].strip(" `"), line)
    for source in data.SOURCES.values():
        assert all(f"`{layout}`" in rows[source.name] for layout in source.layouts)
        assert source.embedded or source.licence in rows[source.name]
    for name, (_, split, licence) in data._PHOTOS.items():
        assert f"| {name} | {split} | {licence} |" in rows[name]


@pytest.mark.parametrize("name", ["t91", "set5", "set14", "bsd100", "srcnn_weights"])
def test_registry_agrees_with_the_real_copies(name):
    try:
        problems = data.verify(name)
    except FileNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{name} is not on this machine: {str(error).splitlines()[0]}")
    assert problems == []
    held = data.dataset(name)
    assert len(held) == data.SOURCES[name].expected and held.licence
    if name != "srcnn_weights":
        assert all(array.dtype == np.uint8 for _, array in held)
    if name == "set5":
        for scale in (2, 3, 4, 8):
            for low, (_, high) in zip(held.low(scale), held):
                assert low[1].shape[:2] == (high.shape[0] // scale, high.shape[1] // scale)


# ---------------------------------------------------------------- reading


def save_rgb16(path):
    """A 2 x 1 RGB PNG with 16 bits a channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(b"\0" + struct.pack(">6H", *range(0, 60000, 10000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def palette(transparent):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    if transparent:
        image.info["transparency"] = 1
    return image


READABLE = {
    "row.png": lambda p: Image.new("RGB", (9, 1), (1, 2, 3)).save(p),
    "grey.png": lambda p: Image.new("L", (3, 2), 77).save(p),
    "bits.png": lambda p: Image.new("1", (3, 2), 1).save(p),
    "palette.png": lambda p: palette(False).save(p),
    "photo.jpg": lambda p: Image.new("RGB", (16, 8), (90, 90, 90)).save(p),
    "phone.jpg": lambda p: Image.new("RGB", (16, 8)).save(p, format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 2))]),
    "one.gif": lambda p: palette(False).save(p),
    "a.bmp": lambda p: Image.new("RGB", (3, 2)).save(p),
    "a.tif": lambda p: Image.new("RGB", (3, 2)).save(p),
    "a.ppm": lambda p: Image.new("RGB", (3, 2)).save(p),
}


@pytest.mark.parametrize("name, shape", [("row.png", (1, 9, 3)), ("grey.png", (2, 3)), ("bits.png", (2, 3)), ("palette.png", (1, 2, 3)), ("photo.jpg", (8, 16, 3)),
                                         ("phone.jpg", (8, 16, 3)), ("one.gif", (1, 2, 3)), ("a.bmp", (2, 3, 3)), ("a.tif", (2, 3, 3)), ("a.ppm", (2, 3, 3))])
def test_read_image_gives_grey_or_rgb(tmp_path, name, shape):
    READABLE[name](tmp_path / name)
    array = data.read_image(tmp_path / name)
    assert array.shape == shape and array.dtype == np.uint8 and array.flags.writeable
    assert data.read_image(tmp_path / name, "RGB").shape == (*shape[:2], 3) and data.read_image(tmp_path / name, "L").shape == shape[:2]
    if name == "palette.png":
        assert array.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    if name == "bits.png":
        assert array.min() == array.max() == 255


def test_read_image_turns_a_photo_upright(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "p.jpg", exif=exif, quality=95)
    upright = data.read_image(tmp_path / "p.jpg")
    assert upright.shape == (16, 8, 3) and upright[:8].mean() > 250 and upright[8:].mean() < 5


def truncated(path, keep=0.6, **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


REFUSED = {
    "alpha.png": (lambda p: Image.new("RGBA", (2, 2)).save(p), "alpha channel"),
    "grey-alpha.png": (lambda p: Image.new("LA", (2, 2)).save(p), "alpha channel"),
    "palette-alpha.png": (lambda p: palette(True).save(p), "alpha channel"),
    "key.png": (lambda p: Image.new("RGB", (2, 2)).save(p, transparency=(0, 0, 0)), "alpha channel"),
    "grey16.png": (lambda p: Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(p), "more than 8 bits"),
    "rgb16.png": (save_rgb16, "more than 8 bits"),
    "grey16.tif": (lambda p: Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(p), "more than 8 bits"),
    "float.tif": (lambda p: Image.fromarray(np.ones((2, 2), np.float32)).save(p), "more than 8 bits"),
    "rgb16.ppm": (lambda p: p.write_bytes(b"P6 1 1 65535\n" + bytes(6)), "more than 8 bits"),
    "grey16.pgm": (lambda p: p.write_bytes(b"P5 1 1 65535\n" + bytes(2)), "more than 8 bits"),
    "print.jpg": (lambda p: Image.new("CMYK", (8, 8)).save(p), "CMYK"),
    "lab.tif": (lambda p: Image.new("LAB", (2, 2)).save(p), "stored as LAB"),
    "film.gif": (lambda p: Image.new("L", (2, 2)).save(p, save_all=True, append_images=[Image.new("L", (2, 2), 9)]), "several frames"),
    "pages.tif": (lambda p: Image.new("L", (2, 2)).save(p, save_all=True, append_images=[Image.new("L", (2, 2), 9)]), "several frames"),
    "cut.png": (truncated, "damaged, cut short"),
    "header.png": (lambda p: truncated(p, 0.002), "damaged, cut short"),
    "cut.jpg": (lambda p: truncated(p, quality=95), "damaged, cut short"),
    "text.png": (lambda p: p.write_text("this is no picture"), "damaged, cut short or of another kind"),
    "empty.png": (lambda p: p.write_bytes(b""), "it is empty"),
    "zero.pgm": (lambda p: p.write_bytes(b"P5 0 4 255\n"), "no pixel|damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_read_image_refuses_in_one_line(tmp_path, name):
    make, says = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=says) as caught:
        data.read_image(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
                                           ("BMP", {}), ("GIF", {}), ("WEBP", {}), ("PPM", {})])
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_a_clear_error_and_a_cut_never_another_picture(tmp_path, kind, options):
    rng, path = np.random.default_rng(0), tmp_path / "x"
    Image.fromarray(rng.integers(0, 256, (24, 17, 3), dtype=np.uint8)).save(path, kind, **options)
    blob, whole = path.read_bytes(), data.read_image(path)
    cuts = sorted({*range(0, len(blob), max(1, len(blob) // 40)), *range(len(blob) - 10, len(blob))})
    refused = 0
    for cut in cuts:
        path.write_bytes(blob[:cut])
        try:
            assert np.array_equal(data.read_image(path), whole)  # only an end mark or padding was cut off
        except ValueError:
            refused += 1
    assert refused > len(cuts) // 2
    for _ in range(150):
        damaged = np.frombuffer(blob, np.uint8).copy()
        damaged[rng.integers(0, min(len(blob), 400), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert data.read_image(path).ndim in (2, 3)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_read_image_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such picture"):
        data.read_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        data.read_image(tmp_path)
    with pytest.raises(ValueError, match="mode must be"):
        data.read_image(tmp_path / "none.png", "RGBA")


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("array, says", [
    (np.zeros((2, 2), np.float32), "got float32; for values in"), (np.zeros((2, 2), np.int64), "got int64"), (np.zeros((2, 2), bool), "got bool"),
    (np.zeros((3, 2, 2), np.uint8), r"\(H, W, 3\)"), (np.zeros((2, 2, 4), np.uint8), r"got \(2, 2, 4\)"), (np.zeros((0, 2), np.uint8), "at least one pixel")])
def test_write_image_refuses(tmp_path, array, says):
    with pytest.raises(ValueError, match=says):
        data.write_image(tmp_path / "x.png", array)
    assert tree(tmp_path) == []


def test_write_image_places(tmp_path):
    picture = np.zeros((2, 2), np.uint8)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; create it"):
        data.write_image(tmp_path / "nowhere/x.png", picture)
    with pytest.raises(ValueError, match="must end in .png, got 'x.jpg'"):
        data.write_image(tmp_path / "x.jpg", picture)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; give a file name"):
        data.write_image(tmp_path / "folder.png", picture)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "x.png"
    data.write_image(path, np.full((2, 2), 5, np.uint8))

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)  # where a full disk shows when the system had only promised the space
    with pytest.raises(OSError, match="the disk is full: x.png was not written") as caught:
        data.write_image(path, np.full((2, 2), 9, np.uint8))
    assert caught.value.errno == number
    assert data.read_image(path).max() == 5 and tree(tmp_path) == ["x.png"]


def test_an_interrupt_keeps_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), data.atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and tree(tmp_path) == ["run.json"]


def test_atomic_write_details(tmp_path):
    target = tmp_path / "real.npz"
    (tmp_path / "link.npz").symlink_to(target)
    with data.atomic_write(tmp_path / "link.npz") as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path and not temporary.exists()
        np.savez(temporary, a=np.arange(3))  # adds no second suffix
    assert (tmp_path / "link.npz").is_symlink() and np.load(target)["a"].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="nothing was written for real.npz"), data.atomic_write(target):
        pass
    assert np.load(target)["a"].tolist() == [0, 1, 2] and tree(tmp_path) == ["link.npz", "real.npz"]
