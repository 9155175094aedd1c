"""Settings: one frozen section a module, from a YAML file and `--set section.key=value`.

A field says whether it changes the result (a root made with another value refuses the run) or is
operational (rate, workers, time-outs; free to change).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import SettingsError

# One configuration file serves all scripts; each validates the sections it uses and passes by the rest of these.
KNOWN_SECTIONS = frozenset(
    "ray image shards fetch pace crawl rates dedup catalog importers embed copies score publish report label".split()
    + "model data train losses evaluate calibrate predict serve explore".split()
)


class Section(BaseModel):
    """The settings of one module; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def result(default: Any, why: str, **limits: Any) -> Any:
    """Declare a field that changes the result; `why` is its unit and reason."""
    return Field(default, description=why, json_schema_extra={"kind": "result"}, **limits)


def operational(default: Any, why: str, **limits: Any) -> Any:
    """Declare a field that changes how the work is done, never what comes out."""
    return Field(default, description=why, json_schema_extra={"kind": "operational"}, **limits)


S = TypeVar("S", bound=Section)


def load_settings(model: type[S], *, config: Path | str | None = None, sets: Sequence[str] = ()) -> S:
    """Resolve settings: defaults, then the file, then each `a.b=c` in turn.

    `model` has one field a section it uses.

    Raises:
        SettingsError: a file that cannot be read, an unknown key, or a value out of range.
    """
    values = _read_config(config) if config is not None else {}
    for assignment in sets:
        _assign(values, assignment)
    for name in values:
        if name not in model.model_fields and name not in KNOWN_SECTIONS:
            known = ", ".join(sorted(KNOWN_SECTIONS | set(model.model_fields)))
            raise SettingsError(f"unknown section {name!r} in settings; known sections: {known}")
    try:
        return model.model_validate({k: v for k, v in values.items() if k in model.model_fields})
    except ValidationError as error:
        raise SettingsError(_explain(error, model)) from error


def result_settings(section: BaseModel) -> dict[str, Any]:
    """Return the fields that change the result as plain JSON values, sections nested."""
    kept: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if nested := result_settings(value):
                kept[name] = nested
        elif isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("kind") == "result":
            kept[name] = dumped[name]
    return kept


def differing_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe each setting that differs, as `name: theirs here, ours asked for`."""
    differences: list[str] = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            differences += differing_settings(mine, other, f"{prefix}{name}.")
        elif mine != other:
            differences.append(f"{prefix}{name}: {other!r} there, {mine!r} asked for")
    return differences


def _read_config(path: Path | str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is no YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(
            f"the settings file {path} must hold sections (name: values), found {type(loaded).__name__}"
        )
    # A section whose lines are all comments is there, and empty.
    return {str(name): {} if value is None else value for name, value in loaded.items()}


def _assign(values: dict[str, Any], assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"--set takes section.key=value, found {assignment!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"the value in --set {assignment!r} is no YAML scalar, list or map: {error}") from error
    node = values
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise SettingsError(f"--set {assignment!r}: {key!r} holds a value, not a section")
        node = child
    node[keys[-1]] = value


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {where}; known here: {', '.join(_siblings(model, problem['loc']))}")
        else:
            lines.append(f"setting {where}: {problem['msg']}, found {problem['input']!r}")
    return "; ".join(lines)


def _siblings(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for step in location[:-1]:
        field = model.model_fields.get(str(step))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return sorted(model.model_fields)
