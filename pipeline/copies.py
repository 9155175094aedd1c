"""Find copies that hashes cannot see: crops, and photos with a dealer's banner over them. Then unite all tiers.

Candidates are near neighbours by embedding (faiss); each pair is confirmed by its pixels before it counts: local
features must agree on one scale and shift, and the blocks of the photos so laid over each other must show the same.
Another photo of the same car is no copy. Photos that the hash tiers tie to another are represented by that one.

Reads: photos, edges/hash, embeddings of `embed.encoder`, shard values of candidates. Writes `edges/copy/` (the copy
that would stay - each other copy; `distance` is how many percent of the blocks disagree) and, as its last step, one row
a stored photo in `duplicates/`.

    python pipeline/copies.py --root data
    python pipeline/copies.py --root data --set copies.min_share=0.8 --set copies.neighbours=20
    python pipeline/copies.py --root data --set embed.encoder=open_clip:ViT-B-16/openai
    python pipeline/copies.py --root data --set copies.enabled=false
    ray job submit --working-dir . -- python pipeline/copies.py --root s3://bucket/data

The copy with most source pixels stays, then the one of the smallest key, and each copy hangs on it alone. On a
cluster (`ray.address`, or $RAY_ADDRESS) its machines compare the pairs, else the threads of this one. With
`copies.enabled=false` no pair is looked for, and only the hash tiers count. Running again does nothing where neither
photos, hash tiers, embeddings nor settings have changed. Last line: `photos` (stored) = `compared` + `tied_by_hash` +
`without_embedding` (embed could not read them), and `photos` = `kept` + `exact_dropped` + `near_dropped` +
`copy_dropped` + `stock_dropped`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict

from pipeline.catalog import CatalogSettings
from pipeline.clusters import ClusterSettings, unite
from pipeline.copies_confirm import Block, PairChecker, compare_block
from pipeline.copies_neighbours import candidate_pairs
from pipeline.copies_photos import Look, Photos, look_at, photos_to_compare
from pipeline.copies_stars import Pair, second_looks, stars
from pipeline.embeddings import DEFAULT_ENCODER
from pipeline.global_stage import run_global_stage
from pipeline.runner import RaySettings, connected
from pipeline.runner_calls import names_cluster, run_calls
from schemas.command import Progress, run_script, script_parser
from schemas.receipts import PartWriter
from schemas.settings import Section, load_settings, operational, result, result_settings
from schemas.storage import Root
from schemas.tables import EDGES, table_of

STAGE = "copies"
# Pairs that a machine of a cluster is sent at once, as names: a minute's work for a core.
_PAIRS_A_CALL = 4_096
# Photos in a stretch, 4 GB of shards: where they are fetched, two stretches fit a machine's cache of them.
_PHOTOS_A_STRETCH = 250_000


def main(argv: Sequence[str] | None = None) -> int:
    """Find the copies of a root that its hash tiers do not see."""

    def body(args: Any) -> Mapping[str, Any]:
        settings = load_settings(_Settings, config=args.config, sets=args.sets)
        root, encoder = Root.open(args.root), settings.embed.encoder
        return copies(root, settings.copies, settings.dedup, settings.catalog, encoder=encoder, ray=settings.ray)

    return run_script(script_parser(__doc__ or ""), body, argv=argv)


class CopiesSettings(Section):
    """Which pairs are compared, and from when on two photos are copies."""

    enabled: bool = result(True, "look for copies; without, only the hash tiers count")
    # On 300 real photos each, embedded by efficientnet_lite0, the least cosine of a 5 % crop or a banner with the photo
    # it was made of is 0.82, and of its ten nearest 6.3 photos are above the floor.
    neighbours: int = result(10, "nearest photos by embedding that each photo is compared with", ge=1, le=1_000)
    min_cosine: float = result(0.75, "cosine of embeddings below which two photos are not compared", ge=-1, le=1)
    min_share: float = result(0.7, "share of the blocks that must show the same, once aligned", gt=0, le=1)
    max_scale: float = result(1.5, "how much larger a copy may show things at one size; a 5 % crop: 1.11", ge=1, le=4)
    min_inliers: int = result(8, "matched local features that must agree on the alignment", ge=4)
    cached_photos: int = operational(20_000, "photos whose local features are kept at hand, 30 KB each", ge=1)
    threads: int | None = operational(None, "threads that compare pairs; None is one a core", ge=1)


class _ClusterSettings(ClusterSettings):
    """Which copies stay; how the hash tiers are made is for pipeline/dedup.py to check."""

    model_config = ConfigDict(extra="ignore")


class _EmbedSettings(Section):
    """Which embeddings are read; how they are made is for pipeline/embed.py to check."""

    model_config = ConfigDict(extra="ignore")

    encoder: str = result(DEFAULT_ENCODER, "whose embeddings say what may be a copy")


class _Settings(Section):
    """The sections this script reads."""

    copies: CopiesSettings = CopiesSettings()
    dedup: _ClusterSettings = _ClusterSettings()
    embed: _EmbedSettings = _EmbedSettings()
    catalog: CatalogSettings = CatalogSettings()
    ray: RaySettings = RaySettings()


def copies(
    root: Root,
    settings: CopiesSettings,
    clusters: ClusterSettings,
    limits: CatalogSettings | None = None,
    *,
    encoder: str = DEFAULT_ENCODER,
    ray: RaySettings | None = None,
) -> dict[str, Any]:
    """Write `edges/copy` and unite all tiers in `duplicates`, where not up to date; return the last line.

    Raises:
        UsageError: dedup or embed has not run, or not over all photos as they are now.
        ReconcileError: a photo or an embedding is lost or doubled.
        IntegrityError: a photo's bytes are not there, or edges are no stars.
        LeaseError: another run of this stage is alive on this root.
    """
    started_s = time.monotonic()
    looks: list[Look] = []
    chosen = {"copies": result_settings(settings), "embed": {"encoder": encoder}}

    def look() -> dict[str, str]:
        looks.append(look_at(root, encoder if settings.enabled else None))
        return looks[-1].fingerprints()

    receipt, unchanged = run_global_stage(
        root,
        STAGE,
        ("edges/copy",),
        inputs=look,
        settings=chosen if settings.enabled else {"copies": {"enabled": False}},
        write=lambda writer: _write(root, writer, looks[-1], settings, limits, ray or RaySettings()),
    )
    # Of the photos that the edges are of: what a crawl has committed since is the next run's.
    united = unite(root, clusters, limits, ingest=looks[-1].ingest)
    answer = {**receipt.counts, **united, "unchanged": unchanged and united["unchanged"]}
    return {**answer, "seconds": round(time.monotonic() - started_s, 3)}


def _write(
    root: Root,
    writer: PartWriter,
    look: Look,
    settings: CopiesSettings,
    limits: CatalogSettings | None,
    ray: RaySettings,
) -> dict[str, int]:
    """Write `edges/copy` and return the receipt's counts."""
    if not settings.enabled:
        writer.write_table("edges/copy", EDGES.empty_table())
        return {"edges": 0}
    photos, counts = photos_to_compare(root, look, limits)
    pairs = candidate_pairs(
        photos.keys,
        lambda: photos.embeddings(root, look),
        neighbours=settings.neighbours,
        min_cosine=settings.min_cosine,
    )
    with _comparing(root, photos, settings, ray) as compare:
        shares, num_compared = _confirmed(compare, pairs, photos, settings.min_share)
    edges = _edges(photos, shares)
    writer.write_table("edges/copy", edges)
    return {**counts, "pairs": num_compared, "copy_pairs": len(shares), "edges": edges.num_rows}


