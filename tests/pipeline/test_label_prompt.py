from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.embeddings import embed_stage, embeddings_folder
from pipeline.label_prompt import load_text_encoder, text_ranking
from pipeline.label_queue import PhotoIndex, QueueError, Queues
from schemas.errors import UsageError
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import embeddings_schema, table_of
from tests.pipeline.roots import Listing, new_root, noise, write_part

ENCODER = "open_clip:ViT-B-16/openai"
VECTORS = {"demo/1/000": (1, 0, 0), "demo/1/001": (0, 1, 0), "demo/1/002": (0.6, 0.8, 0), "demo/9/000": (0, 0, 1)}


class Words:
    """Stands in for an encoder whose weights need a network: each word is an axis."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        axes = ["car", "dashboard", "paper"]
        return np.array([[float(word == text) for word in axes] for text in texts], dtype=np.float32)


class Pictures:
    """An encoder that reads pictures alone."""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path)
    write_part(root, "demo-0", [Listing("1", [noise(n) for n in range(4)])])
    writer = PartWriter(root, embed_stage(ENCODER), "demo-0", token="test", fence=lambda: None)
    rows = [{"key": key, "embedding": np.array(vector, np.float16)} for key, vector in VECTORS.items()]
    writer.write_table(embeddings_folder(ENCODER), table_of(rows, embeddings_schema(3)))
    writer.commit(counts={}, settings={}, code_version="test")
    return root


def test_photos_most_like_the_text_come_first_and_those_not_embedded_not_at_all(root: Root) -> None:
    index = PhotoIndex(root)
    queues = Queues(root, index, lambda _key: (), "seed", text_ranking(root, index, ENCODER, Words))
    taken = queues.take(9, labeller="ann", sampling="prompt", prompt="dashboard", held=())
    assert [index.key(place) for place in taken] == ["demo/1/001", "demo/1/002", "demo/1/000"]


def test_an_encoder_that_reads_no_text_says_which_one_does(root: Root) -> None:
    rank = text_ranking(root, PhotoIndex(root), ENCODER, Pictures)
    with pytest.raises(QueueError, match=r"reads no text.*open_clip"):
        rank("dashboard")


def test_without_embeddings_the_encoder_is_not_even_loaded(root: Root) -> None:
    def load() -> object:
        raise AssertionError

    with pytest.raises(UsageError, match=r"pipeline/embed\.py"):
        text_ranking(root, PhotoIndex(root), "efficientnet_lite0", load)("dashboard")


def test_an_encoder_that_cannot_be_loaded_says_why() -> None:
    # HF_HUB_OFFLINE is set for all tests.
    with pytest.raises(QueueError, match=r"needs the encoder: .*not on this machine.*--set embed\.weights"):
        load_text_encoder("open_clip:ViT-B-16/openai", None)
