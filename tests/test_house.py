"""The rules of the house, read from the source: who imports what, where bytes are decoded, how files are shaped.

When a rule is wrong, change it here and in the style guide together.
"""

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = ("schemas", "pipeline", "training")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

STAGES = frozenset({"crawl", "importers", "dedup", "embed", "copies", "score", "publish"})
TRAINING_DOORS = frozenset({"fetch", "embed", "score"})
# Folders of a room that know nothing of the room around them.
SUB_PACKAGES = ("pipeline/web", "pipeline/pages", "pipeline/drawn_site")
# Rooms a room may import, beside itself.
MAY_IMPORT = {"schemas": set(), "pipeline": {"schemas"}, "training": {"schemas", "pipeline"}}
NOT_IN_SCHEMAS = frozenset({"ray", "torch", "duckdb", "mlflow"})

# Library (the longest prefix counts) -> the files that may import it.
DOORS = {
    "ray": {"pipeline/runner.py", "pipeline/runner_board.py", "pipeline/runner_calls.py", "pipeline/runner_hands.py"},
    "ray.train": {"training/train.py"},
    "ray.serve": {"training/serve.py"},
    "duckdb": {"pipeline/catalog.py"},
    "mlflow": {"training/tracking.py"},
    "lmdb": {"schemas/shards.py"},
    "aiohttp": {"pipeline/fetch.py"},
    "aiohttp.web": {
        "pipeline/demo_site.py",
        "pipeline/drawn_site/faults.py",
        "pipeline/drawn_site/server.py",
        "pipeline/label.py",
    },
    "requests": set(),
    "httpx": set(),
    "urllib.request": set(),
    "http.client": set(),
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
}
# Calls that turn foreign bytes into pixels, by the last two steps of the called name.
DECODERS = frozenset(
    {"Image.open", "ImageFile.Parser", "cv2.imdecode", "cv2.imread", "cv2.VideoCapture", "simplejpeg.decode_jpeg"}
    | {"simplejpeg.decode_jpeg_header", "io.decode_image", "io.decode_jpeg", "io.read_image", "imageio.imread"}
)
DECODING_FILES = frozenset({"schemas/image.py"})
# The row boundary of fetching and decoding stores the reason; the frame of scripts prints it and exits 1.
BROAD_EXCEPT_FILES = frozenset(
    {"pipeline/fetch.py", "pipeline/crawl_part.py", "schemas/image.py", "schemas/command.py"}
)
BROAD = frozenset({"Exception", "BaseException"})
FORBIDDEN_CALLS = frozenset({"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load"})
# Weights that others publish come as pickles too; read as arrays alone, in one place, they run no code.
ARRAYS_ONLY = frozenset({"torch.load"})
WEIGHTS_FILES = frozenset({"pipeline/embed_encoders.py"})
FORBIDDEN_WORDS = frozenset({"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"})

# Run as scripts, their files put the folder first on the path: its sub-packages can shadow a library too.
SCRIPT_FOLDERS = (["pipeline"], ["training"], ["benchmarks"])

ROOM_FILES = sorted(path.relative_to(CHECKOUT).as_posix() for room in ROOMS for path in (CHECKOUT / room).rglob("*.py"))
ALL_FILES = ROOM_FILES + sorted(
    path.relative_to(CHECKOUT).as_posix()
    for room in ("benchmarks", "tests")
    for path in (CHECKOUT / room).rglob("*.py")
)