# Given pairs of places, returns the share of blocks that agree in each.
_Compare = Callable[[NDArray[np.uint32]], NDArray[np.float32]]


@contextmanager
def _comparing(root: Root, photos: Photos, settings: CopiesSettings, ray: RaySettings) -> Iterator[_Compare]:
    """Compare pairs on the machines of a cluster where one is named, else in threads of this process."""
    max_scale, min_inliers = settings.max_scale, settings.min_inliers
    if not names_cluster(ray):
        with PairChecker(
            root,
            photos,
            max_scale=max_scale,
            min_inliers=min_inliers,
            cached_photos=settings.cached_photos,
            threads=settings.threads,
        ) as checker:
            yield checker.shares
        return

    def block_of(pairs: NDArray[np.uint32]) -> Block:
        places, rows = np.unique(pairs, return_inverse=True)
        named = tuple(photos[int(place)] for place in places)
        return Block(root, named, rows.reshape(-1, 2).astype(np.uint32), max_scale, min_inliers)

    with connected(ray) as num_in_flight:

        def spread(pairs: NDArray[np.uint32]) -> NDArray[np.float32]:
            found = np.zeros(len(pairs), np.float32)
            progress, done = Progress(len(pairs), "pairs"), 0
            blocks = (block_of(pairs[start : start + _PAIRS_A_CALL]) for start in range(0, len(pairs), _PAIRS_A_CALL))
            for number, shares in run_calls(compare_block, blocks, num_in_flight=num_in_flight, settings=ray):
                found[number * _PAIRS_A_CALL : number * _PAIRS_A_CALL + len(shares)] = shares
                done += len(shares)
                progress.show(done)
            progress.close()
            return found

        yield spread


