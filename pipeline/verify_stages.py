"""What each stage leaves behind: its folders, what its own rows must say, and how a damaged part is made again."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.clusters import REASONS
from pipeline.photo_outcomes import COUNT_OF_REASON
from schemas.cache import release
from schemas.manifest import DATASETS, SPLITS, STAGE, version_folder
from schemas.receipts import COMMIT_ORDER, INGEST_STAGES, Receipt
from schemas.storage import Root
from schemas.tables import DATASET_SCHEMAS, EMBEDDINGS_FOLDER, SCHEMAS, fits_folder

# What is wrong, in which file, how it shows.
Found = tuple[str, str, str]

EMBED = "embed"
# Rows looked at together; 4,096 embeddings of 768 numbers are 12 MB.
_ROWS_AT_ONCE = 4096
# float16 keeps 11 bits of each number: the norm of hundreds of them is within this of 1.
_NORM_TOLERANCE = 0.01
_EXAMPLES = 3
_TIERS = {"dedup": ("exact", "near"), "copies": ("copy",)}
_LABELS = ("keep", "junk", "unsure")
_PART_NAME = re.compile(r"(?P<part>.+?)(\.g\d+)?\.[a-z]+")


@dataclass(frozen=True, slots=True)
class StageRule:
    """One file of a part lies in each of `folders`, any number in each of `beside`; `redo` makes a part again."""

    folders: tuple[str, ...]
    redo: str
    beside: tuple[str, ...] = ()

    @property
    def all_folders(self) -> tuple[str, ...]:
        """Name every folder that has files of the stage."""
        return self.folders + self.beside


_ASIDE = "verify.py --repair puts it aside, then"
_INGEST = StageRule(
    COMMIT_ORDER, "verify.py --repair puts the part aside, then the same crawl or import makes it again"
)
_RULES: Mapping[str, StageRule] = {
    **dict.fromkeys(INGEST_STAGES, _INGEST),
    "dedup": StageRule(("edges/hash",), f"{_ASIDE} pipeline/dedup.py makes it again"),
    "copies": StageRule(("edges/copy",), f"{_ASIDE} pipeline/copies.py makes it again"),
    "duplicates": StageRule(("duplicates",), f"{_ASIDE} pipeline/dedup.py or pipeline/copies.py makes it again"),
    "label": StageRule(
        ("labels",), "no stage can make labels again: verify.py --repair puts the part aside; import an export of it"
    ),
    "score": StageRule(("scores",), f"{_ASIDE} pipeline/score.py makes it again", beside=("filters",)),
}


def stage_rules(root: Root) -> dict[str, StageRule]:
    """Return the rule of each stage that a root may have parts of; each encoder that ran is a stage of its own."""
    names = {PurePosixPath(name).name for name in root.list_folders(EMBEDDINGS_FOLDER)}
    names |= {PurePosixPath(name).name for name in root.list_folders(f"receipts/{EMBED}")}
    embed = {
        f"{EMBED}/{name}": StageRule(
            (f"{EMBEDDINGS_FOLDER}/{name}",), f"{_ASIDE} pipeline/embed.py with that encoder makes it again"
        )
        for name in sorted(names)
    }
    beside = tuple(folder for version in _versions(root) for folder in (version, *root.list_folders(version)))
    publish = StageRule((), f"{_ASIDE} pipeline/publish.py makes it again from the same tables", beside=beside)
    return {**_RULES, **embed, STAGE: publish}


def folder_faults(rule: StageRule, receipt: Receipt) -> str | None:
    """Say what a receipt names too many or too few files of, None where it names what its stage commits."""
    folders = Counter(str(PurePosixPath(name).parent) for name in receipt.files)
    if receipt.stage == STAGE:
        place = version_folder(*receipt.part.split("@")) if receipt.part.count("@") == 1 else None
        inside = [name for name in folders if place is None or not f"{name}/".startswith(f"{place}/")]
        missing = [name for name in (f"{place}/photos", f"{place}/outcomes") if not folders[name]]
        missing += [name for name in (f"{place}/manifest.json",) if name not in receipt.files]
        if inside or missing:
            return f"names files in {sorted(folders)}, expected all of one version, and {missing} among them"
        return None
    own = {name: count for name, count in folders.items() if name not in rule.beside}
    if own != dict.fromkeys(rule.folders, 1):
        return f"names files in {sorted(folders.elements())}, expected one in each of {', '.join(rule.folders)}"
    return None


def part_of(name: str) -> str | None:
    """Return the part that a file's name says it is of; a data set's is NAME@VERSION."""
    steps = PurePosixPath(name).parts
    if steps[0] == DATASETS:
        return f"{steps[1]}@{steps[2]}" if len(steps) > 3 else None
    matched = _PART_NAME.fullmatch(steps[-1])
    return matched["part"] if matched else None


def is_owned(name: str) -> bool:
    """Tell whether a file may only lie here with a receipt; a report beside a data set needs none."""
    steps = PurePosixPath(name).parts
    return steps[0] != DATASETS or steps[3] in {"photos", "outcomes"} or name.endswith(".tmp")


def schema_faults(path: Path, name: str) -> str | None:
    """Say how a Parquet file's schema is not that of its folder; None where it is, or where no schema is fixed.

    Raises:
        OSError, pa.ArrowException: it is no Parquet file.
    """
    folder = str(PurePosixPath(name).parent)
    found = pq.read_schema(path)
    expected = SCHEMAS.get(folder)
    if name.startswith(f"{DATASETS}/"):
        expected = DATASET_SCHEMAS.get(PurePosixPath(folder).name)
    elif folder.startswith(f"{EMBEDDINGS_FOLDER}/"):
        fits = fits_folder(found, folder)
        return None if fits else f"columns {found.names} are not key and embedding, a list of float16 of fixed size"
    if expected is None or found.equals(expected):
        return None
    differing = [f"{a} where {b} is expected" for a, b in zip(found, expected, strict=False) if not a.equals(b)]
    return "; ".join(differing) or f"columns {found.names}, expected {expected.names}"


def counted_rows(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    """Count the rows of a part of a stage after ingest as its receipt does, and say what is wrong within them."""
    kind = receipt.stage.split("/")[0]
    counts, found = _CHECKS[kind](root, receipt)
    return counts, found


def _edges(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    name = next(iter(receipt.files))
    num_edges, tiers, loops = 0, Counter[str](), list[str]()
    for batch in _batches(root, name, ["key_a", "key_b", "tier"]):
        num_edges += batch.num_rows
        tiers += _counted(batch.column("tier"))
        loops += batch.filter(pc.equal(batch["key_a"], batch["key_b"])).column("key_a").to_pylist()
    found: list[Found] = []
    if strangers := sorted(tiers.keys() - set(_TIERS[receipt.stage])):
        found.append(("rows", name, f"edges of tiers {strangers}, expected {', '.join(_TIERS[receipt.stage])}"))
    if loops:
        found.append(("rows", name, f"photos that are copies of themselves: {some(loops)}"))
    by_tier = {f"{tier}_edges": tiers[tier] for tier in ("exact", "near")} if receipt.stage == "dedup" else {}
    return {"edges": num_edges, **by_tier}, found


def _duplicates(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    name = receipt.file("duplicates")
    counts, reasons = Counter({"photos": 0, "kept": 0}), Counter[str]()
    for batch in _batches(root, name, ["kept", "drop_reason"]):
        counts += Counter({"photos": batch.num_rows, "kept": batch.column("kept").true_count})
        reasons += _counted(batch.column("drop_reason"))
    counted = {"photos": counts["photos"], "kept": counts["kept"]}
    counted |= {COUNT_OF_REASON[reason]: reasons[reason] for reason in REASONS}
    found: list[Found] = []
    if strangers := sorted(reasons.keys() - set(REASONS)):
        found.append(("rows", name, f"drop_reason {strangers}, expected one of {', '.join(REASONS)}"))
    if counts["photos"] != counts["kept"] + sum(reasons[reason] for reason in REASONS):
        found.append(("counts", name, f"photos are not kept and dropped by reason: {counted}"))
    return counted, found


def _embeddings(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    name = next(iter(receipt.files))
    keys, odd = Counter[str](), list[str]()
    for batch in _batches(root, name, ["key", "embedding"]):
        keys.update(batch.column("key").to_pylist())
        width = batch.schema.field("embedding").type.list_size
        values = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
        norms = np.linalg.norm(values.reshape(-1, width).astype(np.float32), axis=1)
        # NaN is within no bound.
        odd += batch.filter(pa.array(~(np.abs(norms - 1) <= _NORM_TOLERANCE))).column("key").to_pylist()
    found: list[Found] = []
    if odd:
        found.append(("rows", name, f"embeddings whose L2 norm is not 1: {some(odd)}"))
    if twice := sorted(key for key, count in keys.items() if count > 1):
        found.append(("rows", name, f"photos with more than one row: {some(twice)}"))
    return {"embedded": keys.total()}, found


def _labels(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    name = receipt.file("labels")
    labels = sum((_counted(batch.column("label")) for batch in _batches(root, name, ["label"])), Counter[str]())
    found: list[Found] = []
    if strangers := sorted(labels.keys() - set(_LABELS)):
        found.append(("rows", name, f"labels are not {', '.join(_LABELS)}: {some(strangers)}"))
    return {"labels": labels.total(), **{label: labels[label] for label in _LABELS}}, found


def _scores(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    name = receipt.file("scores")
    num_rows, reasons = 0, Counter[str]()
    for batch in _batches(root, name, ["drop_reason"]):
        num_rows += batch.num_rows
        reasons += _counted(batch.column("drop_reason"))
    found: list[Found] = []
    if strangers := sorted(reasons.keys() - {"junk"}):
        found.append(("rows", name, f"drop_reason {strangers}, expected junk or none"))
    return {"photos": num_rows, "junk_dropped": reasons["junk"]}, found


def _dataset(root: Root, receipt: Receipt) -> tuple[dict[str, int], list[Found]]:
    place = version_folder(*receipt.part.split("@"))
    splits, outcomes = Counter[str](), Counter[str]()
    for name in receipt.files:
        if name.startswith(f"{place}/photos/"):
            splits += sum(
                (_counted(batch.column("split")) for batch in _batches(root, name, ["split"])), Counter[str]()
            )
        elif name.startswith(f"{place}/outcomes/"):
            columns = ["outcome", "drop_reason"]
            for batch in _batches(root, name, columns):
                reason = pc.coalesce(batch.column("drop_reason"), batch.column("outcome"))
                outcomes += _counted(reason)
    kept = {"kept": splits.total(), **{split: splits[split] for split in SPLITS}}
    counted = {count: outcomes[reason] for reason, count in COUNT_OF_REASON.items()}
    found: list[Found] = []
    if strangers := sorted(outcomes.keys() - COUNT_OF_REASON.keys() - {"kept"}):
        found.append(("rows", f"{place}/outcomes", f"unknown outcomes or reasons: {some(strangers)}"))
    if outcomes["kept"] != splits.total():
        why = f"{splits.total():,} photos, and {outcomes['kept']:,} rows of outcomes that are kept"
        found.append(("counts", f"{place}/photos", why))
    return {"photos": outcomes.total(), **counted, **kept}, found


_CHECKS: Mapping[str, Callable[[Root, Receipt], tuple[dict[str, int], list[Found]]]] = {
    "dedup": _edges,
    "copies": _edges,
    "duplicates": _duplicates,
    EMBED: _embeddings,
    "label": _labels,
    "score": _scores,
    STAGE: _dataset,
}


def some(names: list[Any]) -> str:
    """Name a few, and how many more there are."""
    more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
    return ", ".join(map(str, names[:_EXAMPLES])) + more


@contextmanager
def local_file(root: Root, name: str) -> Iterator[Path]:
    """Hold a local copy of a file for the time of the block, so that a large root passes through a small cache."""
    path = root.local_copy(name)
    try:
        yield path
    finally:
        if not root.is_local:
            release(path)


def _batches(root: Root, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with local_file(root, name) as path, pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)


def _counted(column: pa.Array) -> Counter[str]:
    """Count the values of a column that are not null."""
    values = pc.value_counts(column.drop_null()).to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in values})


def _versions(root: Root) -> list[str]:
    return [version for name in root.list_folders(DATASETS) for version in root.list_folders(name)]
