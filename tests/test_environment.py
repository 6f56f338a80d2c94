"""One source of truth: settings.ini. Whatever else states a name, a pin, a version or a licence must agree with it."""
import hashlib
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler.exceptions import InvalidMatchSpecError

import paperlib

ROOT = Path(__file__).resolve().parents[1]
CONDA_TO_PYPI = {"pytorch": "torch"}  # the one package that the two worlds name differently
PIP_ONLY = {"nbdev", "execnb", "fastcore", "ghapi", "latex2mathml", "playwright", "sphinx-mathjax-offline", "triton"}
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of the text as apache.org publishes it


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def required(settings):
    """All requirements of settings.ini, the reader's and the developer's: canonical name -> Requirement."""
    listed = [Requirement(r) for key in ("requirements", "dev_requirements") for r in settings[key].split()]
    found = {canonicalize_name(r.name): r for r in listed}
    assert len(found) == len(listed), f"settings.ini names a package twice: {sorted(r.name for r in listed)}"
    return found


@pytest.fixture(scope="module")
def environment():
    """environment.yml as (whole document, conda MatchSpecs, pip lines)."""
    document = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [rattler.MatchSpec(line) for line in document["dependencies"] if isinstance(line, str)]
    pip_sections = [entry["pip"] for entry in document["dependencies"] if isinstance(entry, dict)]
    assert len(pip_sections) == 1, "environment.yml needs exactly one pip section"
    return document, conda, pip_sections[0]


def pins(specifier) -> set[str]:
    """Return the comma-separated parts of a version specifier, so that order and blanks do not matter."""
    return {part.strip() for part in str(specifier or "").split(",") if part.strip()}


def test_a_bad_conda_line_is_refused():
    with pytest.raises(InvalidMatchSpecError):
        rattler.MatchSpec("numpy>=<1.26")


def test_environment_heads(environment, settings):
    document, conda, _ = environment
    assert document["name"] == "paperlib"
    assert document["channels"][0] == "conda-forge"
    python = next(spec for spec in conda if spec.name.normalized == "python")
    assert rattler.VersionSpec(str(python.version)).matches(rattler.Version(f"{settings['min_python']}.7"))
    assert not rattler.VersionSpec(str(python.version)).matches(rattler.Version("3.12.0"))  # the CPU wheels of torch are for 3.11


def test_environment_lists_what_settings_list(environment, required):
    _, conda, pip = environment
    stated = {}
    for spec in conda:
        name = spec.name.normalized
        if name not in ("python", "pip"):
            stated[canonicalize_name(CONDA_TO_PYPI.get(name, name))] = pins(spec.version)
    for line in pip:
        if line != "-e .":
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            assert name not in stated, f"{name} stands under conda and under pip"
            stated[name] = pins(requirement.specifier)
    assert stated == {name: pins(r.specifier) for name, r in required.items()}


def test_environment_pip_section(environment):
    _, _, pip = environment
    assert pip[-1] == "-e .", "paperlib itself is installed last"
    assert {canonicalize_name(Requirement(line).name) for line in pip[:-1]} == PIP_ONLY


def test_nbdev_line_is_pinned_exactly(required):
    for name in ("nbdev", "execnb", "fastcore", "ghapi"):
        assert re.fullmatch(r"==\d+(\.\d+)+", str(required[name].specifier)), f"{name} must have an exact pin"


def test_constraints_pin_torch_within_settings(required):
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    constraints = {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}
    torch_pin = constraints["torch"].specifier
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(torch_pin))
    for name, constraint in constraints.items():
        version = Version(str(constraint.specifier).removeprefix("=="))
        assert version in required[name].specifier, f"constraints.txt has {constraint}, settings.ini {required[name]}"


def test_citation(settings):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= citation.keys()
    assert all(("name" in a) or ({"family-names", "given-names"} <= a.keys()) for a in citation["authors"])
    assert str(citation["version"]) == settings["version"]
    assert citation["repository-code"] == settings["git_url"]
    assert citation["license"] == "Apache-2.0"


def test_version_and_licence(settings):
    assert paperlib.__version__ == settings["version"]
    assert settings["license"] == "apache2"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256
