"""Score every stored photo by how much it looks like junk, and drop what the filter is sure of.

An SVM on the embeddings learns from the labels: linear or RBF, chosen by cross-validation by listing. The threshold is
set so that at most `score.max_fnr` of the keepers are dropped, told with its exact upper 95 % bound, from labels that
were sampled at random, and with how many such keepers would prove it.

Reads: photos (key, outcome), labels, embeddings of `embed.encoder`. Adds: one row a stored photo in `scores/`: `score`
(more is more like junk; null without an embedding or a filter) and `drop_reason` (junk or null). Also `filters/`: the
filter (npz), its figures (JSON), its plots (PNG), and the labels with out-of-fold scores (CSV), where those that
disagree with the filter stand first, for another look.

    python pipeline/score.py --root data
    python pipeline/score.py --root data --set score.max_fnr=0.02 --set score.prove=true
    python pipeline/score.py --root data --set embed.encoder=open_clip:ViT-B-16/openai

With no labels, or too few, it marks nothing and says what is needed. Running again does nothing where neither labels,
embeddings, photos nor settings have changed. Last line: `photos` (stored) = `junk_dropped` + `kept` + `unscored`.
"""

import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ConfigDict

from pipeline import filter_record as record
from pipeline.embeddings import (
    DEFAULT_ENCODER,
    embeddings_fingerprint,
    part_embeddings,
    read_embeddings,
)
from pipeline.fnr_bound import labels_needed, listing_of
from pipeline.global_stage import WHOLE, run_global_stage
from pipeline.label_rows import JUNK, KEEP, settled_labels
from pipeline.label_rows import STAGE as LABEL_STAGE
from pipeline.score_filter import JunkFilter, read_filter, write_filter
from schemas.command import Progress, run_script, script_parser
from schemas.errors import ReconcileError, UsageError
from schemas.receipts import INGEST_STAGES, PartWriter, inputs_fingerprint, read_receipt, read_receipts
from schemas.settings import Section, load_settings, operational, result, result_settings
from schemas.storage import Root, reported
from schemas.tables import SCORES

STAGE = record.STAGE
_FOLDERS = ("scores", record.FOLDER)
MIN_LABELS = 10
MIN_LISTINGS = 5

