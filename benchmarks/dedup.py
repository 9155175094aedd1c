"""Measure near and copy tier on real photos with planted changes, beside what others use, in one run.

    python -m benchmarks.dedup
    python -m benchmarks.dedup --photos cars --per-change 100 --pictures false_pairs

Without `--photos` it takes `cars` in the folder that $FORECOURT_SHARED names, or in `shared/data` beside the checkout.

Makes a root of the photos of a labels.csv (each in its listing) and of planted changes of some of them, each change as
a listing of its own; runs dedup, embed and copies on it as scripts; reads edges/hash and edges/copy.

Recall: the share of planted changes in one cluster with the photo they were made of. Precision: the share of reported
pairs that show one photo; photos of the same car are among the negatives, since all photos of all listings are there.
Two photos are one where they come from one file, where `dup_of` or `crop_of` says so, or, because dealers cut more
thumbnails than the labels know, where the originals agree by the second opinion of benchmarks/dedup_referee.py.

Peers on the same photos: all pairs within 8 bits of `imagehash.phash`, and all pairs with a cosine of at least 0.9 (as
imagededup's CNN does with its default), in its place on the same embeddings; the same judge says which are true. The
last line is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.dedup_photos import CHANGES, NEAR_CHANGES, Shown, plan, read_labels, write_root
from benchmarks.dedup_referee import same_photo
from benchmarks.lab import ROOM, rows, run
from pipeline.embeddings import DEFAULT_ENCODER, read_embeddings
from schemas.storage import Root

MIN_NEAR_RECALL, MIN_COPY_RECALL, MIN_PRECISION = 0.995, 0.98, 0.999
PHASH_BITS = 8
PEER_COSINE = 0.9
Pair = tuple[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the root, run the stages, print the figures; exit 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=_shared() / "cars", help="folder with photos and a labels.csv")
    parser.add_argument("--per-change", type=int, default=300, help="photos that get each change (default: 300)")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each false pair, side by side")
    parser.add_argument("--root", type=Path, help="where to make the root, kept (default: a temporary folder)")
    args = parser.parse_args(argv)
    if not (args.photos / "labels.csv").is_file():
        sys.stdout.write(json.dumps({"skipped": f"no labels.csv in {args.photos}; name a folder by --photos"}) + "\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        answer = _measured(args, args.root or Path(folder))
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if answer["met"] else 1


def _shared() -> Path:
    named = os.environ.get("FORECOURT_SHARED")
    return Path(named) if named else ROOM.parent / "shared" / "data"


def _measured(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    root = Root.open(str(path), create=True)
    labels = read_labels(args.photos)
    shown = plan(labels, args.per_change)
    if not (path / "photos").exists():
        write_root(root, args.photos, shown)
    seconds = {name: run(f"{name}.py", "--root", str(path))["seconds"] for name in ("dedup", "embed", "copies")}
    hash_pairs = _edges(path, "edges_hash")
    copy_pairs = _edges(path, "edges_copy")
    judge = _Judge(args.photos, labels, shown)
    reported = [*hash_pairs, *copy_pairs]
    false = judge.false_pairs(reported)
    by_second_opinion = sum(not judge.knows(*pair) for pair in reported) - len(false)
    recall = _recall(shown, hash_pairs, NEAR_CHANGES) | _recall(
        shown, reported, [change for change in CHANGES if change not in NEAR_CHANGES]
    )
    if args.pictures:
        _draw(args.photos, args.pictures, [(judge.files[a], judge.files[b]) for a, b in false])
    precision = 1 - len(false) / max(len(reported), 1)
    marks = {change: MIN_NEAR_RECALL if change in NEAR_CHANGES else MIN_COPY_RECALL for change in CHANGES}
    return {
        "photos": len(labels),
        "planted": len(shown) - len(labels),
        "recall": recall,
        "hash_pairs": len(hash_pairs),
        "copy_pairs": len(copy_pairs),
        "by_second_opinion": by_second_opinion,
        "precision": round(precision, 5),
        "false_pairs": [[judge.files[a], judge.files[b]] for a, b in false[:20]],
        "peers": _peers(root, path, shown, judge),
        "seconds": seconds,
        "met": precision >= MIN_PRECISION and all(recall[change] >= mark for change, mark in marks.items()),
    }


def _edges(path: Path, view: str) -> list[Pair]:
    return [(row["key_a"], row["key_b"]) for row in rows(path, f"SELECT key_a, key_b FROM {view} ORDER BY ALL")]


def _recall(shown: Sequence[Shown], pairs: Iterable[Pair], changes: Iterable[str]) -> dict[str, float]:
    """Return for each change the share of planted photos in one cluster with the photo they were made of."""
    cluster = _clusters(pairs)
    original = {photo.file: photo.key for photo in shown if photo.change is None}
    found: dict[str, list[bool]] = defaultdict(list)
    for photo in shown:
        if photo.change is not None:
            origin = original[photo.file]
            found[photo.change].append(cluster.get(photo.key, photo.key) == cluster.get(origin, origin))
    return {change: round(float(np.mean(found[change])), 4) for change in changes}


def _clusters(pairs: Iterable[Pair]) -> dict[str, str]:
    """Name the cluster of each key in a pair by its root in a union-find."""
    parent: dict[str, str] = {}

    def top(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, second in pairs:
        parent[top(first)] = top(second)
    return {key: top(key) for key in parent}


class _Judge:
    """Tells whether two photos of the root are one photo; the second opinion is asked once for two files."""

    def __init__(self, folder: Path, labels: Sequence[Mapping[str, str]], shown: Sequence[Shown]) -> None:
        self.files = {photo.key: photo.file for photo in shown}
        self._folder = folder
        labelled = [(row["file"], row[name]) for row in labels for name in ("dup_of", "crop_of") if row.get(name)]
        self._same = _clusters(labelled)
        self._asked: dict[Pair, bool] = {}

    def knows(self, first: str, second: str) -> bool:
        """Tell what files and labels say of two keys."""
        a, b = self.files[first], self.files[second]
        return self._same.get(a, a) == self._same.get(b, b)

    def false_pairs(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return the pairs that show two photos."""
        return [pair for pair in pairs if not self.knows(*pair) and not self._second_opinion(*pair)]

    def _second_opinion(self, first: str, second: str) -> bool:
        a, b = sorted((self.files[first], self.files[second]))
        if (a, b) not in self._asked:
            self._asked[a, b] = same_photo(self._folder / a, self._folder / b)
        return self._asked[a, b]