def _confirmed(
    compare: _Compare, pairs: NDArray[np.uint32], photos: Photos, min_share: float
) -> tuple[dict[Pair, float], int]:
    """Compare the candidates, then what a star's centre may equal too, until nothing is left to compare.

    Returns the confirmed pairs with the share of blocks that agree, and how many were compared.
    """
    shares: dict[Pair, float] = {}
    looked_twice: set[Pair] = set()
    wanted, num_compared = _by_stretch(pairs), 0
    while len(wanted):
        found = compare(wanted)
        num_compared += len(wanted)
        kept = found >= min_share
        shares |= dict(zip(map(tuple, wanted[kept].tolist()), found[kept].tolist(), strict=True))
        more = sorted(second_looks(shares, photos.ranks) - looked_twice)
        looked_twice.update(more)
        wanted = np.array(more, np.uint32).reshape(-1, 2)
        wanted = wanted[~_among(wanted, pairs)]
    return shares, num_compared


def _by_stretch(pairs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Order pairs so that long runs of them need the shards of two stretches only."""
    stretches = pairs // _PHOTOS_A_STRETCH
    return pairs[np.lexsort((stretches[:, 1], stretches[:, 0]))] if stretches.any() else pairs


def _among(wanted: NDArray[np.uint32], pairs: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Tell which pairs are among others, which are sorted."""
    first, last = (np.searchsorted(pairs[:, 0], wanted[:, 0], side) for side in ("left", "right"))
    return np.array(
        [second in pairs[start:end, 1] for start, end, second in zip(first, last, wanted[:, 1], strict=True)], np.bool_
    )


def _edges(photos: Photos, shares: Mapping[Pair, float]) -> pa.Table:
    """Return a row a copy, tied to the photo that stays, in order of key."""
    rows = [
        {
            "key_a": photos[centre].key,
            "key_b": photos[copy].key,
            "tier": "copy",
            "distance": round(100 * (1 - shares[min(copy, centre), max(copy, centre)]), 2),
        }
        for copy, centre in stars(shares, photos.ranks).items()
    ]
    return table_of(sorted(rows, key=lambda row: (row["key_a"], row["key_b"])), EDGES)


if __name__ == "__main__":
    raise SystemExit(main())
