"""Drive a notebook as a reader does: JupyterLab in a real browser, Run All, then a hand on the controls.

`open_lab` serves a folder of notebooks, `run_all` executes one in Chromium, `move_control` works a control by keyboard and says
what the picture did. `tests/test_browser.py` puts them together.
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import nbformat
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)
SETTINGS = {  # JupyterLab's own: render every cell, also those out of sight; ask nothing, fetch nothing
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false", "checkForUpdates": false}',
}
EXPLORATION = ".jp-OutputArea-output:has(.widget-slider, .widget-dropdown, .widget-checkbox):has(img, canvas)"
PICTURE = """async (box) => {
  const shown = box.querySelector("canvas") ?? box.querySelector("img");
  const url = shown instanceof HTMLCanvasElement ? shown.toDataURL() : shown.src;
  const bytes = await (await fetch(url)).arrayBuffer();
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
}"""
STEPS = """(c) => {  // the keys for one step there and one back; a closed list would leave plain arrows to JupyterLab's command mode
  const list = (key) => ["Alt+ArrowDown", key, "Enter"];
  if (c.type === "checkbox") return [["Space"], ["Space"]];
  if (c.tagName === "SELECT") {
    return c.selectedIndex + 1 < c.options.length ? [list("ArrowDown"), list("ArrowUp")] : [list("ArrowUp"), list("ArrowDown")];
  }
  return Number(c.ariaValueNow) < Number(c.ariaValueMax) ? [["ArrowRight"], ["ArrowLeft"]] : [["ArrowLeft"], ["ArrowRight"]];
}"""
PROMPTS = "(cells) => cells.map((cell) => cell.querySelector('.jp-InputPrompt').textContent.trim())"


class Stuck(RuntimeError):
    """The kernel sits idle although cells wait: seen on a cold server, whose first Run All can get lost."""


def find_chromium() -> str | None:
    """Return the path of the system's Chromium or Chrome, or None."""
    return next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


@contextmanager
def open_browser(executable: str) -> Iterator[Browser]:
    """Start the system's Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Deadline:
    """One budget for everything that waits."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.start + self.seconds - time.monotonic()

    def check(self, what: str) -> None:
        if self.left <= 0:
            raise TimeoutError(f"{what}: not done within {self.seconds:.0f} s in all")


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, the folder it serves, and its log."""

    url: str
    folder: Path
    log: Path


@contextmanager
def open_lab(folder: Path, state: Path, deadline: Deadline) -> Iterator[Lab]:
    """Serve `folder` by this interpreter's JupyterLab on a free port, all its state under `state`.

    Raises
    ------
    RuntimeError
        The server ended before it answered; the message has the end of its log.
    TimeoutError
        It did not answer before the deadline.
    """
    for name, text in SETTINGS.items():
        path = state / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(state / "config"),
        "JUPYTER_RUNTIME_DIR": str(state / "runtime"),
        "IPYTHONDIR": str(state / "ipython"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = state / "jupyterlab.log"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        _await_answer(server, f"http://127.0.0.1:{port}/api/status", log, deadline)
        yield Lab(f"http://127.0.0.1:{port}", folder, log)
    finally:
        _stop(server)


def _await_answer(server: subprocess.Popen, url: str, log: Path, deadline: Deadline) -> None:
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with code {server.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            deadline.check("JupyterLab's first answer")
            time.sleep(0.3)


def _stop(server: subprocess.Popen) -> None:
    """End the server and its kernels: they share the session that `open_lab` started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def run_all(browser: Browser, lab: Lab, notebook: str, deadline: Deadline) -> Page:
    """Open a notebook, run all its cells, and return the page once each has run and the file is saved.

    A run that gets lost on a cold server is tried once more on a fresh page.

    Parameters
    ----------
    notebook : path inside `lab.folder`, with forward slashes

    Raises
    ------
    Stuck
        Twice the kernel was idle while cells waited.
    TimeoutError
        The deadline passed; the message says at which cell.
    """
    try:
        return _run_all_once(browser, lab, notebook, deadline)
    except Stuck:
        return _run_all_once(browser, lab, notebook, deadline)


