"""Rank photos by a text such as "a car dashboard", where the encoder of their embeddings reads text too.

Reads: `embeddings/SLUG/`, a part at a time. The first text loads the encoder; what it found is kept per session.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.embeddings import read_embeddings
from pipeline.label_queue import PhotoIndex, QueueError, TextRanking
from schemas.errors import UsageError
from schemas.storage import Root


@runtime_checkable
class TextEncoder(Protocol):
    """An encoder that embeds text into the space of its pictures."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Return (N, D) vectors of L2 norm 1."""


def load_text_encoder(encoder: str, weights: str | None) -> object:
    """Load an encoder by name, whether it reads text or not.

    Raises:
        QueueError: it cannot be loaded here; the message says what is missing.
    """
    # Here, since the page needs it for texts alone.
    from pipeline.embed import load_encoder

    try:
        return load_encoder(encoder, weights=weights)
    except UsageError as error:
        raise QueueError(f"choosing by text needs the encoder: {error}") from error


def text_ranking(root: Root, index: PhotoIndex, encoder: str, load: Callable[[], object]) -> TextRanking:
    """Return a function from a text to the cosine similarity of each photo of the index; NaN where it has none."""
    loaded: list[object] = []

    def rank(text: str) -> NDArray[np.float32]:
        parts = read_embeddings(root, encoder)
        if not loaded:
            loaded.append(load())
        if not isinstance(loaded[0], TextEncoder):
            raise QueueError(
                f"the encoder {encoder} reads no text: embed with one that does, and start this page with it, such as "
                "--set embed.encoder=open_clip:ViT-B-16/openai"
            )
        asked = np.asarray(loaded[0].encode_texts([text])[0], dtype=np.float32)
        likeness = np.full(len(index), np.nan, dtype=np.float32)
        for keys, vectors in parts:
            places = index.places(pa.chunked_array([keys], pa.string()))
            here = places >= 0
            likeness[places[here]] = vectors[here].astype(np.float32) @ asked
        return likeness

    return rank