@cache
def source(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


def stage_of(stem: str) -> str | None:
    """Name the stage a pipeline module belongs to: crawl_part is a piece of crawl."""
    first = stem.split("_")[0]
    return first if first in STAGES else None


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


SCRIPTS = [name for name in ROOM_FILES if any(is_main_guard(node) for node in tree(name).body)]


def imports(name: str) -> Iterator[str]:
    """Yield the dotted name of all that a file imports, also within functions."""
    package = name.removesuffix("/__init__.py").removesuffix(".py").split("/")
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def calls(name: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def allowed_files(imported: str) -> set[str] | None:
    """Return the files that may import a library, None where any may."""
    steps = imported.split(".")
    for length in range(len(steps), 0, -1):
        if (files := DOORS.get(".".join(steps[:length]))) is not None:
            return files
    return None


def each_file(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


@each_file(ROOM_FILES)
def test_a_room_imports_only_the_rooms_before_it(name: str) -> None:
    room = name.split("/")[0]
    strangers = {*ROOMS, "tests", "benchmarks"} - MAY_IMPORT[room] - {room}
    assert [found for found in imports(name) if found.split(".")[0] in strangers] == []


@each_file([name for name in ROOM_FILES if name.startswith("training/")])
def test_training_takes_only_its_doors_from_pipeline(name: str) -> None:
    taken = [found for found in imports(name) if found.split(".")[0] == "pipeline"]
    assert [found for found in taken if found.split(".")[1] not in TRAINING_DOORS] == []


@each_file([name for name in ROOM_FILES if name.startswith("pipeline/") and stage_of(Path(name).stem)])
def test_a_stage_imports_no_other_stage(name: str) -> None:
    taken = [found.split(".")[1] for found in imports(name) if found.startswith("pipeline.")]
    assert [found for found in taken if stage_of(found) not in (None, stage_of(Path(name).stem))] == []


def test_every_folder_of_a_room_is_a_known_sub_package() -> None:
    folders = {Path(name).parent.as_posix() for name in ROOM_FILES}
    assert folders - set(ROOMS) == set(SUB_PACKAGES)


@each_file([name for name in ROOM_FILES if Path(name).parent.as_posix() in SUB_PACKAGES])
def test_a_sub_package_imports_nothing_of_the_room_around_it(name: str) -> None:
    room, own = name.split("/")[0], Path(name).parent.as_posix().replace("/", ".")
    taken = [found for found in imports(name) if found.split(".")[0] == room]
    assert [found for found in taken if not found.startswith(f"{own}.")] == []


@each_file([name for name in ROOM_FILES if name.startswith("schemas/")])
def test_schemas_import_no_engine(name: str) -> None:
    assert [found for found in imports(name) if found.split(".")[0] in NOT_IN_SCHEMAS] == []


@each_file(ROOM_FILES)
def test_a_heavy_library_comes_in_by_its_one_door(name: str) -> None:
    wrong = [found for found in imports(name) if (files := allowed_files(found)) is not None and name not in files]
    assert wrong == []


@each_file([name for name in ROOM_FILES if name not in DECODING_FILES])
def test_foreign_bytes_become_pixels_at_the_image_door_only(name: str) -> None:
    assert [f"line {line}: {called}" for line, called in calls(name) if in_decoders(called)] == []


def in_decoders(called: str) -> bool:
    steps = called.split(".")
    return ".".join(steps[-2:]) in DECODERS or steps[-1].endswith("ImageFile")


@each_file(ALL_FILES)
def test_a_file_is_no_longer_than_the_wall(name: str) -> None:
    num_lines = len(source(name).splitlines())
    assert num_lines <= MAX_FILE_LINES


@each_file(ALL_FILES)
def test_a_function_is_no_longer_than_the_wall(name: str) -> None:
    functions = [node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {function: length for function, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@each_file(ALL_FILES)
def test_a_module_is_named_for_what_it_hides(name: str) -> None:
    assert not set(Path(name).stem.split("_")) & FORBIDDEN_WORDS


@each_file([name for name in ALL_FILES if re.fullmatch(r"tests/(schemas|pipeline|training)/(\w+/)?test_\w+\.py", name)])
def test_a_test_file_is_named_for_the_module_it_tests(name: str) -> None:
    folder, subject = Path(name).relative_to("tests").parent, Path(name).stem.removeprefix("test_")
    modules = {Path(other).stem for other in ROOM_FILES if Path(other).parent == folder}
    assert any(subject == module or subject.startswith(f"{module}_") for module in modules)


@each_file(ROOM_FILES)
def test_importing_a_module_does_nothing(name: str) -> None:
    assert [
        f"line {node.lineno}: {ast.unparse(node)[:60]}" for node in tree(name).body if not is_definition(node)
    ] == []


def is_definition(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Assign(targets=targets):
            return all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        case ast.AnnAssign(target=target):
            return isinstance(target, ast.Name)
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return is_main_guard(node)


@each_file(ALL_FILES)
def test_source_is_ascii(name: str) -> None:
    assert source(name).isascii()


@each_file([name for name in ALL_FILES if not name.startswith("tests/")])
def test_no_code_from_data_and_no_edits_of_the_path(name: str) -> None:
    wrong = [f"line {line}: {called}" for line, called in calls(name) if called in FORBIDDEN_CALLS - ARRAYS_ONLY]
    wrong += [f"line {node.lineno}: {called}" for node, called in unsafe_loads(name)]
    wrong += [found for found in imports(name) if found in {"torch.load", "sys.path"}]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            wrong.append(f"line {node.lineno}: sys.path")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            wrong.append(f"line {node.value.lineno}: allow_pickle")
    assert wrong == []


@each_file([name for name in ROOM_FILES if name not in BROAD_EXCEPT_FILES])
def test_errors_are_caught_narrowly(name: str) -> None:
    handlers = [node for node in ast.walk(tree(name)) if isinstance(node, ast.ExceptHandler)]
    broad = [node for node in handlers if BROAD & names_caught(node)]
    assert [node.lineno for node in broad if ast.unparse(node.body[-1]) != "raise"] == [], (
        "tidying up and raising on is fine"
    )


def unsafe_loads(name: str) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in ARRAYS_ONLY:
            asked = {ast.unparse(keyword) for keyword in node.keywords}
            if name not in WEIGHTS_FILES or "weights_only=True" not in asked:
                yield node, called


def names_caught(handler: ast.ExceptHandler) -> set[str]:
    if handler.type is None:
        return {"BaseException"}
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {ast.unparse(one) for one in caught}


@each_file([name for name in ALL_FILES if name != "tests/test_house.py"])
def test_a_silenced_check_gives_its_reason_and_nothing_is_left_for_later(name: str) -> None:
    lines = list(enumerate(source(name).splitlines(), 1))
    silenced = [number for number, line in lines if re.search(r"#\s*(type: ignore|noqa)", line)]
    reasoned = [
        number for number, line in lines if re.search(r"# (type: ignore\[[\w, -]+\]|noqa: [\w, ]+?)  # \w", line)
    ]
    assert silenced == reasoned
    assert [number for number, line in lines if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)] == []


@each_file([name for name in [*ALL_FILES, *SUB_PACKAGES] if name.split("/")[:-1] in SCRIPT_FOLDERS])
def test_no_script_folder_shadows_a_library(name: str) -> None:
    stem = Path(name).stem
    assert stem not in sys.stdlib_module_names
    owners = importlib.metadata.packages_distributions().get(stem, [])
    assert set(owners) <= {"forecourt"}, "python pipeline/x.py puts its folder first on the path"


@each_file(SCRIPTS)
def test_a_script_starts_with_main_and_ends_by_raising_its_code(name: str) -> None:
    functions = [node for node in tree(name).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert functions[0].name == "main"
    last = tree(name).body[-1]
    assert isinstance(last, ast.If)
    assert [ast.unparse(node) for node in last.body] == ["raise SystemExit(main())"]


@each_file(SCRIPTS)
def test_a_scripts_help_is_its_docstring_with_an_example_to_paste(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example = f"python {name}"
    assert example in (ast.get_docstring(tree(name)) or "")
    main = importlib.import_module(name.removesuffix(".py").replace("/", ".")).main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert example in capsys.readouterr().out


def test_each_script_is_an_installed_command_too() -> None:
    commands = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="ascii"))["project"]["scripts"]
    expected = {
        f"forecourt-{Path(name).stem.replace('_', '-')}": f"{name.removesuffix('.py').replace('/', '.')}:main"
        for name in SCRIPTS
    }
    assert commands == expected