def _run_all_once(browser: Browser, lab: Lab, notebook: str, deadline: Deadline) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(1e3 * max(1.0, min(60.0, deadline.left)))
    try:
        page.goto(f"{lab.url}/lab/tree/{quote(notebook)}?reset")
        page.locator(".jp-CodeCell, .jp-Dialog").first.wait_for()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle], .jp-Dialog").first.wait_for()
        page.wait_for_timeout(3000)                      # idle is shown a little before the kernel's channels are open
        if page.locator(".jp-Dialog").count():
            raise RuntimeError(f"{notebook}: JupyterLab asks: {page.locator('.jp-Dialog').first.inner_text()!r}")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
        waits = _await_end(page, notebook, deadline)
        page.keyboard.press("Control+s")
        page.locator(".lm-TabBar-tab.jp-mod-dirty").first.wait_for(state="detached")
        if waits and not failures(lab.folder / notebook):
            raise Stuck(f"{waits} has not run although the kernel is idle and no cell failed")
    except Exception:
        page.screenshot(path=lab.log.with_name("failed.png"))
        page.close()
        raise
    return page


def _await_end(page: Page, notebook: str, deadline: Deadline) -> str | None:
    """Wait until each code cell has run; return None, or the place of the first that waits when the kernel has come to rest."""
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    resting_since = None
    while True:
        prompts = page.locator(".jp-Notebook .jp-CodeCell").evaluate_all(PROMPTS)
        waiting = [i for i, prompt in enumerate(prompts) if not prompt.strip("[]: ").isdigit()]
        if not waiting:
            idle.wait_for()
            return None
        where = f"{notebook}: code cell {waiting[0] + 1} of {len(prompts)}"
        if idle.count():
            resting_since = resting_since or time.monotonic()
            if time.monotonic() - resting_since > 10:
                return where
        else:
            resting_since = None
        deadline.check(where)
        page.wait_for_timeout(500)


def failures(path: Path) -> list[str]:
    """Return the errors in an executed notebook file, one line each: cell id, error, message."""
    cells = nbformat.read(path, as_version=4).cells
    return [
        f"{cell.id}: {output.ename}: {output.evalue}"
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]


def unrun(path: Path) -> list[str]:
    """Return the ids of code cells with a source that were not executed."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.id for cell in cells if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None]


def explorations(page: Page) -> Locator:
    """Return the outputs that have both a control and a picture."""
    return page.locator(EXPLORATION)


def picture(exploration: Locator) -> str:
    """Return a digest of the bytes of the picture shown; the address would change even when the picture does not."""
    return exploration.evaluate(PICTURE)


def move_control(exploration: Locator, deadline: Deadline) -> tuple[str, str, str]:
    """Move the first control by keyboard, one step there and one back.

    Returns
    -------
    (before, moved, back)
        Digests of the picture; `moved` equals `before` when the picture did not follow within the deadline.
    """
    control = exploration.locator(".widget-slider .noUi-handle, .widget-dropdown select, .widget-checkbox input").first
    there, back = control.evaluate(STEPS)
    control.scroll_into_view_if_needed()
    before = picture(exploration)
    _press(control, there)
    moved = _await_other(exploration, before, deadline)
    _press(control, back)
    return before, moved, _await_other(exploration, moved, deadline)


def _press(control: Locator, keys: list[str]) -> None:
    control.focus()
    for key in keys:
        control.page.keyboard.press(key)
        control.page.wait_for_timeout(300)               # a list needs a moment to open


def _await_other(exploration: Locator, old: str, deadline: Deadline) -> str:
    end = time.monotonic() + min(30.0, deadline.left)
    new = picture(exploration)
    while new == old and time.monotonic() < end:
        exploration.page.wait_for_timeout(200)
        new = picture(exploration)
    return new
