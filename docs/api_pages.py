"""Write the API pages: one per module of the package, read from its source.

The modules are parsed, not imported: the site builds in seconds without torch, and a module that fails to import still has a page.
Docstrings are numpydoc in Markdown, as the notebooks show them, so they are set as MyST and keep their formulas; autodoc would read
them as reStructuredText and trip over the first ``|ours - paper|``.
"""
from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

from site_pages import write_if_changed

SKIP = {"_modidx", "__main__"}
NOTEBOOK = re.compile(r"File to edit: (?:\.\./)*nbs/(\S+\.ipynb)")
SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}[ ]*$", re.MULTILINE)
LISTED = {"Parameters", "Other Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns"}
CODE_OR_MATH = re.compile(r"(`+[^`]+`+|\$[^$]+\$)")


def markdown(text: str) -> str:
    """Return docstring prose as MyST: doctests fenced; raw tags, headings and stray link targets made literal."""
    lines, fenced = [], False
    for line in text.splitlines():
        doctest = line.lstrip().startswith((">>> ", "... ")) or (fenced and line.strip() != "")
        if doctest != fenced:
            lines.append("```python" if doctest else "```")
            fenced = doctest
        if not doctest:
            parts = CODE_OR_MATH.split(line)
            parts[::2] = [re.sub(r"<(?=[A-Za-z/!])", r"\\<", re.sub(r"\]\((?!https?://)", r"]\\(", p)) for p in parts[::2]]
            line = re.sub(r"^(\s*)#", r"\1\\#", "".join(parts))
        lines.append(line)
    return "\n".join(lines + ["```"] * fenced)


def entries(body: str) -> list[tuple[str, str]]:
    """Split a listed section into (head, description): a head is a line without indentation."""
    found: list[tuple[str, list[str]]] = []
    for line in body.strip("\n").splitlines():
        if line and not line[0].isspace():
            found.append((line.strip(), []))
        elif found:
            found[-1][1].append(line)
    return [(head, inspect.cleandoc("\n" + "\n".join(lines)).strip()) for head, lines in found]


def render_entry(section: str, head: str, description: str) -> str:
    """Return one bullet of a listed section, its description indented below."""
    name, colon, kind = head.partition(" : ")
    if section in ("Raises", "Warns") or (colon and section not in ("Returns", "Yields")):
        line = f"- `{name.strip()}`" + (f" : {markdown(kind.strip())}" if colon else "")
    else:
        line = f"- {markdown(head)}"
    below = "\n".join(f"  {text}".rstrip() for text in markdown(description).splitlines())
    return f"{line}\n\n{below}\n" if below else line


def docstring(node: ast.AST) -> str:
    """Return a definition's docstring as MyST, its numpydoc sections as bold titles over bullets or prose."""
    text = ast.get_docstring(node) or ""
    pieces = SECTION.split(text)
    out = [markdown(pieces[0].strip())] if pieces[0].strip() else []
    for title, body in zip(pieces[1::2], pieces[2::2]):
        rows = "\n".join(render_entry(title, *entry) for entry in entries(body)) if title in LISTED else markdown(inspect.cleandoc(body))
        out.append(f"**{title}**\n\n{rows}")
    return "\n\n".join(out)


def decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Return the plain names of a definition's decorators: ``@dataclass(frozen=True)`` gives ``dataclass``."""
    return {ast.unparse(d.func if isinstance(d, ast.Call) else d).split(".")[-1] for d in node.decorator_list}


def arguments(node: ast.FunctionDef, bound: bool) -> str:
    """Return ``(args) -> result`` of a function; `bound` drops ``self`` or ``cls``."""
    args = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0].args
    if bound:
        del (args.posonlyargs or args.args)[:1]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(args)}){returns}"


def fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Return a dataclass's or named tuple's fields as written, those of bases in the same module first."""
    inherited = [f for base in node.bases if ast.unparse(base) in classes for f in fields(classes[ast.unparse(base)], classes)]
    own = [f"{ast.unparse(n.target)}: {ast.unparse(n.annotation)}" + (f"={ast.unparse(n.value)}" if n.value else "")
           for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    by_name = {f.split(":")[0]: f for f in [*inherited, *own]}  # a field given again keeps its place and takes the new default
    return list(by_name.values())


def constructor(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """Return how a class is called: from ``__init__``, or from its fields, or nothing that can be said."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return arguments(item, bound=True).removesuffix(" -> None")
    listed = "dataclass" in decorators(node) or any(ast.unparse(b).split(".")[-1] == "NamedTuple" for b in node.bases)
    return f"({', '.join(fields(node, classes))})" if listed else ""


