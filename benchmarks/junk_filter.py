"""Measure the junk filter on labelled real photos: what it loses and removes, whether its bound holds, how fast it is.

    python -m benchmarks.junk_filter --photos ../shared/data/cars
    python -m benchmarks.junk_filter --photos ../shared/data/cars --splits 40 --draws 1000 --refits 100

PHOTOS has a labels.csv with `file, kind, listing_id` (a photo without a listing is one of its own): kind exterior is
keep, junk is junk, others are left out. Half of the listings label, the filter is judged on the other half, over
several halvings. Then listings are drawn with replacement, all their photos labelled, and the threshold chosen again:
`above` counts how often the rate by photo is above the bound that was told. With the scores of one filter, over all
photos, `--draws` times; with the filter fitted anew to each draw, over the listings not drawn, `--refits` times.
The last line is one JSON object.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from benchmarks.lab import ROOM, run
from pipeline.embeddings import DEFAULT_ENCODER, read_embeddings
from pipeline.score_fit import CANDIDATES, fit_candidate, fit_filter
from pipeline.score_judge import judged_filter
from pipeline.score_threshold import Labelled, choose_threshold
from schemas.image import ImageSettings, store
from schemas.receipts import PartWriter
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, photo_key, table_of

MAX_FNR = 0.01
_PHOTOS = ROOM.parent / "shared" / "data" / "cars"


@dataclass(frozen=True)
class Photos:
    """Labelled photos in order of key, with their embeddings (N, D)."""

    labelled: Labelled
    embeddings: NDArray[np.float16]

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "list[dict[str, Any]]":
        """Return labels as the stage reads them."""
        at = np.arange(len(self.labelled.keys))[chosen]
        junk, types = self.labelled.is_junk, self.labelled.junk_types
        return [
            {
                "key": self.labelled.keys[i],
                "label": "junk" if junk[i] else "keep",
                "junk_type": types[i],
                "sampled_by": "random",
            }
            for i in at
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all three parts and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=_PHOTOS, help=f"folder of photos with a labels.csv ({_PHOTOS})")
    parser.add_argument("--embeddings", type=Path, help="npz to keep the embeddings in, made where it is not there")
    parser.add_argument("--splits", type=int, default=20, help="halvings of the listings (default: 20)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of listings (default: 1,000)")
    parser.add_argument("--refits", type=int, default=50, help="draws with the filter fitted anew (default: 50)")
    args = parser.parse_args(argv)
    if not (args.photos / "labels.csv").is_file():
        print(json.dumps({"skipped": f"no labels.csv in {args.photos}"}))
        return 0
    photos = load(args.photos, args.embeddings)
    answer: dict[str, Any] = {"photos": len(photos.labelled.keys), "junk": int(photos.labelled.is_junk.sum())}
    answer |= {"listings": len(set(photos.labelled.listings))}
    answer["halves"] = halves(photos, args.splits)
    answer["bound"] = bound(photos, args.draws)
    answer["bound_refitted"] = bound_refitted(photos, args.refits)
    answer["speed"] = speed(photos)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def halves(photos: Photos, num_splits: int) -> dict[str, Any]:
    """Fit to a random half of the listings, judge on the other; the first split is told apart."""
    lost, removed, told, kernels = [], [], [], []
    for seed in range(num_splits):
        half = _half(photos, seed)
        judged = judged_filter(photos.rows(half), photos.embeddings[half], max_fnr=MAX_FNR, encoder=DEFAULT_ENCODER)
        dropped = judged.junk_filter.drops(judged.junk_filter.scores(photos.embeddings[~half], device="cpu"))
        junk = photos.labelled.is_junk[~half]
        lost.append(float(dropped[~junk].mean()))
        removed.append(float(dropped[junk].mean()))
        told.append(judged.figures["fnr_upper95"])
        kernels.append(judged.figures["chosen"])
    passes = [fnr <= 0.015 and share >= 0.97 for fnr, share in zip(lost, removed, strict=True)]
    return {
        "first": {"fnr": round(lost[0], 4), "junk_removed": round(removed[0], 4), "fnr_upper95": round(told[0], 4)},
        "fnr": _spread(lost),
        "junk_removed": _spread(removed),
        "fnr_upper95": _spread(told),
        "fnr_at_most_1_5_percent": round(float(np.mean([fnr <= 0.015 for fnr in lost])), 3),
        "junk_at_least_97_percent": round(float(np.mean([share >= 0.97 for share in removed])), 3),
        "both": round(float(np.mean(passes)), 3),
        "chosen": {name: kernels.count(name) for name in sorted(set(kernels))},
    }


def bound(photos: Photos, num_draws: int) -> dict[str, Any]:
    """Draw listings with replacement, choose the threshold on the draw; count true rates above the bound."""
    labelled = photos.labelled
    scores = fit_filter(photos.embeddings, labelled.is_junk, labelled.listings, encoder="").out_of_fold
    keeper_scores = scores[~labelled.is_junk]

    def one_draw(rng: np.random.Generator, at: NDArray[np.int64], listings: list[str]) -> tuple[float, float]:
        chosen = choose_threshold(_drawn(labelled, at, listings), scores[at], max_fnr=MAX_FNR)
        return float((keeper_scores > chosen.threshold).mean()), chosen.fnr_upper95 or 1.0

    return {f"{share:g} of the listings": _exceeded(photos, num_draws, share, one_draw) for share in (0.1, 0.5, 1.0)}


def bound_refitted(photos: Photos, num_draws: int) -> dict[str, Any]:
    """Do as `bound` does with the whole fit in each draw; the rate is that of the listings that were not drawn."""
    labelled = photos.labelled

    def one_draw(rng: np.random.Generator, at: NDArray[np.int64], listings: list[str]) -> tuple[float, float]:
        drawn = _drawn(labelled, at, listings)
        names = np.array(listings)
        fit = fit_filter(photos.embeddings[at], drawn.is_junk, names, encoder="")
        chosen = choose_threshold(drawn, fit.out_of_fold, max_fnr=MAX_FNR)
        rest = ~np.isin(np.arange(len(labelled.keys)), at) & ~labelled.is_junk
        final = replace(fit.junk_filter, threshold=chosen.threshold)
        dropped = final.drops(final.scores(photos.embeddings[rest], device="cpu"))
        return float(dropped.mean()), chosen.fnr_upper95 or 1.0

    return _exceeded(photos, num_draws, 0.5, one_draw)


OneDraw = Callable[[np.random.Generator, NDArray[np.int64], list[str]], tuple[float, float]]


def _exceeded(photos: Photos, num_draws: int, share: float, one_draw: OneDraw) -> dict[str, Any]:
    """Draw `share` of as many listings as there are, each a new one however often it is drawn."""
    names, owner = np.unique(photos.labelled.listings, return_inverse=True)
    members = [np.flatnonzero(owner == i) for i in range(len(names))]
    rates, bounds = [], []
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(names), int(share * len(names)))
        at = np.concatenate([members[i] for i in drawn])
        listings = [f"draw/{n}" for n, i in enumerate(drawn) for _ in members[i]]
        rate, upper = one_draw(rng, at, listings)
        rates.append(rate)
        bounds.append(upper)
    above = int(np.sum(np.array(rates) > np.array(bounds)))
    return {"draws": num_draws, "above": above, "rate": _spread(rates), "bound": _spread(bounds)}


def _drawn(labelled: Labelled, at: NDArray[np.int64], listings: list[str]) -> Labelled:
    keys = [f"{listing}/{i}" for i, listing in enumerate(listings)]
    return Labelled(keys, labelled.is_junk[at], [labelled.junk_types[i] for i in at], ["random"] * len(at))


def speed(photos: Photos, num_photos: int = 20_000) -> dict[str, Any]:
    """Score many photos by scikit-learn's decision function and by ours, the same filter, in one run."""
    rng = np.random.default_rng(0)
    many = photos.embeddings[rng.integers(0, len(photos.embeddings), num_photos)]
    answer: dict[str, Any] = {}
    for candidate in (CANDIDATES[0], CANDIDATES[3]):
        ours = fit_candidate(candidate, photos.embeddings.astype(np.float32), photos.labelled.is_junk)
        machine = SVC(kernel=candidate.kernel, C=candidate.c, gamma=ours.gamma or "scale", class_weight="balanced")
        machine.fit((photos.embeddings.astype(np.float32) - ours.mean) / ours.scale, photos.labelled.is_junk)
        started_s = time.perf_counter()
        mine = ours.scores(many, device="cpu")
        ours_s, started_s = time.perf_counter() - started_s, time.perf_counter()
        theirs = machine.decision_function((many.astype(np.float32) - ours.mean) / ours.scale)
        theirs_s = time.perf_counter() - started_s
        answer[candidate.kernel] = {
            "photos_per_s": round(num_photos / ours_s),
            "times_scikit_learn": round(theirs_s / ours_s, 1),
            "largest_difference": float(f"{np.abs(mine - theirs).max():.2g}"),
            "support_vectors": len(machine.support_),
        }
    return answer


