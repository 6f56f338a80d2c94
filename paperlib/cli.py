"""The command ``paperlib``: list, show and run papers, report what was recorded, check and begin notebooks."""

from __future__ import annotations

import inspect
import json
import keyword
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table as RichTable

from paperlib.core import paper as registry

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False,
                  help="Fifteen papers, each a notebook, a module and a command that repeats its results.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, where it lies, how to get it.")
weights_app = typer.Typer(no_args_is_help=True, help="Weights trained by this library.")
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
out, err = Console(), Console(stderr=True)

Slug = Annotated[str, typer.Argument(help="paper, as in 'paperlib list'", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def show_table(table: registry.Table) -> None:
    """Print a table: drawn on a terminal, plain markdown into a pipe."""
    if not out.is_terminal:
        return out.print(table.markdown(), markup=False, highlight=False, soft_wrap=True)
    drawn = RichTable(*table.columns, caption=table.caption or None, caption_justify="left")
    for row in table.rows:
        drawn.add_row(*row)
    out.print(drawn)


def say_json(data: object) -> None:
    """Print plain data as JSON."""
    print(json.dumps(data, ensure_ascii=False, indent=1))


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the papers with their verdicts so far.

    [dim]Example:[/dim]  paperlib list
    """
    table = registry.scoreboard()
    say_json([dict(zip(table.columns, r)) for r in table.rows]) if as_json else show_table(table)


@app.command()
def show(slug: Slug, as_json: AsJson = False) -> None:
    """Show a paper: its card, its presets and the verdict on each of its claims.

    [dim]Example:[/dim]  paperlib show srcnn
    """
    record = registry.paper(slug)
    card, claims = registry.card(slug), registry.claims_table(record)
    if as_json:
        return say_json({"card": dict(card.rows), "claims": [dict(zip(claims.columns, r)) for r in claims.rows]})
    show_table(card)
    show_table(claims)


def read_overrides(record: registry.Paper, preset: str, texts: list[str]) -> dict[str, object]:
    """Turn ``key=value`` texts into typed overrides of a preset."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-o {text}: expected key=value")
        pairs[key.strip()] = value.strip()
    typed = record.preset(preset, pairs)
    return {key: getattr(typed, key) for key in pairs}


@app.command()
def run(
    slug: Slug,
    preset: Annotated[str, typer.Option("-p", "--preset", help="smoke (a minute), small (minutes), paper (the full recipe)")] = "smoke",
    seed: Annotated[int, typer.Option("-s", "--seed", help="of everything random")] = 0,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu or cuda")] = "auto",
    override: Annotated[list[str] | None, typer.Option("-o", "--override", help="preset field to change, key=value; may be repeated")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="folder for results  [default: out/]", show_default=False)] = None,
    record: Annotated[bool, typer.Option("--record", help="keep the run card under results/, where every table is made from")] = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper: execute its notebook, write notebook, HTML, run.json and figures, print the claims.

    [dim]Examples:[/dim]

      paperlib run srcnn
      paperlib run srcnn -p small -s 1 --record
      paperlib run srcnn -o filters=9,5,5 -o steps=2000
    """
    paper = registry.paper(slug)
    typed = read_overrides(paper, preset, override or [])
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected 0 or more")
    from paperlib.core.notebooks import record_run, run_notebook  # after the cheap checks: these import torch and papermill
    from paperlib.core.training import resolve_device

    resolve_device(device)
    try:
        with watch(f"{slug} {preset}") as progress:
            made, folder = run_notebook(paper, preset, seed, device, typed, to, progress)
    except KeyboardInterrupt:
        fail("interrupted; results that were there are untouched, and the same command goes on from its last checkpoint", 1)
    kept = record_run(made, folder) if record else None
    if as_json:
        return say_json(made.to_dict() | {"folder": str(folder)})
    show_table(registry.run_table(made))
    show_table(registry.claims_table(paper, [made]))
    for label, name in (("notebook", f"{slug}.ipynb"), ("page", f"{slug}.html"), ("card", "run.json")):
        out.print(f"{label:9}{shorten(folder / name)}", markup=False, highlight=False, soft_wrap=True)
    if kept:
        out.print(f"recorded {shorten(kept)}", markup=False, highlight=False, soft_wrap=True)


def shorten(path: Path) -> Path:
    """Return a path relative to the current folder where it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class watch:
    """Progress of a running notebook: a bar of cells and the kernel's own progress line; a few plain lines into a pipe."""

    def __init__(self, what: str):
        self.what, self.bar, self.told = what, None, -1

    def __enter__(self):
        if err.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self.bar = Progress(TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("cells"),
                                TimeElapsedColumn(), TextColumn("{task.fields[line]}"), console=err, transient=True)
            self.task = self.bar.add_task(self.what, total=None, line="")
            self.bar.start()
        return self.tell

    def tell(self, cell: int, cells: int, line: str) -> None:
        """Report the running cell and the last line of its progress bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=cell - 1, total=cells, line=line[:90])
        elif cells and (step := cell * 10 // cells) != self.told:
            self.told = step
            err.print(f"{self.what}: cell {cell} of {cells}", highlight=False)

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.stop()


BEGIN, END = "<!-- scoreboard:begin -->", "<!-- scoreboard:end -->"


def with_scoreboard(text: str, table: str) -> str:
    """Return a text whose part between the scoreboard's marks is this table."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected one {BEGIN} and one {END}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


@app.command()
def report(
    check: Annotated[bool, typer.Option("--check", help="fail if README or a notebook disagrees with results/")] = False,
    write: Annotated[bool, typer.Option("--write", help="write the scoreboard into README.md")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="as CSV")] = False,
    claims: Annotated[bool, typer.Option("--claims", help="every claim of every paper instead of one row a paper")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the scoreboard, made from results/ and nothing else.

    [dim]Examples:[/dim]

      paperlib report
      paperlib report --claims --csv
      paperlib report --check
    """
    from paperlib.core.notebooks import RULES, Page, kind_of, notebooks, read_notebook

    table = registry.scoreboard()
    if claims:
        tables = [(p.slug, registry.claims_table(p)) for p in registry.papers()]
        rows = tuple((slug, *row) for slug, t in tables for row in t.rows)
        table = registry.Table(("paper", *(tables[0][1].columns if tables else ())), rows)
    root = registry.checkout()
    if check or write:
        if root is None:
            raise FileNotFoundError("README and notebooks are in a checkout; this is an installed package")
        readme = root / "README.md"
        now = readme.read_text(encoding="utf-8")
        fresh = with_scoreboard(now, registry.scoreboard().markdown())
        if write and fresh != now:
            from paperlib.core.data import atomic_write

            with atomic_write(readme) as temporary:
                Path(temporary).write_text(fresh, encoding="utf-8")
        stale = [] if write or fresh == now else ["README.md: the scoreboard is older than results/; run: paperlib report --write"]
        for path in notebooks(root):
            nb = read_notebook(path)
            page = Page(path, nb, kind_of(path, nb))
            stale += [f"{path.name}  cell {cell}  {message}" for cell, message in RULES["tables"][1](page)]
        for line in stale:
            err.print(line, markup=False, highlight=False, soft_wrap=True)
        if check and stale:
            raise typer.Exit(1)
    if as_json:
        return say_json([dict(zip(table.columns, r)) for r in table.rows])
    print(table.csv(), end="") if csv else show_table(table)


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the data sets, their licences and where each was found."""
    from paperlib.core.data import available

    rows = [{k: str(v) for k, v in row._asdict().items()} for row in available()]
    if as_json:
        return say_json(rows)
    show_table(registry.Table(tuple(rows[0]), tuple(tuple(r.values()) for r in rows)))


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="data set, as in 'paperlib data list'", show_default=False)],
             to: Annotated[Path | None, typer.Option("--to", help="folder  [default: the user's cache]", show_default=False)] = None) -> None:
    """Download a data set, each file checked against its checksum.

    [dim]Example:[/dim]  paperlib data get set5
    """
    from paperlib.core.data import fetch

    try:
        out.print(f"{name}: {shorten(fetch(name, to))}", markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise
        fail(error, 1)


@data_app.command("verify")
def data_verify(name: Annotated[str, typer.Argument(help="data set", show_default=False)],
                path: Annotated[Path | None, typer.Option("--path", help="folder to verify  [default: where it is found]", show_default=False)] = None) -> None:
    """Compare a data set's files with their checksums."""
    from paperlib.core.data import verify

    problems = verify(name, path)
    for line in problems:
        out.print(str(line), markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    out.print(f"{name}: complete")


@data_app.command("doctor")
def data_doctor(folder: Annotated[Path, typer.Argument(help="folder with pictures and cameras, a .json file, or still_life, lego, fox", show_default=False)],
                as_json: AsJson = False) -> None:
    """Say what in a capture would spoil a NeRF or a splatting: registered photos, poses, lens, points, near and far.

    [dim]Example:[/dim]  paperlib data doctor my_scene
    """
    from paperlib.core.captures import doctor, findings_table

    findings = doctor(str(folder))
    say_json([f._asdict() for f in findings]) if as_json else show_table(findings_table(findings))
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


@data_app.command("photos")
def data_photos(folder: Annotated[Path, typer.Argument(help="folder with photos of one scene, or with images/ that holds them", show_default=False)],
                to: Annotated[Path | None, typer.Option("--to", help="folder for the cameras  [default: the same]", show_default=False)] = None) -> None:
    """Find the cameras of photos with COLMAP (needs pycolmap, the extra 'sfm'), then look at what came out.

    [dim]Example:[/dim]  paperlib data photos my_scene
    """
    from paperlib.core.captures import doctor, findings_table, poses_from_photos

    try:
        found = poses_from_photos(folder, to, lambda line: err.print(line, markup=False, highlight=False))
    except ImportError as error:
        fail(error, 1)
    findings = doctor(str(found / "sparse"), images=str((folder / "images" if (folder / "images").is_dir() else folder).resolve()))
    show_table(findings_table(findings))
    out.print(f"{shorten(found)}", markup=False, highlight=False, soft_wrap=True)
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


@weights_app.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """List the weights that come with the library, and where those of the papers' authors may be had that some presets read."""
    cards = registry.weights_list()
    if as_json:
        return say_json(cards)
    keys = ("paper", "name", "model", "parameters", "data", "command", "licence", "commit")
    show_table(registry.Table(keys, tuple(tuple(str(c.get(k, "")) for k in keys) for c in cards)))
    from paperlib.core.data import SOURCES

    rows = tuple((s.name, s.title, s.licence, s.where, f"{s.layouts[0]}/") for s in SOURCES.values() if s.weights)
    out.print("\nBy the papers' authors, not shipped; a folder of $PAPERLIB_DATA holds them:", markup=False, highlight=False)
    show_table(registry.Table(("name", "what", "licence", "at", "folder"), rows))


@weights_app.command("add")
def weights_add(
    folder: Annotated[Path, typer.Argument(help="folder of a finished run, as 'paperlib run' printed it", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="put them in the place of weights of the same name")] = False,
) -> None:
    """Keep the weights of a finished run under data/weights, with a card made from the run.

    [dim]Example:[/dim]  paperlib weights add out/srcnn/small-cpu-s0
    """
    from paperlib.core.notebooks import keep_weights

    for path in keep_weights(folder, replace):
        out.print(str(shorten(path)), markup=False, highlight=False, soft_wrap=True)


def read_state(path: Path) -> dict:
    """Read a state dict of a .safetensors file, or of one that torch wrote, without running code from it."""
    import torch
    from safetensors.torch import load_file

    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: no weights that can be read without running code from the file: {str(error).splitlines()[0]}") from error


@weights_app.command("convert")
def weights_convert(slug: Slug, source: Annotated[Path, typer.Argument(help="official weights", show_default=False)],
                    target: Annotated[Path, typer.Argument(help="file to write, .safetensors", show_default=False)],
                    setting: Annotated[list[str] | None, typer.Option("--setting", "-o", help="KEY=VALUE of the network, where the file does not tell", show_default=False)] = None) -> None:
    """Read a paper's official weights and write them as safetensors.

    [dim]Examples:[/dim]

      paperlib weights convert srcnn x3.mat srcnn_x3.safetensors
      paperlib weights convert simvp checkpoint.pth simvp.safetensors -o shape_in=10,1,64,64 -o hid_S=64
    """
    record = registry.paper(slug)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: expected a name that ends in .safetensors")
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    if wrong := [s for s in setting or [] if not s.partition("=")[1]]:
        raise ValueError(f"{wrong[0]!r}: expected KEY=VALUE")
    config = {key: registry._read(value, object) for key, _, value in (s.partition("=") for s in setting or [])}
    from paperlib.core.training import save_weights

    build = getattr(getattr(record.module, record.model, None), "from_official", None)
    if build is None:
        raise ValueError(f"{slug}: no official weights are read for this paper")
    takes = inspect.signature(build).parameters
    first, *others = takes
    free = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if strange := [k for k in config if k not in others] if not free else []:
        raise ValueError(f"{strange[0]!r}: {record.model} takes {', '.join(others) or 'no setting'}")
    if missing := [k for k in others if takes[k].default is takes[k].empty and takes[k].kind is not takes[k].VAR_KEYWORD and k not in config]:
        raise ValueError(f"{source.name} does not tell {', '.join(missing)}: give -o {missing[0]}=...")
    model = build(source if first in ("path", "source") else read_state(source), **config)
    save_weights(model, target, {"paper": slug, "model": type(model).__name__, "source": source.name, "licence": record.licence, "config": config})
    out.print(str(target), markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    names: Annotated[list[Path] | None, typer.Argument(help="notebooks  [default: all]", show_default=False)] = None,
    notes: Annotated[Path | None, typer.Option("--notes", help="table of the notes' points: names every point that no cell holds", show_default=False)] = None,
    do_refresh: Annotated[bool, typer.Option("--refresh", help="execute the notebooks first and keep the outputs")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold notebooks to the template: sections, sizes, parameters, claims, fresh outputs, exports in sync.

    [dim]Examples:[/dim]

      paperlib check
      paperlib check nbs/superres/srcnn.ipynb --refresh
      paperlib check --notes points.tsv
    """
    from paperlib.core.notebooks import check_exports, check_notebook, notebooks, read_points, refresh

    if (root := registry.checkout()) is None:
        raise FileNotFoundError("notebooks are in a checkout; this is an installed package")
    every = notebooks(root)
    chosen = [find_notebook(n, every) for n in names] if names else every
    points = read_points(notes) if notes else None
    if do_refresh:
        for path in chosen:
            err.print(f"executing {shorten(path)}", markup=False, highlight=False)
            refresh(path)
    problems = [p for path in chosen for p in check_notebook(path, points)] + ([] if names else check_exports(root))
    if as_json:
        say_json([vars(p) for p in problems])
    else:
        for problem in problems:
            out.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        out.print(f"{len(chosen)} notebook{'s' * (len(chosen) != 1)}, {len(problems)} problem{'s' * (len(problems) != 1)}")
    if problems:
        raise typer.Exit(1)


def find_notebook(name: Path, every: list[Path]) -> Path:
    """Return a notebook given by path, by file name or by slug."""
    if name.is_file():
        return name.resolve()
    by_stem = {p.stem: p for p in every}
    if name.stem not in by_stem or (name.suffix and name.name != f"{name.stem}.ipynb"):
        raise registry.unknown("notebook", str(name), by_stem)
    return by_stem[name.stem]


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="short name: lower-case letters, digits, underscores", show_default=False)],
    family: Annotated[str, typer.Option("-f", "--family", help="folder below nbs/: depth, superres, masked, sequence, render, or a new one")],
    title: Annotated[str, typer.Option("-t", "--title", help="English title")] = "A paper",
    title_zh: Annotated[str, typer.Option("--title-zh", help="Chinese title")] = "一篇论文",
    year: Annotated[int, typer.Option("--year", help="of the paper")] = 2026,
) -> None:
    """Begin the next paper's notebook: it exports and runs at once; what is to be written is marked with a pencil.

    [dim]Example:[/dim]  paperlib new edsr -f superres -t "Enhanced deep residual networks" --title-zh 增强残差网络 --year 2017
    """
    from paperlib.core.notebooks import new_notebook, write_notebook

    if (root := registry.checkout()) is None:
        raise FileNotFoundError("notebooks are in a checkout; this is an installed package")
    for what, word in (("slug", slug), ("family", family)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word) or keyword.iskeyword(word):
            raise ValueError(f"{what} {word!r}: expected lower-case letters, digits and underscores")
    if slug in {p.slug for p in registry.papers()} or family == "core":
        raise ValueError(f"paper {slug!r} exists already" if family != "core" else "core holds no papers; choose a family")
    path = root / "nbs" / family / f"{slug}.ipynb"
    if path.exists():
        raise ValueError(f"{shorten(path)} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_notebook(new_notebook(slug, family, title, title_zh, year), path)
    out.print(f"{shorten(path)}\nnext: nbdev_export, then paperlib run {slug}, then paperlib check {slug}", markup=False, highlight=False)


@app.command()
def lab(arguments: Annotated[list[str] | None, typer.Argument(help="passed on to jupyter lab")] = None) -> None:
    """Open JupyterLab on the notebooks.

    [dim]Example:[/dim]  paperlib lab
    """
    if (root := registry.checkout()) is None:
        raise FileNotFoundError("notebooks are in a checkout; this is an installed package")
    raise typer.Exit(subprocess.call([sys.executable, "-m", "jupyter", "lab", str(root / "nbs"), *(arguments or [])]))


def fail(error: BaseException | str, code: int) -> NoReturn:
    """Print one line that says what is wrong, and leave with an exit code."""
    text = " ".join(str(error).split()) or type(error).__name__
    err.print(f"paperlib: {text}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Run the command line: exit code 0 done, 1 the run failed, 2 the call was wrong."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # the debugger's remark about frozen modules helps nobody here
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
    try:
        app(standalone_mode=True)
    except FileNotFoundError as error:
        fail(f"{error.filename}: no such file" if error.filename else error, 2)
    except ValueError as error:
        fail(error, 2)
    except OSError as error:
        fail(f"{error.strerror or error}{': ' + shorten(Path(error.filename)).as_posix() if error.filename else ''}", 1)
    except registry.RunFailed as error:
        fail(f"the run failed in {error}" + (f"  (see {shorten(error.notebook)})" if error.notebook else ""), 1)
    except Exception as error:  # a fault of ours: one line for the user, the traceback on request
        if os.environ.get("PAPERLIB_DEBUG"):
            traceback.print_exc()
        fail(f"{type(error).__name__}: {error}  (set PAPERLIB_DEBUG=1 for the traceback)", 1)
