"""The embeddings of a root as others read them: by part, keys beside vectors.

Reads: `embeddings/SLUG/` of committed parts, where SLUG is the encoder's name with every character that a file name
should not hold as `-`. pipeline/embed.py writes them; this side needs neither torch nor Ray.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import UsageError
from schemas.receipts import inputs_fingerprint, read_receipt, read_receipts
from schemas.storage import Root
from schemas.tables import EMBEDDINGS_FOLDER, embeddings_schema

STAGE = "embed"
# The one that needs no network: its weights come with a package.
DEFAULT_ENCODER = "efficientnet_lite0"
_NOT_IN_SLUG = re.compile(r"[^A-Za-z0-9._-]")


def encoder_slug(encoder: str) -> str:
    """Name an encoder so that it can be a folder: `open_clip:ViT-B-16/openai` is `open_clip-ViT-B-16-openai`."""
    return _NOT_IN_SLUG.sub("-", encoder)


def embed_stage(encoder: str) -> str:
    """Name the stage of an encoder's receipts."""
    return f"{STAGE}/{encoder_slug(encoder)}"


def embeddings_folder(encoder: str) -> str:
    """Name the folder of an encoder's embeddings."""
    return f"{EMBEDDINGS_FOLDER}/{encoder_slug(encoder)}"


def embedded_slugs(root: Root) -> list[str]:
    """Name the encoders that ran on this root, as folders do."""
    folders = root.list_folders(f"receipts/{STAGE}")
    return [PurePosixPath(folder).name for folder in folders if root.list(folder, suffix=".json")]


def read_embeddings(root: Root, encoder: str) -> Iterator[tuple[list[str], NDArray[np.float16]]]:
    """Give each committed part's keys, and their embeddings (N, D) of L2 norm 1, in order of part and of key.

    Raises:
        UsageError: the encoder has embedded nothing here.
    """
    require_embeddings(root, encoder)
    folder = embeddings_folder(encoder)
    return (read_part(root, receipt.file(folder)) for receipt in read_receipts(root, embed_stage(encoder)))


def part_embeddings(root: Root, encoder: str, part: str) -> tuple[list[str], NDArray[np.float16]]:
    """Give one part's keys and embeddings; none where the part is not embedded."""
    if (receipt := read_receipt(root, embed_stage(encoder), part)) is None:
        return [], np.empty((0, 0), np.float16)
    return read_part(root, receipt.file(embeddings_folder(encoder)))


def embeddings_fingerprint(root: Root, encoder: str) -> str:
    """Fingerprint all embeddings of an encoder: it changes when a committed file does.

    Raises:
        UsageError: the encoder has embedded nothing here.
    """
    require_embeddings(root, encoder)
    return inputs_fingerprint(root, (embed_stage(encoder),))


def require_embeddings(root: Root, encoder: str) -> None:
    """Check that an encoder has embedded something here.

    Raises:
        UsageError: saying what there is, and the command that embeds.
    """
    there = embedded_slugs(root)
    if encoder_slug(encoder) not in there:
        found = f"there are those of {', '.join(there)}" if there else "no encoder has embedded anything there"
        raise UsageError(
            f"{root.text} holds no embeddings of {encoder!r} ({found}); make them: "
            f"python pipeline/embed.py --root {root.text} --set embed.encoder={encoder}"
        )


def embeddings_table(keys: Sequence[str], vectors: NDArray[np.float16]) -> pa.Table:
    """Return vectors (N, D) beside their keys as a table that embeddings/ takes."""
    schema = embeddings_schema(vectors.shape[1])
    values = pa.array(vectors.reshape(-1), pa.float16())
    lists = pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
    return pa.Table.from_arrays([pa.array(keys, pa.string()), lists], schema=schema)


def read_part(root: Root, name: str) -> tuple[list[str], NDArray[np.float16]]:
    """Give the keys and embeddings of one file."""
    table: pa.Table = root.read_table(name)
    dim = table.schema.field("embedding").type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks]
    values = np.concatenate([np.empty(0, np.float16), *chunks])
    return table["key"].to_pylist(), values.reshape(-1, dim)
