"""Turn nbs/ into pages: copy the notebooks without their build directives, mend their links, and write the navigation.

No list of pages is kept anywhere: a notebook in nbs/<family>/ is a page of that family.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

FAMILIES = {  # the order and the names of the sidebar; a folder that is not here comes after these under its own name
    "depth": "Depth · 深度",
    "superres": "Super-resolution · 超分辨率",
    "masked": "Masked autoencoders · 掩码自编码",
    "sequence": "Spatio-temporal prediction · 时空预测",
    "render": "3D rendering · 三维渲染",
    "guides": "Guides · 指南",
    "core": "Core · 公共模块",
}
REFERENCE = ("conventions", "glossary", "STYLE", "api/index")
WIDGET = "application/vnd.jupyter.widget-view+json"
OWN = "application/vnd.paperlib."  # what our own tools read in an output; the site has no use for it
NEEDS_KERNEL = (
    '<p class="needs-kernel">The controls of this exploration need a running kernel: '
    "<code>make lab</code> opens the notebook in JupyterLab. The grid above has the same function at fixed settings.</p>"
)
DROPPED = re.compile(r"^\s*#\|\s*(hide|default_exp)\b", re.MULTILINE)
DIRECTIVE_LINE = re.compile(r"^\s*#\|.*\n?", re.MULTILINE)
QUIET = re.compile(r"^\s*#\|\s*echo:\s*false", re.MULTILINE)
MARKDOWN_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
HTML_LINK = re.compile(r"((?:href|src)=\")([^\"]+)(\")")
PROGRESS_BAR = re.compile(r"%\||\d(it|s)/(s|it)\b|FloatProgress")


def joined(text: str | list[str]) -> str:
    """Return notebook text as one string: the format allows a list of lines in its place."""
    return text if isinstance(text, str) else "".join(text)


def link_mender(root: Path, docs: Path, source: Path, page: Path, repository: str) -> Callable[[str, bool], str]:
    """Return a function that maps a link of the notebook `source` to what it must be on `page`.

    Notebooks and pages of the site stay links inside it; any other file of the repository is shown by its host.
    A link that leads nowhere is returned as it is, so that the strict build reports it.
    """
    nbs = root / "nbs"

    def mend(link: str, in_html: bool) -> str:
        if re.match(r"[a-z][a-z+.-]*:|#|//", link, re.IGNORECASE):
            return link
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(source.parent / path))
        if not target.exists() or not target.is_relative_to(root):
            return link
        if target == nbs / "index.ipynb":
            on_site = docs / "index.ipynb"
        elif target.is_relative_to(nbs) and target.suffix == ".ipynb":
            on_site = docs / "_nb" / target.relative_to(nbs)
        elif target.is_relative_to(docs) or target.suffix in (".png", ".svg", ".jpg"):
            on_site = target
        else:
            return f"{repository}/{target.relative_to(root).as_posix()}"
        mended = Path(os.path.relpath(on_site, page.parent))
        if in_html and mended.suffix in (".ipynb", ".md"):
            mended = mended.with_suffix(".html")
        return mended.as_posix() + (f"#{anchor}" if anchor else "")

    return mend


def mend_links(text: str, mend: Callable[[str, bool], str]) -> str:
    """Apply a mender to the Markdown and the HTML links of a text."""
    text = MARKDOWN_LINK.sub(lambda m: m[1] + mend(m[2], False) + m[3], text)
    return HTML_LINK.sub(lambda m: m[1] + mend(m[2], True) + m[3], text)


def page_output(output: dict, mend: Callable[[str, bool], str]) -> dict | None:
    """Return an output as the page shows it, or None: progress bars go, controls give way to a sentence."""
    data = output.get("data")
    if data is None:
        return output
    data = {mime: shown for mime, shown in data.items() if not mime.startswith(OWN)}
    if data.pop(WIDGET, None) is not None and not {"text/html", "image/png", "image/svg+xml"} & data.keys():
        if PROGRESS_BAR.search(joined(data.get("text/plain", ""))):
            return None
        data = {"text/html": NEEDS_KERNEL}
    for mime in ("text/html", "text/markdown"):
        if mime in data:
            data[mime] = mend_links(joined(data[mime]), mend)
    return {**output, "data": data}


def page_cells(notebook: dict, mend: Callable[[str, bool], str]) -> list[dict]:
    """Return a notebook's cells as a page shows them.

    Cells marked ``#| hide`` or ``#| default_exp`` go, other ``#|`` lines are stripped, exported code stays visible: the formula
    stands beside the line that computes it. ``#| echo: false`` hides a cell's source and keeps its output.
    """
    cells = []
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        if cell["cell_type"] == "code":
            if DROPPED.search(source):
                continue
            metadata = dict(cell.get("metadata", {}))
            if QUIET.search(source):
                metadata["tags"] = [*metadata.get("tags", []), "remove-input"]
            outputs = [shown for o in cell.get("outputs", []) if (shown := page_output(o, mend)) is not None]
            stripped = DIRECTIVE_LINE.sub("", source).strip("\n")
            if not stripped and not outputs:
                continue
            cell = {**cell, "source": stripped, "metadata": metadata, "outputs": outputs}
        else:
            cell = {**cell, "source": mend_links(source, mend)}
        cells.append(cell)
    return cells


def page_notebook(notebook: dict, cells: list[dict]) -> dict:
    """Return a notebook of `cells`, without widget state: no widget manager is on the site to read it."""
    metadata = {k: v for k, v in notebook.get("metadata", {}).items() if k != "widgets"}
    metadata.setdefault("kernelspec", {"name": "python3", "display_name": "python3", "language": "python"})
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write_if_changed(path: Path, text: str) -> None:
    """Write a file unless it has this text already, so that a second build finds nothing new."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def notebook_paths(nbs: Path) -> list[Path]:
    """Return every notebook that is a page, hidden and underscore folders left out."""
    found = nbs.rglob("*.ipynb")
    return sorted(p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts))


