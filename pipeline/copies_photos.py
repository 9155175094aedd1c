"""The photos that the copy tier compares: which take part, where each lies, which of two comes first.

A photo that the hash tiers tie to another is represented by that one. All that is kept of a photo is its key, the
number of its part and its rank, some 40 bytes, so that ten million of them fit memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import Catalog, CatalogSettings, view_of
from pipeline.clusters import hash_edges
from pipeline.copies_confirm import Place
from pipeline.embeddings import embed_stage, embeddings_folder, read_part, require_embeddings
from schemas.errors import ReconcileError, UsageError
from schemas.receipts import INGEST_STAGES, Inputs, Receipt, inputs_of, read_receipts
from schemas.storage import Root


@dataclass(frozen=True, slots=True)
class Look:
    """What was committed at one look: photos, edges of the hash tiers, and the embeddings of one encoder, by part."""

    ingest: Inputs
    hashed: Inputs
    encoder: str
    embedded: Mapping[str, Receipt]

    def fingerprints(self) -> dict[str, str]:
        """Return what a receipt names as inputs."""
        found = {"ingest": self.ingest.fingerprint, "dedup": self.hashed.fingerprint}
        return found | ({"embeddings": inputs_of(self.embedded.values()).fingerprint} if self.embedded else {})


def look_at(root: Root, encoder: str | None) -> Look:
    """Look at the inputs; without an encoder no embeddings are looked for.

    Raises:
        UsageError: dedup or embed has not run, or not over all photos as they are now.
    """
    receipts = [receipt for stage in INGEST_STAGES for receipt in read_receipts(root, stage)]
    ingest = inputs_of(receipts)
    hashed = hash_edges(root, ingest)
    with_photos = [receipt for receipt in receipts if receipt.counts.get("stored", 1)]
    embedded = _embedded(root, encoder, with_photos) if encoder is not None and with_photos else {}
    return Look(ingest, hashed, encoder or "", embedded)


def _embedded(root: Root, encoder: str, receipts: Sequence[Receipt]) -> dict[str, Receipt]:
    """Return the receipt of each part's embeddings; those of parts that are no more are passed by."""
    require_embeddings(root, encoder)
    found = {receipt.part: receipt for receipt in read_receipts(root, embed_stage(encoder))}
    old = [part.part for part in receipts if part.part not in found or not _is_of(found[part.part], part)]
    if old:
        raise UsageError(
            f"embeddings of {encoder!r} are missing for {len(old):,} of {len(receipts):,} parts as they are now "
            f"({', '.join(old[:3])}); make them: python pipeline/embed.py --root {root.text} "
            f"--set embed.encoder={encoder}"
        )
    return {receipt.part: found[receipt.part] for receipt in receipts}


def _is_of(embedded: Receipt, part: Receipt) -> bool:
    """Tell whether embeddings are of the part's photos as they are now."""
    return bool(embedded.inputs) and set(embedded.inputs.values()) <= {entry.sha256 for entry in part.files.values()}


class Photos:
    """Photos in order of key, a place each; `ranks` (N,) says which of two comes first in canonical order."""

    def __init__(
        self, keys: pa.Array, part_codes: NDArray[np.int32], parts: Sequence[str], ranks: NDArray[np.uint32]
    ) -> None:
        self.keys, self.ranks = keys, ranks
        self._codes, self._parts = part_codes, parts
        self._by_part = np.argsort(part_codes, kind="stable")
        self._starts = np.searchsorted(part_codes[self._by_part], np.arange(len(parts) + 1))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Place:
        return Place(self._parts[self._codes[place]], self.keys[place].as_py())

    def embeddings(self, root: Root, look: Look) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield the places and embeddings (N, D) of these photos, part by part.

        Raises:
            ReconcileError: a part's file lacks one of its photos.
        """
        folder = embeddings_folder(look.encoder)
        for code, part in enumerate(self._parts):
            places = self._by_part[self._starts[code] : self._starts[code + 1]]
            keys, vectors = read_part(root, look.embedded[part].file(folder))
            at = pc.index_in(pa.array(keys, pa.large_string()), value_set=self.keys.take(pa.array(places)))
            rows = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
            if len(rows) != len(places):
                raise ReconcileError(f"embeddings of {part} lack {len(places) - len(rows):,} of its photos; {_REDO}")
            yield places[at.drop_null().to_numpy()], vectors[rows]


def photos_to_compare(root: Root, look: Look, limits: CatalogSettings | None) -> tuple[Photos, dict[str, int]]:
    """Return the photos that take part, and the counts: photos = compared + tied_by_hash + without_embedding.

    Raises:
        ReconcileError: a photo or an embedding is lost or doubled.
    """
    files = {**look.ingest.files, **look.hashed.files, **inputs_of(look.embedded.values()).files}
    with Catalog(root, limits, files=files) as catalog:
        view = view_of(embeddings_folder(look.encoder)) if look.embedded else "(SELECT NULL::VARCHAR AS key LIMIT 0)"
        catalog.execute(f"CREATE TEMP VIEW embedded AS SELECT key FROM {view}")
        catalog.execute(_STORED)
        _require_embedding_each(catalog, look.embedded)
        counts = catalog.query(_COUNTS).to_pylist()[0]
        photos = _read(catalog)
    if twice := _doubled(photos.keys):
        raise ReconcileError(f"photos have more than one row: {', '.join(twice)}, ...; see pipeline/verify.py --repair")
    if counts["photos"] != len(photos) + counts["tied_by_hash"] + counts["without_embedding"]:
        raise ReconcileError(
            f"{counts['photos']:,} stored photos are not {len(photos):,} to compare, {counts['tied_by_hash']:,} tied "
            f"by their hashes and {counts['without_embedding']:,} without an embedding; nothing was committed, see "
            "pipeline/verify.py for rows that are lost or doubled"
        )
    return photos, {"photos": counts["photos"], "compared": len(photos), **counts}


_STORED = """
CREATE TEMP TABLE stored AS
SELECT key, part, source_width_px::BIGINT * source_height_px AS num_pixels, embedded.key IS NOT NULL AS has_embedding,
       key IN (SELECT key_b FROM edges_hash) AS is_tied