def load(folder: Path, kept: Path | None) -> Photos:
    """Embed the labelled photos, or take the embeddings that were kept."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        labels = [row for row in csv.DictReader(file) if row["kind"] in ("exterior", "junk")]
    indices: dict[str, int] = {}
    keyed = {}
    for row in labels:
        listing = row["listing_id"] or f"alone-{Path(row['file']).stem}"
        indices[listing] = indices.get(listing, -1) + 1
        keyed[photo_key("cars", listing, indices[listing])] = row
    if kept is not None and kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            found = dict(zip(arrays["keys"].tolist(), arrays["vectors"], strict=True))
    else:
        found = _embed(folder, keyed)
        if kept is not None:
            np.savez(kept, keys=np.array(list(found)), vectors=np.stack(list(found.values())))
    keys = sorted(key for key in keyed if key in found)
    junk = np.array([keyed[key]["kind"] == "junk" for key in keys])
    types = [keyed[key].get("junk_type") or None for key in keys]
    return Photos(Labelled(keys, junk, types, ["random"] * len(keys)), np.stack([found[key] for key in keys]))


def _embed(folder: Path, keyed: "dict[str, dict[str, str]]") -> "dict[str, NDArray[np.float16]]":
    """Store the photos in a root of one part and embed them by the stage."""
    files = {path.name: path for path in folder.rglob("*.jpg")}
    with tempfile.TemporaryDirectory() as place:
        root = Root.open(place, create=True)
        writer = PartWriter(root, "crawl", "cars-0", token="bench", fence=lambda: None)
        rows = []
        with ShardWriter(writer.stage_path("shards", ".lmdb"), ShardSettings()) as shard:
            for key, row in sorted(keyed.items()):
                photo = store(files[Path(row["file"]).name].read_bytes(), ImageSettings())
                shard.put(key, photo.jpeg)
                site, listing, index = key.split("/")
                identity = {"site": site, "listing_id": listing, "photo_index": int(index), "part": "cars-0"}
                rows.append({**identity, "key": key, "outcome": "stored", **photo.columns()})
            shard.seal()
        writer.write_table("photos", table_of(rows, PHOTOS))
        writer.write_table("listings", LISTINGS.empty_table())
        writer.write_table("attempts", ATTEMPTS.empty_table())
        writer.commit(counts={"photos": len(rows), "stored": len(rows)}, settings={}, code_version="bench")
        run("embed.py", "--root", place)
        parts = list(read_embeddings(root, DEFAULT_ENCODER))
    return {key: vectors[i] for keys, vectors in parts for i, key in enumerate(keys)}


def _half(photos: Photos, seed: int) -> NDArray[np.bool_]:
    names = np.unique(photos.labelled.listings)
    chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    half: NDArray[np.bool_] = np.isin(photos.labelled.listings, chosen)
    return half


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return the mean, the extremes and the middle 90 % of values."""
    if not len(values):
        return {}
    low, high = np.quantile(values, [0.05, 0.95])
    named = {"mean": np.mean(values), "min": np.min(values), "p05": low, "p95": high, "max": np.max(values)}
    return {name: round(float(value), 4) for name, value in named.items()}


if __name__ == "__main__":
    raise SystemExit(main())
