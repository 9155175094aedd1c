"""Embeddings as others read them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.embeddings import (
    embed_stage,
    embeddings_fingerprint,
    embeddings_folder,
    embeddings_table,
    encoder_slug,
    read_embeddings,
)
from schemas.errors import UsageError
from schemas.receipts import PartWriter
from schemas.storage import Root
from tests.pipeline.roots import new_root

CLIP = "open_clip:ViT-B-16/openai"


def commit(root: Root, part: str, keys: list[str], vectors: NDArray[np.float16], encoder: str = CLIP) -> None:
    writer = PartWriter(root, embed_stage(encoder), part, token="test", fence=lambda: None)
    writer.write_table(embeddings_folder(encoder), embeddings_table(keys, vectors))
    writer.commit(counts={}, settings={}, code_version="test")


def test_a_slug_is_one_folder_of_plain_characters() -> None:
    assert encoder_slug(CLIP) == "open_clip-ViT-B-16-openai"
    assert encoder_slug("timm:hf-hub:a/b.c_d") == "timm-hf-hub-a-b.c_d"


def test_embeddings_come_by_part_in_order_as_they_were_written(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    vectors = np.eye(3, dtype=np.float16)
    commit(root, "demo-2", ["demo/2/000"], vectors[2:])
    commit(root, "demo-1", ["demo/1/000", "demo/1/001"], vectors[:2])
    read = list(read_embeddings(root, CLIP))
    assert [keys for keys, _ in read] == [["demo/1/000", "demo/1/001"], ["demo/2/000"]]
    assert np.array_equal(np.concatenate([part for _, part in read]), vectors)
    assert {part.dtype for _, part in read} == {np.dtype(np.float16)}


def test_a_part_without_photos_has_no_rows_of_the_encoders_width(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    commit(root, "demo-1", [], np.empty((0, 3), np.float16))
    [(keys, vectors)] = read_embeddings(root, CLIP)
    assert (keys, vectors.shape) == ([], (0, 3))


def test_the_fingerprint_is_of_one_encoder_and_changes_with_its_rows(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    commit(root, "demo-1", ["demo/1/000"], np.eye(3, dtype=np.float16)[:1])
    before = embeddings_fingerprint(root, CLIP)
    commit(root, "demo-1", ["demo/1/000"], np.eye(3, dtype=np.float16)[:1], encoder="efficientnet_lite0")
    assert embeddings_fingerprint(root, CLIP) == before
    commit(root, "demo-1", ["demo/1/000"], np.eye(3, dtype=np.float16)[1:2])
    assert embeddings_fingerprint(root, CLIP) != before


@pytest.mark.parametrize("ask", [read_embeddings, embeddings_fingerprint])
def test_missing_embeddings_are_told_at_once_with_what_there_is_and_the_command(
    ask: Callable[[Root, str], object], tmp_path: Path
) -> None:
    root = new_root(tmp_path)
    commit(root, "demo-1", ["demo/1/000"], np.eye(3, dtype=np.float16)[:1], encoder="efficientnet_lite0")
    with pytest.raises(
        UsageError, match=r"no embeddings of 'open_clip.*those of efficientnet_lite0.*embed\.py"
    ) as told:
        ask(root, CLIP)
    assert f"--set embed.encoder={CLIP}" in str(told.value)