log = logging.getLogger("forecourt.score")


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the filter and score a root."""

    def body(args: Any) -> Mapping[str, Any]:
        settings = load_settings(_Settings, config=args.config, sets=args.sets)
        return score(Root.open(args.root), settings.score, encoder=settings.embed.encoder)

    return run_script(script_parser(__doc__ or ""), body, argv=argv)


class ScoreSettings(Section):
    """What the filter may lose."""

    max_fnr: float = result(0.01, "share of keepers that may be dropped at most", gt=0, lt=0.5)
    prove: bool = result(False, "a threshold so careful that the bound itself keeps to max_fnr, where labels suffice")
    device: str | None = operational(None, "cpu or cuda; None is cuda where there is one")


class _EmbedSettings(Section):
    """Which embeddings are read; how they are made is for pipeline/embed.py to check."""

    model_config = ConfigDict(extra="ignore")

    encoder: str = result(DEFAULT_ENCODER, "whose embeddings the filter reads")


class _Settings(Section):
    """The sections this script reads."""

    score: ScoreSettings = ScoreSettings()
    embed: _EmbedSettings = _EmbedSettings()


def score(root: Root, settings: ScoreSettings, *, encoder: str = DEFAULT_ENCODER) -> dict[str, Any]:
    """Write `scores/` and `filters/`, unless they are up to date; return the last line.

    Raises:
        UsageError: there are labels and no embeddings.
        ReconcileError: a photo has more than one embedding, or one has no photo.
        LeaseError: another run scores this root.
    """
    started_s = time.monotonic()
    receipt, unchanged = run_global_stage(
        root,
        STAGE,
        _FOLDERS,
        inputs=lambda: _inputs(root, encoder),
        settings={"score": result_settings(settings), "embed": {"encoder": encoder}},
        write=lambda writer: _write(root, writer, settings, encoder),
    )
    told = record.filter_report(root) or {}
    figures = {name: told.get(name) for name in _FIGURES if name in told}
    log.info("event=scored %s", told.get("message"))
    seconds = round(time.monotonic() - started_s, 3)
    return {**figures, **receipt.counts, "unchanged": unchanged, "seconds": seconds}


_FIGURES = (
    *("message", "labels", "keepers", "junk", "threshold", "fnr", "fnr_upper95", "junk_removed"),
    *("labels_needed", "random_keepers", "random_listings", "disagreements", "kernel", "chosen", "auc"),
)


def load_filter(root: Root) -> JunkFilter:
    """Load the committed filter of a root.

    Raises:
        UsageError: there is none, for want of labels or of a run.
    """
    receipt = read_receipt(root, STAGE, WHOLE)
    name = None if receipt is None else record.committed_name(receipt, record.ARRAYS)
    if name is None:
        told = record.filter_report(root) or {"message": "pipeline/score.py has not run"}
        raise UsageError(f"{root.text} has no junk filter: {told['message']}")
    return read_filter(root.local_copy(name))


def _inputs(root: Root, encoder: str) -> dict[str, str]:
    """Fingerprint what is read; without labels no embeddings are needed."""
    found = {"ingest": inputs_fingerprint(root), "labels": inputs_fingerprint(root, (LABEL_STAGE,))}
    if next(read_receipts(root, LABEL_STAGE), None) is not None:
        found["embeddings"] = embeddings_fingerprint(root, encoder)
    return found


def _write(root: Root, writer: PartWriter, settings: ScoreSettings, encoder: str) -> dict[str, int]:
    """Fit where the labels allow it, write everything, and return the receipt's counts."""
    labels = settled_labels(root)
    wanted = {row["key"]: row for row in labels.to_pylist() if row["label"] in (KEEP, JUNK)}
    told: dict[str, Any] = {"encoder": encoder, "max_fnr": settings.max_fnr, "labels": len(wanted)}
    told |= {"unsure": labels.num_rows - len(wanted)}
    junk_filter, figures = None, {"message": _too_few(list(wanted.values()), settings.max_fnr)}
    if figures["message"] is None:
        rows, embeddings = _labelled_embeddings(root, encoder, wanted)
        told |= {"labels": len(rows), "without_embedding": len(wanted) - len(rows)}
        figures["message"] = _too_few(rows, settings.max_fnr)
        if figures["message"] is None:
            junk_filter, figures = _fit(writer, rows, embeddings, settings, encoder)
    _count_labels(told, wanted)
    told |= {"has_filter": junk_filter is not None, "threshold": None, **figures}
    if junk_filter is None:
        told |= {"fnr": None, "fnr_upper95": None, "junk_removed": None}
        told["labels_needed"] = labels_needed(settings.max_fnr)
    text = json.dumps(told, indent=1, sort_keys=True)
    writer.stage_path(record.FOLDER, record.RECORD).write_text(text, encoding="utf-8")
    return _write_scores(root, writer, junk_filter, settings)


