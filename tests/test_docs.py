"""The site's own code: what a page shows, where its links go, what is found by scanning, and that its pages say what the library has."""
import ast
import json
import re
import sys
from pathlib import Path

import pytest

from paperlib.core.notebooks import RULES, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import api_pages  # noqa: E402
import bilingual_search  # noqa: E402
import site_pages  # noqa: E402

WIDGET = site_pages.WIDGET


def code(source, *outputs, id="c", tags=()):
    return {"cell_type": "code", "id": id, "metadata": {"tags": list(tags)} if tags else {}, "source": source, "outputs": list(outputs), "execution_count": None}


def md(source, id="m"):
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def write(path, *cells, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": list(cells), "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


@pytest.fixture
def tree(tmp_path):
    """A small repository: two papers, one core page, a template for the front page."""
    paper = code("#| export\nPAPER = Paper(slug='a', year=2021)", id="paper")
    older = code("#| export\nPAPER = Paper(slug='b', year=2014)", id="paper")
    write(tmp_path / "nbs/superres/a.ipynb", md("# A · 甲\n\n> one"), paper)
    write(tmp_path / "nbs/superres/b.ipynb", md("# B · 乙\n\n> two"), older)
    write(tmp_path / "nbs/core/c.ipynb", md("# C · 丙\n\n> three"))
    write(tmp_path / "nbs/superres/.ipynb_checkpoints/a-checkpoint.ipynb", md("# stale"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# site\n\n> words\n\n## Find\n\nhere\n", encoding="utf-8")
    (tmp_path / "docs/glossary.md").write_text("# Glossary\n", encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/README.md").write_text("x", encoding="utf-8")
    return tmp_path


def build(tree):
    site_pages.write_pages(tree, tree / "docs", "https://host/blob/main")
    return "".join(site_pages.joined(c["source"]) + "\n" for c in json.loads((tree / "docs/index.ipynb").read_text(encoding="utf-8"))["cells"])


# ---------------------------------------------------------------- cells and outputs


def same(link, in_html):
    return link


def test_directives_and_hidden_cells():
    cells = [code("#| hide\nfrom nbdev.showdoc import *"), code("#| default_exp core.x"), code("#| export\n#| slow\ndef f():\n    return 1  #| kept"), code("#| echo: false\nf()", tags=["nbval-check-output"])]
    shown = site_pages.page_cells({"cells": cells}, same)
    assert [c["source"] for c in shown] == ["def f():\n    return 1  #| kept", "f()"]
    assert shown[1]["metadata"]["tags"] == ["nbval-check-output", "remove-input"]
    assert cells[2]["source"].startswith("#| export"), "the notebook itself must stay as it was"


@pytest.mark.parametrize(
    "data, expected",
    [
        ({WIDGET: {}, "text/plain": "VBox(children=(IntSlider(value=1),))"}, {"text/html": site_pages.NEEDS_KERNEL}),
        ({WIDGET: {}, "text/plain": ["  0%|          ", "| 0/10 [00:00<?, ?it/s]"]}, None),
        ({WIDGET: {}, "text/plain": "Image(...)", "image/png": "iVBOR"}, {"text/plain": "Image(...)", "image/png": "iVBOR"}),
        ({"text/plain": "1"}, {"text/plain": "1"}),
        ({"application/vnd.paperlib.run+json": {}, "text/html": "<table>"}, {"text/html": "<table>"}),
    ],
    ids=["controls", "progress bar", "picture beside the view", "no widget", "our own kind"],
)
def test_outputs(data, expected):
    output = site_pages.page_output({"output_type": "display_data", "metadata": {}, "data": data}, same)
    assert (output and output["data"]) == expected


def test_page_has_no_widget_state(tree):
    write(tree / "nbs/superres/a.ipynb", md("# A"), metadata={"widgets": {"state": 1}, "kernelspec": {"name": "python3"}})
    build(tree)
    assert "widgets" not in json.loads((tree / "docs/_nb/superres/a.ipynb").read_text(encoding="utf-8"))["metadata"]


# ---------------------------------------------------------------- links


@pytest.mark.parametrize(
    "link, markdown, html",
    [
        ("b.ipynb#top", "b.ipynb#top", "b.html#top"),
        ("../core/c.ipynb", "../core/c.ipynb", "../core/c.html"),
        ("../../docs/glossary.md", "../../glossary.md", "../../glossary.html"),
        ("../../results/README.md", "https://host/blob/main/results/README.md", "https://host/blob/main/results/README.md"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("#here", "#here", "#here"),
        ("missing.ipynb", "missing.ipynb", "missing.ipynb"),
        ("../../../outside.md", "../../../outside.md", "../../../outside.md"),
    ],
)
def test_links(tree, link, markdown, html):
    source, page = tree / "nbs/superres/a.ipynb", tree / "docs/_nb/superres/a.ipynb"
    mend = site_pages.link_mender(tree, tree / "docs", source, page, "https://host/blob/main")
    text = site_pages.mend_links(f'[text]({link}) <a href="{link}">t</a>', mend)
    assert text == f'[text]({markdown}) <a href="{html}">t</a>'


def test_links_of_the_front_page(tree):
    write(tree / "nbs/index.ipynb", md("# Front · 首页\n\nsee [A](superres/a.ipynb)"))
    assert "[A](_nb/superres/a.ipynb)" in build(tree)


# ---------------------------------------------------------------- scanning


def toctrees(text):
    """Caption -> documents, in the order of the sidebar."""
    trees = re.findall(r":::\{toctree\}\n:hidden:\n:caption: (.+)\n\n((?:.+\n)*?):::", text)
    return {caption: names.split() for caption, names in trees}


def test_navigation_is_scanned(tree):
    assert list(toctrees(build(tree)).items()) == [
        (site_pages.FAMILIES["superres"], ["_nb/superres/b", "_nb/superres/a"]),  # by year
        (site_pages.FAMILIES["core"], ["_nb/core/c"]),
        ("Reference · 参考", list(site_pages.REFERENCE)),
    ]


def test_new_families_appear_and_removed_pages_go(tree):
    write(tree / "nbs/new_field/d.ipynb", md("# D"))
    build(tree)
    (tree / "nbs/superres/a.ipynb").unlink()
    trees = toctrees(build(tree))
    assert trees["New field"] == ["_nb/new_field/d"]
    assert trees[site_pages.FAMILIES["superres"]] == ["_nb/superres/b"]
    assert not (tree / "docs/_nb/superres/a.ipynb").exists()


def test_second_build_writes_nothing(tree):
    build(tree)
    before = {p: p.stat().st_mtime_ns for p in (tree / "docs").rglob("*.ipynb")}
    build(tree)
    assert len(before) == 4 and {p: p.stat().st_mtime_ns for p in (tree / "docs").rglob("*.ipynb")} == before


def test_front_page_with_and_without_a_scoreboard(tree):
    assert build(tree).startswith("# site\n\n> words")
    write(tree / "nbs/index.ipynb", md("# Front · 首页"), code("#| echo: false\nscoreboard()"))
    text = build(tree)
    assert text.startswith("# Front · 首页\nscoreboard()\n## Find") and "# site" not in text


# ---------------------------------------------------------------- API pages

MODULE = '''"""A module. It has |bars|."""
# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/core/x.ipynb.
__all__ = ["LIMIT", "f", "Point", "Net"]
LIMIT = "a: b"

def f(pred: Tensor, *, k: int = 1, **rest: object) -> tuple[Tensor, float]:
    r"""Return |pred - target| <= $\\\\epsilon$ for a <tag> and ``code``.

    # not a heading

    >>> f(1)
    2

    Parameters
    ----------
    pred : (B, 1, H, W), metres
        The *prediction*.
    k : power

    Returns
    -------
    (B,) unitless, lower is better

    Raises
    ------
    ValueError
        Shapes differ.

    Notes
    -----
    Memory is bounded.
    """

@dataclass(frozen=True)
class Point:
    """A point."""
    x: float
    y: float = 0.0

class Net(Module):
    """A network."""
    def __init__(self, width: int = 8):
        pass
    def forward(self, x: Tensor) -> Tensor:
        """Run."""
    @classmethod
    def from_official(cls, state: dict) -> "Net":
        """Load."""
    @property
    def size(self) -> int:
        """Parameters."""
    def _private(self):
        """No."""

def hidden():
    """Not exported."""
'''


def test_api_page():
    page = api_pages.api_page(MODULE, "paperlib.core.x")
    assert page.startswith("# core.x\n\nA module. It has |bars|.\n\nDerived, shown and tested in [](../_nb/core/x.ipynb).")
    for part in (
        ":::{py:module} paperlib.core.x",
        ':::{py:data} LIMIT\n:value: "\'a: b\'"',
        ":::{py:function} f(pred: Tensor, *, k: int=1, **rest: object) -> tuple[Tensor, float]",
        r"Return |pred - target| <= $\\epsilon$ for a \<tag> and ``code``.",
        r"\# not a heading",
        "```python\n>>> f(1)\n2\n```",
        "**Parameters**\n\n- `pred` : (B, 1, H, W), metres\n\n  The *prediction*.\n\n- `k` : power",
        "**Returns**\n\n- (B,) unitless, lower is better",
        "**Raises**\n\n- `ValueError`\n\n  Shapes differ.",
        "**Notes**\n\nMemory is bounded.",
        "::::{py:class} Point(x: float, y: float=0.0)",
        "::::{py:class} Net(width: int=8)",
        ":::{py:method} forward(x: Tensor) -> Tensor",
        ":::{py:classmethod} from_official(state: dict) -> 'Net'",
        ":::{py:property} size\n:type: int",
    ):
        assert part in page, f"{part!r} is not in\n{page}"
    assert "hidden" not in page and "_private" not in page


def test_every_exported_name_has_its_place(tmp_path):
    package = ROOT / "paperlib"
    api_pages.write_api(package, tmp_path)
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        exported = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        if path.name.startswith("_") or not exported:
            continue
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        documented = set(re.findall(r"^:{3,4}\{py:\w+\} (\w+)", page, re.MULTILINE))
        assert set(ast.literal_eval(exported[0].value)) <= documented, name
        assert f"({name}.md)" in (tmp_path / "index.md").read_text(encoding="utf-8")


def test_stale_api_pages_go(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api/gone.md").write_text("# gone", encoding="utf-8")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/x.py").write_text('"""X."""\n__all__ = ["f"]\ndef f(): ...\n', encoding="utf-8")
    api_pages.write_api(tmp_path / "lib", tmp_path / "api")
    assert sorted(p.name for p in (tmp_path / "api").iterdir()) == ["index.md", "x.md"]


# ---------------------------------------------------------------- search


def test_chinese_is_indexed_by_pairs_and_characters():
    words = bilingual_search.SearchEnglishChinese({}).split("SwinIR 的超分辨率, x2")
    assert {"SwinIR", "x2", "的超", "超分", "分辨", "辨率", "率"} <= set(words)
    assert "的超分辨率" not in words


# ---------------------------------------------------------------- what the pages say


def rows(name):
    """The cells of every table row of a page, header and rule left out."""
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    table = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    heads = {i - 1 for i, row in enumerate(table) if set(row[0]) <= set("- ")}
    return [row for i, row in enumerate(table) if i not in heads and i - 1 not in heads]


def test_glossary():
    terms = rows("glossary.md")
    assert len(terms) >= 60 and all(len(row) == 3 and all(row) for row in terms)
    english = [row[0] for row in terms]
    assert len(set(english)) == len(english), f"twice: {sorted({e for e in english if english.count(e) > 1})}"
    without_chinese = [row[0] for row in terms if not re.search("[\u4e00-\u9fff]", row[1])]
    assert without_chinese == []


def test_glossary_has_the_eight_headings():
    assert [f"{i} {zh} · {en}" for i, (en, zh, _) in enumerate(rows("glossary.md")[:8], 1)] == list(SECTIONS)


def test_style_explains_every_rule_of_the_check():
    explained = {row[0].strip("`") for row in rows("STYLE.md")}
    assert {*RULES, "notes", "exports"} <= explained


def test_conventions_name_their_tests():
    named = {name for row in rows("conventions.md") for name in re.findall(r"`(test_convention_\w+)`", row[1])}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert named and named <= set(re.findall(r"^def (test_convention_\w+)", sources, re.MULTILINE))
