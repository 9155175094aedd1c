"""Print Arrow rows for people (`table`), programs (`json`, one array) and spreadsheets (`csv`), in pieces of text."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

FORMATS = ("table", "json", "csv")
# A double keeps every decimal number of up to this many digits.
_EXACT_DIGITS = 15


def render(batches: Iterable[pa.RecordBatch], form: str, *, max_rows: int) -> Iterator[str]:
    """Render rows in one of `FORMATS`; the first batch may be empty and gives the columns.

    A table shows at most `max_rows` rows, whole, and says how many there are; the other forms give all.
    """
    writers: dict[str, Callable[[Iterable[pa.RecordBatch]], Iterator[str]]] = {
        "table": lambda rows: _table(rows, max_rows),
        "json": _json,
        "csv": _csv,
    }
    return writers[form](batches)


def _json(batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """One array on one line, so that it is the last line of stdout too."""
    separator = "["
    for batch in batches:
        names = batch.schema.names
        for row in _rows(batch):
            yield separator + json.dumps(
                {name: _plain(value) for name, value in zip(names, row, strict=True)}, allow_nan=False
            )
            separator = ", "
    yield "[]\n" if separator == "[" else "]\n"


def _csv(batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """Null is an empty field."""
    named = False
    for batch in batches:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not named:
            writer.writerow(batch.schema.names)
            named = True
        writer.writerows([_csv_field(value) for value in row] for row in _rows(batch))
        yield text.getvalue()


def _table(batches: Iterable[pa.RecordBatch], max_rows: int) -> Iterator[str]:
    names: list[str] = []
    numeric: list[bool] = []
    shown: list[list[str]] = []
    total = 0
    for batch in batches:
        names = batch.schema.names
        numeric = [_is_number(field.type) for field in batch.schema]
        total += batch.num_rows
        shown += [[_text(value) for value in row] for row in _rows(batch.slice(0, max(0, max_rows - len(shown))))]
    widths = [max([len(name), *(len(row[i]) for row in shown)]) for i, name in enumerate(names)]
    yield _line(names, widths, numeric)
    yield "  ".join("-" * width for width in widths) + "\n"
    for row in shown:
        yield _line(row, widths, numeric)
    if total > len(shown):
        yield f"({len(shown):,} of {total:,} rows; --rows N shows more, --format csv or json gives all)\n"
    else:
        yield f"({total:,} {'row' if total == 1 else 'rows'})\n"


def _line(cells: list[str], widths: list[int], numeric: list[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip() + "\n"


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Yield rows as tuples; two columns may share a name."""
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: exact, or else as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
    return str(value)


def _number(value: Decimal) -> int | float | str:
    if value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    return float(value) if len(value.as_tuple().digits) <= _EXACT_DIGITS else str(value)


def _csv_field(value: Any) -> Any:
    plain = value if isinstance(value, Decimal) else _plain(value)
    return json.dumps(plain) if isinstance(plain, bool | dict | list) else plain


def _text(value: Any) -> str:
    """Return a value as one line of a terminal, whole."""
    if value is None:
        return ""
    if isinstance(value, Decimal | timedelta):
        return str(value)
    plain = _plain(value)
    text = plain if isinstance(plain, str) else json.dumps(plain)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