def _count_labels(told: dict[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> None:
    counted = Counter(row["label"] for row in wanted.values())
    told |= {"keepers": counted[KEEP], "junk": counted[JUNK]}


def _too_few(rows: Sequence[Mapping[str, Any]], max_fnr: float) -> str | None:
    """Say what labels are missing for a filter, None where there are enough."""
    lacks = []
    for label in (KEEP, JUNK):
        keys = [row["key"] for row in rows if row["label"] == label]
        listings = len({listing_of(key) for key in keys})
        if len(keys) < MIN_LABELS or listings < MIN_LISTINGS:
            lacks.append(f"{label}: {len(keys)} labels of {listings} listings")
    if not lacks:
        return None
    need = f"a filter needs {MIN_LABELS} of each label, of {MIN_LISTINGS} listings each"
    proof = f"{labels_needed(max_fnr):,} keepers sampled at random, each of another listing, prove {max_fnr:.2%}"
    return f"no photo is marked as junk: {need}; there are {', '.join(lacks)}; {proof}; see pipeline/label.py"


def _labelled_embeddings(
    root: Root, encoder: str, wanted: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], NDArray[np.float16]]:
    """Return the labels that have an embedding, in order of key, and these, a part in memory at a time."""
    found: dict[str, NDArray[np.float16]] = {}
    for keys, part in read_embeddings(root, encoder):
        found |= {key: part[i].copy() for i, key in enumerate(keys) if key in wanted}
    ordered = sorted(found)
    vectors = np.stack([found[key] for key in ordered]) if found else np.empty((0, 0), np.float16)
    return [wanted[key] for key in ordered], vectors


def _fit(
    writer: PartWriter,
    rows: Sequence[Mapping[str, Any]],
    embeddings: NDArray[np.float16],
    settings: ScoreSettings,
    encoder: str,
) -> tuple[JunkFilter, dict[str, Any]]:
    """Fit, choose the threshold, write the filter's files, and return the filter with its figures."""
    # Stages that only read a filter, and training, pay for none of these libraries.
    from pipeline.score_judge import judged_filter
    from pipeline.score_plots import plot_confusion, plot_curve

    judged = judged_filter(rows, embeddings, max_fnr=settings.max_fnr, encoder=encoder, prove=settings.prove)
    figures = judged.figures
    write_filter(judged.junk_filter, writer.stage_path(record.FOLDER, record.ARRAYS))
    shares = {name: figures[name] for name in ("fnr", "junk_removed", "max_fnr")}
    plot_curve(figures["curve"], **shares, path=writer.stage_path(record.FOLDER, record.CURVE_PLOT))
    plot_confusion(figures["confusion"], writer.stage_path(record.FOLDER, record.CONFUSION_PLOT))
    path = writer.stage_path(record.FOLDER, record.LABELLED)
    with reported(str(path), writing=True), path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, record.LABELLED_COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(judged.table)
    return judged.junk_filter, figures


def _write_scores(
    root: Root, writer: PartWriter, junk_filter: JunkFilter | None, settings: ScoreSettings
) -> dict[str, int]:
    """Score part by part; every stored photo gets one row.

    Raises:
        ReconcileError: rows in are not rows out.
    """
    counts = Counter({"photos": 0, "junk_dropped": 0, "kept": 0, "unscored": 0})
    path = writer.stage_path("scores")
    num_parts = sum(1 for stage in INGEST_STAGES for _ in read_receipts(root, stage))
    progress = Progress(num_parts, "parts")
    with reported(str(path), writing=True), pq.ParquetWriter(path, SCORES, compression="zstd") as file:
        for done, (part, keys) in enumerate(_stored_keys(root), 1):
            table = _scored_part(root, part, keys, junk_filter, settings)
            file.write_table(table)
            dropped = table.num_rows - table["drop_reason"].null_count
            unscored = table["score"].null_count
            counts.update(photos=len(keys), junk_dropped=dropped, unscored=unscored)
            counts.update(kept=table.num_rows - dropped - unscored)
            progress.show(done, photos=counts["photos"], junk_dropped=counts["junk_dropped"])
    progress.close()
    if counts["photos"] != counts["junk_dropped"] + counts["kept"] + counts["unscored"]:
        raise ReconcileError(f"photos are not photos dropped, kept and unscored: {dict(counts)}; nothing was committed")
    return dict(counts)


def _stored_keys(root: Root) -> Iterator[tuple[str, list[str]]]:
    """Give each part's stored photos, in order of key."""
    for stage in INGEST_STAGES:
        for receipt in read_receipts(root, stage):
            photos = root.read_table(receipt.file("photos"), ["key", "outcome"])
            stored = photos.filter(pc.equal(photos["outcome"], "stored"))
            yield receipt.part, sorted(stored["key"].to_pylist())


def _scored_part(
    root: Root, part: str, keys: list[str], junk_filter: JunkFilter | None, settings: ScoreSettings
) -> pa.Table:
    """Return the rows of one part's stored photos.

    Raises:
        ReconcileError: a photo has two rows, or an embedding belongs to none of them.
    """
    if len(set(keys)) != len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1][:3]
        raise ReconcileError(f"part {part} has more than one row for {twice}; see pipeline/verify.py --repair")
    scores = np.full(len(keys), np.nan, np.float32)
    drops = np.zeros(len(keys), np.bool_)
    if junk_filter is not None:
        embedded, vectors = part_embeddings(root, junk_filter.encoder, part)
        places = {key: i for i, key in enumerate(keys)}
        strangers = [key for key in embedded if key not in places][:3]
        if strangers or len(set(embedded)) != len(embedded):
            raise ReconcileError(
                f"the embeddings of part {part} are not one a stored photo: {strangers or 'keys twice'}; the part has "
                "changed since: run pipeline/embed.py, then this again"
            )
        at = np.array([places[key] for key in embedded], dtype=np.int64)
        scores[at] = junk_filter.scores(vectors, device=settings.device) if len(embedded) else scores[at]
        drops = junk_filter.drops(scores)
    columns = [
        pa.array(keys, pa.string()),
        pa.array(scores, pa.float32(), from_pandas=True),
        pa.array(["junk" if dropped else None for dropped in drops.tolist()], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCORES)


if __name__ == "__main__":
    raise SystemExit(main())