def _peers(root: Root, path: Path, shown: Sequence[Shown], judge: _Judge) -> dict[str, Any]:
    """Measure hash alone and embedding alone: all pairs they report on the same photos."""
    hashes = {row["key"]: row["phash"] for row in rows(path, "SELECT key, phash FROM photos")}
    keys = sorted(hashes)
    codes = np.array([hashes[key] for key in keys], np.uint64)
    near = [np.nonzero(np.bitwise_count(codes[row + 1 :] ^ codes[row]) <= PHASH_BITS)[0] for row in range(len(keys))]
    by_hash = [(keys[row], keys[row + 1 + other]) for row, others in enumerate(near) for other in others]
    vectors: dict[str, NDArray[np.float16]] = {}
    for part_keys, part in read_embeddings(root, DEFAULT_ENCODER):
        vectors |= dict(zip(part_keys, part, strict=True))
    matrix = np.stack([vectors[key] for key in keys]).astype(np.float32)
    first, second = np.nonzero(np.triu(matrix @ matrix.T >= PEER_COSINE, k=1))
    by_cosine = [(keys[a], keys[b]) for a, b in zip(first, second, strict=True)]
    return {"phash_8_bits": _peer(shown, by_hash, judge), "cosine_0.9": _peer(shown, by_cosine, judge)}


def _peer(shown: Sequence[Shown], pairs: Sequence[Pair], judge: _Judge) -> dict[str, Any]:
    """Measure a peer's pairs; recall by pair, since their clusters would tie everything to everything."""
    reported = {frozenset(pair) for pair in pairs}
    original = {photo.file: photo.key for photo in shown if photo.change is None}
    found: dict[str, list[bool]] = defaultdict(list)
    for photo in shown:
        if photo.change is not None:
            found[photo.change].append(frozenset((photo.key, original[photo.file])) in reported)
    precision = 1 - len(judge.false_pairs(pairs)) / max(len(pairs), 1)
    recall = {change: round(float(np.mean(hits)), 4) for change, hits in found.items()}
    return {"pairs": len(pairs), "precision": round(precision, 5), "recall": recall}


def _draw(folder: Path, pictures: Path, false: Sequence[Pair]) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    for a, b in false:
        halves = [cv2.imread(str(folder / name)) for name in (a, b)]
        sized = [cv2.resize(half, (480, 360)) for half in halves if half is not None]
        cv2.imwrite(str(pictures / f"{Path(a).stem}-{Path(b).stem}.png"), np.hstack(sized))


if __name__ == "__main__":
    raise SystemExit(main())
