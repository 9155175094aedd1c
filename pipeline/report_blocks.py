"""What a report is made of, and the page it becomes: sections of text, facts, tables, charts and galleries.

All text comes from listings and labellers, whom nobody has checked: the template escapes every word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Form = Literal["text", "count", "percent", "usd", "points", "seconds", "bytes"]
MISSING = "\u2013"
_TEMPLATES = Path(__file__).with_name("report_page")
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True, slots=True)
class Absent:
    """What the root does not hold yet, and the command that makes it."""

    kind: ClassVar[str] = "absent"
    text: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure to read at a glance."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Figures in a row."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and how its values are written."""

    title: str
    form: Form = "text"


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table with a caption."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart at one width, as the address of an inline image."""

    uri: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: for phones, for wider pages where that makes a difference, and as the PNG that lies beside the page."""

    kind: ClassVar[str] = "chart"
    name: str
    alt: str
    narrow: Drawing
    wide: Drawing | None
    png: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo shown small: which, what to say of it, and a mark such as its reason to be dropped."""

    key: str
    part: str
    caption: str
    mark: str = ""
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Photos that are looked at together."""

    title: str
    photos: Sequence[Photo]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Rows of photos under a caption."""

    kind: ClassVar[str] = "gallery"
    caption: str
    rows: Sequence[Row]


Block = Words | Absent | Facts | DataTable | Chart | Gallery


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A heading and what stands under it."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def headings(*told: str) -> list[Column]:
    """Make columns of `title` or `title|form`."""
    return [Column(title, cast(Form, form or "text")) for title, _, form in (one.partition("|") for one in told)]


def charts_of(sections: Sequence[ReportSection]) -> list[Chart]:
    """List the charts in order."""
    return [block for section in sections for block in section.blocks if isinstance(block, Chart)]


def photos_of(sections: Sequence[ReportSection]) -> list[Photo]:
    """List the photos of all galleries."""
    galleries = (block for section in sections for block in section.blocks if isinstance(block, Gallery))
    return [photo for gallery in galleries for row in gallery.rows for photo in row.photos]


def page(
    *, title: str, subtitle: str, facts: Facts, sections: Sequence[ReportSection], thumbnails: Mapping[str, Drawing]
) -> str:
    """Render the page; `thumbnails` has an inline image for the key of each photo shown."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["written"] = written
    return environment.get_template("report.html").render(
        title=title, subtitle=subtitle, facts=facts, sections=sections, thumbnails=thumbnails
    )


def written(value: Any, form: Form = "text") -> str:
    """Write a value for people; what is missing is a dash."""
    if value is None:
        return MISSING
    match form:
        case "count":
            return f"{int(value):,}"
        case "percent":
            return percent(float(value))
        case "usd":
            return f"${float(value):,.0f}"
        case "points":
            return f"{float(value):.1f}"
        case "seconds":
            return seconds(float(value))
        case "bytes":
            return size(int(value))
    text = str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def percent(value: float) -> str:
    """Write a percentage (0 to 100) with as many digits as tell it from none and all."""
    if value in (0.0, 100.0):
        return f"{value:.0f} %"
    digits = 1 if 0.95 <= value <= 99.0 else 2
    shown = f"{value:.{digits}f}"
    if float(shown) == 0.0:
        return "< 0.01 %"
    return "> 99.99 %" if float(shown) == 100.0 else f"{shown} %"


def share(part: float, whole: float) -> float | None:
    """Return a percentage, None of nothing."""
    return 100 * part / whole if whole else None


def seconds(value: float) -> str:
    """Write a time span."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(num_bytes: float) -> str:
    """Write a number of bytes."""
    for unit in _BYTE_UNITS:
        if num_bytes < 1000 or unit == _BYTE_UNITS[-1]:
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