def directive(kind: str, signature: str, body: str, level: int = 3, options: tuple[str, ...] = ()) -> str:
    """Return a py-domain directive; an outer one needs more colons than those inside it."""
    fence = ":" * level
    return "\n".join([f"{fence}{{py:{kind}}} {signature}", *options, "", body, fence, ""])


def class_page(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """Return a class with its public methods and properties."""
    parts, seen = [docstring(node)], set()
    for item in node.body:
        if not isinstance(item, ast.FunctionDef) or item.name in seen or (item.name.startswith("_") and item.name != "__call__"):
            continue
        seen.add(item.name)
        marks = decorators(item)
        if marks & {"property", "cached_property"}:
            options = (f":type: {ast.unparse(item.returns)}",) if item.returns else ()
            parts.append(directive("property", item.name, docstring(item), 3, options))
        else:
            kind = "staticmethod" if "staticmethod" in marks else "classmethod" if "classmethod" in marks else "method"
            parts.append(directive(kind, item.name + arguments(item, bound=kind != "staticmethod"), docstring(item)))
    return directive("class", node.name + constructor(node, classes), "\n\n".join(parts), 4)


def constant(node: ast.Assign | ast.AnnAssign, name: str) -> str:
    """Return a module constant, with its value where that fits on a line."""
    value = ast.unparse(node.value) if node.value else ""
    options = (f":value: {json.dumps(value)}",) if 0 < len(value) <= 80 else ()  # quoted: an option is read as YAML
    return directive("data", name, "", 3, options)


def public_names(tree: ast.Module) -> list[str]:
    """Return ``__all__``, or without one every definition that has a docstring and no leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    defined = (n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef))
    return [n.name for n in defined if not n.name.startswith("_") and ast.get_docstring(n)]


def api_page(source: str, module: str) -> str | None:
    """Return the page of one module as MyST, or None for a module with nothing to document.

    Parameters
    ----------
    source : text of the module
    module : dotted name, ``"paperlib.core.images"``
    """
    tree = ast.parse(source)
    names = public_names(tree)
    definitions: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    definitions.setdefault(ast.unparse(name), node)
    classes = {name: node for name, node in definitions.items() if isinstance(node, ast.ClassDef)}
    documented = [name for name in dict.fromkeys(names) if name in definitions]
    if not documented:
        return None
    short = module.split(".", 1)[-1]
    out = [f"# {short}", markdown(ast.get_docstring(tree) or "").split("\n\n")[0]]
    if origin := NOTEBOOK.search(source):
        out.append(f"Derived, shown and tested in [](../_nb/{origin[1]}).")
    out.append(f":::{{py:module}} {module}\n:::")
    for name in documented:
        node = definitions[name]
        if isinstance(node, ast.ClassDef):
            out.append(class_page(node, classes))
        elif isinstance(node, ast.FunctionDef):
            out.append(directive("function", name + arguments(node, bound=False), docstring(node)))
        else:
            out.append(constant(node, name))
    return "\n\n".join(out) + "\n"


def write_api(package: Path, target: Path) -> None:
    """Write `target`/<module>.md for every module of a package, and an index of them; remove pages without a module."""
    rows, written = [], {target / "index.md"}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] in SKIP:
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        page = api_page(path.read_text(encoding="utf-8"), module)
        if page is not None:
            name = module.removeprefix(f"{package.name}.")
            summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip().split("\n")[0]
            rows.append((name, markdown(summary).replace("|", r"\|")))
            write_if_changed(target / f"{name}.md", page)
            written.add(target / f"{name}.md")
    table = [f"| [{name}]({name}.md) | {summary} |" for name, summary in rows]
    tree = [":::{toctree}", ":hidden:", "", *[name for name, _ in rows], ":::"]
    head = ["# API by module", "", "What each module exports, read from its source. The notebook behind a module derives and tests it.", ""]
    write_if_changed(target / "index.md", "\n".join([*head, "| module | holds |", "| --- | --- |", *table, "", *tree]) + "\n")
    for stale in set(target.glob("*.md")) - written:
        stale.unlink()
