"""A filter from labels and embeddings: fitted, its threshold set, with all figures that are told of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.label_rows import JUNK
from pipeline.score_filter import Floats, JunkFilter
from pipeline.score_fit import fit_filter
from pipeline.score_threshold import (
    Labelled,
    as_figures,
    by_junk_type,
    choose_threshold,
    confusion,
    curve,
)


@dataclass(frozen=True)
class Judged:
    """A filter with its threshold, its figures as JSON values, and the table of labels, disagreements first."""

    junk_filter: JunkFilter
    figures: dict[str, Any]
    table: list[dict[str, Any]]


def judged_filter(
    rows: Sequence[Mapping[str, Any]],
    embeddings: NDArray[np.float16],
    *,
    max_fnr: float,
    encoder: str,
    prove: bool = False,
) -> Judged:
    """Fit a filter to labels (`key, label, junk_type, sampled_by`) in order of key and their embeddings (N, D)."""
    labelled = Labelled(
        keys=[row["key"] for row in rows],
        is_junk=np.array([row["label"] == JUNK for row in rows], dtype=np.bool_),
        junk_types=[row["junk_type"] for row in rows],
        sampled_by=[row["sampled_by"] for row in rows],
    )
    fit = fit_filter(embeddings, labelled.is_junk, labelled.listings, encoder=encoder)
    chosen = choose_threshold(labelled, fit.out_of_fold, max_fnr=max_fnr, prove=prove)
    table = _table(labelled, fit.out_of_fold, chosen.threshold)
    figures = {
        **as_figures(chosen),
        "max_fnr": max_fnr,
        "kernel": fit.chosen.kernel,
        "chosen": fit.chosen.name,
        "auc": fit.auc,
        "curve": curve(labelled, fit.out_of_fold),
        "confusion": confusion(labelled, fit.out_of_fold, chosen.threshold),
        "junk_types": by_junk_type(labelled, fit.out_of_fold, chosen.threshold),
        "disagreements": sum(row["disagrees"] == "true" for row in table),
    }
    figures["message"] = _message(figures)
    told = {"max_fnr": max_fnr, "candidate": fit.chosen.name, "labels": len(rows), "junk": int(labelled.is_junk.sum())}
    return Judged(replace(fit.junk_filter, threshold=chosen.threshold, settings=told), figures, table)


def _table(labelled: Labelled, scores: Floats, threshold: float) -> list[dict[str, Any]]:
    """Return the labels with their scores; those on the wrong side of the threshold first, the furthest on top."""
    dropped = scores > threshold
    disagrees = dropped != labelled.is_junk
    rows = [
        {
            "key": key,
            "label": JUNK if labelled.is_junk[i] else "keep",
            "junk_type": labelled.junk_types[i] or "",
            "sampled_by": labelled.sampled_by[i],
            "out_of_fold_score": f"{scores[i]:.6f}",
            "dropped": str(bool(dropped[i])).lower(),
            "disagrees": str(bool(disagrees[i])).lower(),
        }
        for i, key in enumerate(labelled.keys)
    ]
    order = sorted(
        range(len(rows)), key=lambda i: (not disagrees[i], -abs(float(scores[i]) - threshold), rows[i]["key"])
    )
    return [rows[i] for i in order]


def _message(figures: Mapping[str, Any]) -> str:
    """Say in a sentence what is known of the filter."""
    bound, needed = figures["fnr_upper95"], figures["labels_needed"]
    removed = f"{figures['junk_removed']:.1%} of the labelled junk is dropped and {figures['fnr']:.2%} of the keepers"
    if bound is None:
        return f"{removed}; no keeper was sampled at random, so nothing is known of the others: {needed:,} would tell"
    enough = figures["random_keepers"] >= needed
    how = "score.prove=true would prove it" if enough else f"{needed:,} such prove it, with score.prove=true"
    proved = (
        f"{figures['max_fnr']:.2%} is proved" if bound <= figures["max_fnr"] else f"of {figures['max_fnr']:.2%}: {how}"
    )
    listings = f"{figures['random_keepers']:,} keepers of {figures['random_listings']:,} listings sampled at random"
    return f"{removed}; with 95 % confidence at most {bound:.2%} ({listings}; {proved})"
