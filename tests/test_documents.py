"""The documents and configuration files, held to the code they speak of."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic.fields import FieldInfo

from pipeline.catalog import query
from pipeline.sites import load_site
from schemas.errors import SiteFileError
from schemas.settings import KNOWN_SECTIONS, Section, load_settings
from schemas.storage import Root
from schemas.tables import SCHEMAS

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((CHECKOUT / "pipeline" / "configs").glob("*.yaml"))
SITE_FILES = sorted((CHECKOUT / "pipeline" / "configs" / "sites").glob("*.yaml"))
ROOM_FILES = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for room in ("schemas", "pipeline", "training")
    for path in (CHECKOUT / room).rglob("*.py")
)
MODULES = [name for name in ROOM_FILES if not name.endswith("__init__.py")]
SCRIPTS = [name for name in MODULES if '__name__ == "__main__"' in (CHECKOUT / name).read_text(encoding="utf-8")]


def document(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def table_rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_settings() -> list[type[Section]]:
    """Find each model that has sections as its fields: what a script reads a configuration file with."""
    found: list[type[Section]] = []
    for name in MODULES:
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__
            if own and sections_of(value):
                found.append(value)
    return found


def sections_of(model: type[Section]) -> dict[str, type[Section]]:
    kinds = {name: field.annotation for name, field in model.model_fields.items() if name in KNOWN_SECTIONS}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


def documented_settings() -> list[tuple[str, str]]:
    rows = [row for row in table_rows(document("README.md")) if re.fullmatch(r"`[a-z_]+\.[a-z_0-9]+`", row[0])]
    return [(row[0].strip("`"), row[1].strip("`")) for row in rows]


def test_the_architecture_has_a_line_for_each_file_and_no_other() -> None:
    rows = [row[0].strip("`") for row in table_rows(document("ARCHITECTURE.md"))]
    named = [name for name in rows if re.fullmatch(r"(schemas|pipeline|training)/[\w/]+\.py", name)]
    assert sorted(named) == MODULES


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_architecture_names_each_table(table: str) -> None:
    assert f"`{table}/" in document("ARCHITECTURE.md")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_shows_each_script(script: str) -> None:
    assert f"python {script}" in document("README.md")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_each_make_target_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", document("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)\b", document(name), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_each_link_and_file_named_exists(name: str) -> None:
    text = document(name)
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    files = set(re.findall(r"`((?:schemas|pipeline|training|benchmarks|tests)/[\w./-]+\.(?:py|yaml))`", text))
    assert [path for path in sorted(links | files) if not (CHECKOUT / path).exists()] == []


def test_the_changelog_starts_with_the_current_version() -> None:
    version = tomllib.loads(document("pyproject.toml"))["project"]["version"]
    first = re.search(r"^## (\S+)", document("CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert first[1] == version


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_option_the_readme_shows_is_one_the_script_has(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    joined = document("README.md").replace("\\\n", " ")
    shown = {option for line in re.findall(rf"python {script}([^\n`|]*)", joined) for option in options(line)}
    with pytest.raises(SystemExit):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(["--help"])
    assert shown - options(capsys.readouterr().out) == set()


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("setting", documented_settings(), ids=lambda setting: setting[0])
def test_each_setting_in_the_readme_has_the_default_it_says(setting: tuple[str, str]) -> None:
    section, _, field = setting[0].partition(".")
    # A script may read a few settings of a section whose other fields are for another to check.
    sections = [kinds[section].model_fields for kinds in map(sections_of, run_settings()) if section in kinds]
    found = [fields[field] for fields in sections if field in fields]
    assert found, f"no script reads {section}.{field}"
    assert setting[1] == shown_default(found[0])


def shown_default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return "none" if default is None else str(default)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_configuration_is_accepted_by_every_script(path: Path) -> None:
    loaded = yaml.safe_load(path.read_text(encoding="ascii")) or {}
    assert set(loaded) <= KNOWN_SECTIONS
    for model in run_settings():
        load_settings(model, config=path)


def test_the_cluster_configuration_embeds_with_clip() -> None:
    loaded = yaml.safe_load(document("pipeline/configs/cluster.yaml"))
    assert loaded["embed"]["encoder"] == "open_clip:ViT-B-16/openai"


@pytest.mark.parametrize("path", SITE_FILES, ids=lambda path: path.name)
def test_each_example_of_a_site_file_lacks_only_the_contact(path: Path, tmp_path: Path) -> None:
    example = yaml.safe_load(path.read_text(encoding="ascii"))
    assert example["politeness"]["contact"] == "", "whoever crawls must say who they are"
    with pytest.raises(SiteFileError, match="contact"):
        load_site(path)
    example["politeness"]["contact"] = "mailto:data@example.org"
    filled = tmp_path / path.name
    filled.write_text(yaml.safe_dump(example), encoding="ascii")
    assert load_site(filled).name == example["name"]


def test_there_is_an_example_of_each_kind_of_site_file() -> None:
    kinds = [yaml.safe_load(path.read_text(encoding="ascii"))["extract"]["kind"] for path in SITE_FILES]
    assert {"json_ld", "state", "css"} <= {kind for kind in kinds if isinstance(kind, str)}


def test_the_site_file_in_the_readme_can_be_loaded(tmp_path: Path) -> None:
    (block,) = [block for block in code_blocks(document("README.md"), "yaml") if "listing_url:" in block]
    path = tmp_path / "site.yaml"
    path.write_text(block, encoding="utf-8")
    assert load_site(path).politeness.contact


def test_the_queries_in_the_readme_run_on_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, schema in SCHEMAS.items():
        (tmp_path / "cars" / folder).mkdir(parents=True)
        pq.write_table(schema.empty_table(), tmp_path / "cars" / folder / "part.parquet")
    monkeypatch.chdir(tmp_path)
    (plain,) = code_blocks(document("README.md"), "sql")
    assert duckdb.execute(plain).description
    asked = re.findall(r'python pipeline/catalog\.py [^"\n]*"(.+)"', document("README.md"))
    assert asked
    root = Root.open(str(tmp_path / "root"), create=True)
    assert [sql for sql in asked if not query(root, sql).column_names] == []


def test_each_module_says_at_its_top_what_it_is() -> None:
    assert [name for name in ROOM_FILES if not ast.get_docstring(ast.parse(document(name)))] == []