FROM photos LEFT JOIN embedded USING (key) WHERE outcome = 'stored'
"""
_BY_PART = """
SELECT part, count(*) AS photos, count(*) FILTER (has_embedding) AS embedded FROM stored GROUP BY part ORDER BY part
"""
# What is tied is counted from the edges, what is without an embedding from the photos: a lost or doubled row shows.
_COUNTS = """
SELECT (SELECT count(*) FROM stored) AS photos, (SELECT count(DISTINCT key_b) FROM edges_hash) AS tied_by_hash,
       (SELECT count(*) FROM stored WHERE NOT is_tied AND NOT has_embedding) AS without_embedding
"""
_COMPARED = """
SELECT key, part, row_number() OVER (ORDER BY num_pixels DESC, key) AS rank
FROM stored WHERE has_embedding AND NOT is_tied ORDER BY key
"""


def _require_embedding_each(catalog: Catalog, embedded: Mapping[str, Receipt]) -> None:
    """Stop unless each stored photo has one embedding, but for as many as embed counted as unreadable."""
    for what, sql in (
        ("more than one row", "SELECT key FROM embedded GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 3"),
        ("no stored photo", "SELECT key FROM embedded ANTI JOIN stored USING (key) ORDER BY key LIMIT 3"),
    ):
        if keys := catalog.query(sql)["key"].to_pylist():
            raise ReconcileError(f"embeddings have {what} for {', '.join(keys)}, ...; {_REDO}")
    for row in catalog.query(_BY_PART).to_pylist():
        unreadable = embedded[row["part"]].counts.get("unreadable", 0) if row["part"] in embedded else 0
        if row["photos"] != row["embedded"] + unreadable:
            raise ReconcileError(
                f"{row['photos']:,} photos are stored in part {row['part']}, embeddings has {row['embedded']:,} of "
                f"them and counts {unreadable:,} as unreadable; {_REDO}"
            )


_REDO = "nothing was committed; verify.py --repair puts a damaged part aside, then pipeline/embed.py makes it again"


def _doubled(keys: pa.Array) -> list[str]:
    """Name a few of the sorted keys that are there more than once."""
    twice: list[str] = keys[1:].filter(pc.equal(keys[1:], keys[:-1])).unique()[:3].to_pylist()
    return twice


def _read(catalog: Catalog) -> Photos:
    """Read the photos that take part, in order of key."""
    codes: dict[str, int] = {}
    keys, parts, ranks = [pa.array([], pa.large_string())], [np.empty(0, np.int32)], [np.empty(0, np.uint32)]
    for batch in catalog.stream(_COMPARED):
        keys.append(batch.column("key").cast(pa.large_string()))
        named = batch.column("part").dictionary_encode()
        known = np.array([codes.setdefault(part, len(codes)) for part in named.dictionary.to_pylist()], np.int32)
        parts.append(known[named.indices.to_numpy()])
        ranks.append(batch.column("rank").to_numpy().astype(np.uint32))
    return Photos(pa.concat_arrays(keys), np.concatenate(parts), list(codes), np.concatenate(ranks))
