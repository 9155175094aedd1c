"""Labels from and to CSV: a file with a mistake imports nothing, and one imported twice changes nothing.

Columns: `key` and `label`; where wanted `junk_type`, `sampled_by`, `labeller`, `labelled_at` (ISO 8601). An export has
all of them, a line for each label of each labeller, so that another root can import it whole.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pipeline.label_queue import PhotoIndex
from pipeline.label_rows import IMPORT, JUNK, LABEL_VALUES, SAMPLINGS, LabelRow
from pipeline.label_store import LabelStore
from schemas.errors import UsageError

COLUMNS = ("key", "label", "junk_type", "sampled_by", "labeller", "labelled_at")
_NEEDED = ("key", "label")
_MAX_SHOWN = 10
MAX_NAME_CHARS = 64


def import_labels(path: Path, store: LabelStore, index: PhotoIndex, *, sampled_by: str, labeller: str) -> int:
    """Store the labels of a file that are not there yet; return how many those were.

    `sampled_by` and `labeller` are for lines that do not say. A line without a time is of now, unless it says what this
    labeller's latest label of the photo says already.

    Raises:
        UsageError: the file cannot be read, or lines of it cannot be used, which it names; nothing was imported.
    """
    defaults = {"sampled_by": sampled_by, "labeller": labeller}
    now = store.next_moment()
    rows: dict[tuple[str, str, datetime], LabelRow] = {}
    faults: list[str] = []
    for line, cells in _lines(path):
        row = _row(cells, defaults, now, index)
        if isinstance(row, LabelRow):
            earlier = rows.setdefault((row.key, row.labeller, row.labelled_at), row)
            if earlier == row:
                continue
            row = f"{row.key} by {row.labeller} is in an earlier line too, and says something else there"
        faults.append(f"line {line}: {row}")
    if faults:
        more = f"; and {len(faults) - _MAX_SHOWN:,} more lines" if len(faults) > _MAX_SHOWN else ""
        raise UsageError(
            f"{path}, {'; '.join(faults[:_MAX_SHOWN])}{more}. Nothing was imported; correct these lines, or take them "
            "out, and import the file again"
        )
    fresh = [row for row in rows.values() if not _is_known(row, store, now)]
    store.add_all(fresh)
    return len(fresh)


def export_labels(path: Path, rows: Iterable[LabelRow]) -> None:
    """Write all labels by photo, time and labeller: the whole file or none."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*row[:-1], row.labelled_at.isoformat()] for row in sorted(rows, key=_export_order))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; name a file in a folder that is there") from error


def _export_order(row: LabelRow) -> tuple[str, datetime, str, str]:
    return row.key, row.labelled_at, row.labeller, row.label


def clean_name(text: str) -> str | None:
    """Return a labeller's name without blanks around it; None where it is empty, too long, or not all printable."""
    name = text.strip()
    return name if name.isprintable() and 0 < len(name) <= MAX_NAME_CHARS else None


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield each record with the line it ends in; blank lines are passed by."""
    with _open(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for record in reader:
                if not any(cell.strip() for cell in record):
                    continue
                if len(record) != len(header):
                    raise UsageError(
                        f"{path}, line {reader.line_num}: {len(record)} cells where the header has {len(header)}; "
                        "nothing was imported, correct the line"
                    )
                yield reader.line_num, dict(zip(header, (cell.strip() for cell in record), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path}, line {reader.line_num + 1}: no CSV in UTF-8 ({error}); nothing was imported, save it as one"
            ) from error


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; name a CSV file with columns key,label") from error
    with file:
        yield file


def _check_header(path: Path, header: Sequence[str]) -> None:
    lacking = [name for name in _NEEDED if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    if lacking or unknown or len(set(header)) < len(header):
        raise UsageError(
            f"{path}, line 1: the columns must be key,label, and may be {','.join(COLUMNS[2:])}, each once; found "
            f"{','.join(header) or 'nothing'}; nothing was imported, correct the first line"
        )


def _row(cells: Mapping[str, str], defaults: Mapping[str, str], now: datetime, index: PhotoIndex) -> LabelRow | str:
    """Return the label of a record, or what is wrong with it."""
    key, label, junk_type = cells["key"], cells["label"], cells.get("junk_type") or None
    sampled_by = cells.get("sampled_by") or defaults["sampled_by"]
    labeller = clean_name(cells.get("labeller") or defaults["labeller"])
    if index.find(key) is None:
        return f"no photo {key!r} is stored in this root"
    if label not in LABEL_VALUES:
        return f"label {label!r} is none of {', '.join(LABEL_VALUES)}"
    if junk_type is not None and label != JUNK:
        return f"junk_type {junk_type!r} of a photo that is labelled {label}"
    if sampled_by not in (*SAMPLINGS, IMPORT):
        return f"sampled_by {sampled_by!r} is none of {', '.join((*SAMPLINGS, IMPORT))}"
    if labeller is None:
        return f"labeller {cells.get('labeller')!r} is no name of up to {MAX_NAME_CHARS} characters"
    try:
        labelled_at = datetime.fromisoformat(cells["labelled_at"]) if cells.get("labelled_at") else now
    except ValueError:
        return f"labelled_at {cells['labelled_at']!r} is no time such as 2026-11-30T12:00:00+00:00"
    if labelled_at.tzinfo is None:
        labelled_at = labelled_at.replace(tzinfo=UTC)
    return LabelRow(key, label, junk_type, sampled_by, labeller, labelled_at.astimezone(UTC))


def _is_known(row: LabelRow, store: LabelStore, now: datetime) -> bool:
    mine = [one for one in store.rows_of(row.key) if one.labeller == row.labeller]
    if row.labelled_at != now:
        return row in mine
    latest = max(mine, key=lambda one: one.labelled_at, default=None)
    return latest is not None and latest[:-1] == row[:-1]
