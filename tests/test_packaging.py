"""What is installed: ranges and exact versions agree, crawling pulls no torch, commands lead somewhere."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CHECKOUT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="ascii"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
HEAVY = {"torch", "torchvision", "timm", "open-clip-torch", "mlflow", "gradio", "scikit-learn"}


def pins() -> dict[str, Version]:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="ascii").splitlines()
    pinned = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, _, version in pinned}


def requirements() -> list[Requirement]:
    listed = [Requirement(text) for text in [*PROJECT["dependencies"], *(r for rs in EXTRAS.values() for r in rs)]]
    return [one for one in listed if one.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_constraints_pin_each_requirement_within_its_range(requirement: Requirement) -> None:
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_range_is_bounded_on_both_sides(requirement: Requirement) -> None:
    assert {part.operator for part in requirement.specifier} == {">=", "<"}


def test_crawling_alone_does_not_pull_torch() -> None:
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not base & HEAVY


@pytest.mark.parametrize("room", ["schemas", "pipeline"])
def test_each_library_that_is_imported_is_asked_for_by_name(room: str) -> None:
    asked = {canonicalize_name(one.name) for one in requirements()}
    owners = importlib.metadata.packages_distributions()
    imported = {name for path in (CHECKOUT / room).rglob("*.py") for name in imported_tops(path)}
    foreign = imported - sys.stdlib_module_names - {"schemas", "pipeline", "training"}
    assert [name for name in sorted(foreign) if not {canonicalize_name(o) for o in owners[name]} & asked] == []


def imported_tops(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | named}


def test_each_folder_with_modules_is_installed() -> None:
    files = [path.relative_to(CHECKOUT) for room in ("schemas", "pipeline", "training") for path in room_files(room)]
    folders = {path.parent.as_posix().replace("/", ".") for path in files}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert [path for path in folders if not (CHECKOUT / path.replace(".", "/") / "__init__.py").exists()] == []


def room_files(room: str) -> list[Path]:
    return list((CHECKOUT / room).rglob("*.py"))


def test_all_is_every_extra_a_user_may_want() -> None:
    (named,) = re.findall(r"\[(.+)\]", EXTRAS["all"][0])
    assert set(named.split(",")) == set(EXTRAS) - {"all", "dev"}


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_each_make_target_works_alone_on_a_fresh_machine(target: str) -> None:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="ascii")
    assert re.search(rf"^{target}: setup\b", makefile, re.MULTILINE)


def test_ci_checks_format_lint_and_types_and_then_runs_all_tests() -> None:
    script = (CHECKOUT / ".ci" / "run").read_text(encoding="ascii")
    assert re.search(r"make .*lint\n.*make .*test", script, re.DOTALL)
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (CHECKOUT / "Makefile").read_text(encoding="ascii"), re.MULTILINE)
    assert lint is not None
    assert [tool for tool in ("ruff format --check", "ruff check", "mypy") if tool not in lint[1]] == []