def year_of(notebook: dict) -> int:
    """Return the year that a paper's ``PAPER`` record states; 0 for a page that is not a paper."""
    for cell in notebook["cells"]:
        if cell.get("id") == "paper":
            found = re.search(r"\byear\s*=\s*(\d{4})", joined(cell["source"]))
            return int(found[1]) if found else 0
    return 0


def navigation(pages: dict[str, list[str]]) -> str:
    """Return the toctrees, one a family, as MyST; `pages` maps a folder of nbs/ to its document names."""
    order = [f for f in FAMILIES if f in pages] + sorted(f for f in pages if f not in FAMILIES)
    groups = [(FAMILIES.get(f, f.replace("_", " ").capitalize()), pages[f]) for f in order] + [("Reference · 参考", list(REFERENCE))]
    trees = ["\n".join([":::{toctree}", ":hidden:", f":caption: {caption}", "", *names, ":::"]) for caption, names in groups]
    return "\n\n".join(trees)


def front_page(root: Path, docs: Path, toctrees: str, repository: str) -> dict:
    """Return the front page: nbs/index.ipynb (the scoreboard) where there is one, then docs/index.md below its title."""
    title, _, body = (docs / "index.md").read_text(encoding="utf-8").partition("\n## ")
    source = root / "nbs" / "index.ipynb"
    if source.is_file():
        notebook = json.loads(source.read_text(encoding="utf-8"))
        cells = page_cells(notebook, link_mender(root, docs, source, docs / "index.ipynb", repository))
    else:
        notebook = {}
        cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": title}]
    cells.append({"cell_type": "markdown", "id": "site-navigation", "metadata": {}, "source": f"## {body}\n\n{toctrees}\n"})
    return page_notebook(notebook, cells)


def write_pages(root: Path, docs: Path, repository: str) -> None:
    """Write docs/_nb and docs/index.ipynb from nbs/, and remove pages whose notebook is gone.

    Parameters
    ----------
    root : repository root, holding ``nbs/``
    docs : source folder of the site
    repository : address under which the repository's files are shown, without a closing slash
    """
    nbs, target = root / "nbs", docs / "_nb"
    pages: dict[str, list[tuple[int, str]]] = {}
    written = set()
    for source in notebook_paths(nbs):
        inside = source.relative_to(nbs)
        if inside.as_posix() == "index.ipynb":
            continue
        notebook = json.loads(source.read_text(encoding="utf-8"))
        page = target / inside
        cells = page_cells(notebook, link_mender(root, docs, source, page, repository))
        write_if_changed(page, json.dumps(page_notebook(notebook, cells), ensure_ascii=False))
        written.add(page)
        family = inside.parts[0] if len(inside.parts) > 1 else "start"
        pages.setdefault(family, []).append((year_of(notebook), f"_nb/{inside.with_suffix('').as_posix()}"))
    for stale in set(target.rglob("*.ipynb")) - written:
        stale.unlink()
    toctrees = navigation({family: [name for _, name in sorted(entries)] for family, entries in pages.items()})
    write_if_changed(docs / "index.ipynb", json.dumps(front_page(root, docs, toctrees, repository), ensure_ascii=False))
