"""The embed stage on a real local Ray, with a tiny architecture and drawn weights."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.embed import EmbedSettings, embed, main
from pipeline.embeddings import embed_stage, embeddings_folder, read_embeddings
from pipeline.runner import RaySettings, connected
from pipeline.verify import main as verify
from schemas.errors import SettingsError, UsageError
from schemas.receipts import PartWriter, Receipt, read_receipt
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

pytestmark = pytest.mark.slow
TINY = EmbedSettings(encoder="timm:test_efficientnet", weights="random", device="cpu")
RAY = RaySettings(part_tries=1)
_KILLED_AFTER_PARTS = 3


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(RAY):
        yield


def fill(folder: Path, *, per_part: int = 4, listings: int = 12) -> Root:
    root = new_root(folder)
    rows = [Listing(str(n), [noise(10 * n + i) for i in range(2)]) for n in range(listings)]
    for start in range(0, listings, per_part):
        write_part(root, f"demo-{start}", rows[start : start + per_part])
    return root


def vectors(root: Root) -> dict[str, bytes]:
    return {
        key: row.tobytes()
        for keys, found in read_embeddings(root, TINY.encoder)
        for key, row in zip(keys, found, strict=True)
    }


def committed(root: Root, part: str) -> Receipt:
    receipt = read_receipt(root, embed_stage(TINY.encoder), part)
    assert receipt is not None
    return receipt


def reseal(root: Root, part: str, photos: dict[str, bytes]) -> None:
    """Give a committed part other bytes, as no crawl would."""
    writer = PartWriter(root, "crawl", part, token="test", fence=lambda: None)
    assert writer.previous is not None
    for table in ("photos", "listings", "attempts"):
        writer.write_table(table, root.read_table(writer.previous.file(table)))
    with ShardWriter(writer.stage_path("shards", ".lmdb"), ShardSettings(min_free_bytes=0)) as shard:
        for key, jpeg in photos.items():
            shard.put(key, jpeg)
        shard.seal()
    writer.commit(counts=writer.previous.counts, settings={}, code_version="test")


def test_every_stored_photo_gets_one_vector_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    answer = embed(root, TINY, RAY)
    assert {name: answer[name] for name in ("photos", "embedded", "unreadable", "parts", "done_now")} == {
        **{"photos": 24, "embedded": 24, "unreadable": 0},
        **{"parts": 3, "done_now": 3},
    }
    found = vectors(root)
    assert sorted(found) == [f"demo/{n}/{i:03}" for n in sorted(map(str, range(12))) for i in range(2)]
    norms = [float(np.linalg.norm(np.frombuffer(row, np.float16).astype(np.float32))) for row in found.values()]
    assert norms == pytest.approx([1.0] * 24, abs=1e-3)
    before = committed(root, "demo-0")
    assert embed(root, TINY, RAY)["done_now"] == 0
    assert committed(root, "demo-0") == before
    assert verify(["--root", root.text]) == 0


def test_vectors_depend_neither_on_parts_nor_on_workers(tmp_path: Path) -> None:
    few, many = fill(tmp_path / "a", per_part=12), fill(tmp_path / "b", per_part=1)
    embed(few, TINY, RAY)
    embed(many, TINY.model_copy(update={"num_workers": 2, "cpus_per_worker": 1, "decode_threads": 3}), RAY)
    assert vectors(few) == vectors(many)


def test_only_new_parts_and_those_crawled_again_are_embedded(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    embed(root, TINY, RAY)
    write_part(root, "demo-90", [Listing("90", [noise(900)])])
    write_part(root, "demo-4", [Listing("4", [noise(901), noise(902), noise(903)])])
    answer = embed(root, TINY, RAY)
    assert (answer["done_now"], answer["photos"], answer["parts"]) == (2, 8 + 3 + 8 + 1, 4)
    root.remove("receipts/crawl/demo-90.json")
    assert embed(root, TINY, RAY)["parts"] == 3
    assert read_receipt(root, embed_stage(TINY.encoder), "demo-90") is None
    assert [name for name in root.list(embeddings_folder(TINY.encoder)) if "demo-90" in name] == []


def test_a_photo_that_does_not_decode_is_counted_and_has_no_row(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", listings=4)
    reseal(root, "demo-0", {f"demo/{n}/{i:03}": b"no photo" for n in range(4) for i in range(2)})
    answer = embed(root, TINY, RAY)
    assert (answer["photos"], answer["embedded"], answer["unreadable"], answer["exit_code"]) == (8, 0, 8, 0)
    assert committed(root, "demo-0").counts == {"photos": 8, "embedded": 0, "unreadable": 8}
    assert vectors(root) == {}


def test_a_photo_that_is_lost_fails_its_part_while_others_finish(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    reseal(root, "demo-4", {})
    answer = embed(root, TINY, RAY)
    assert answer["exit_code"] == 1
    assert (answer["done_now"], answer["parts_failed"]) == (2, 1)
    assert "8 photos are stored by its receipt, 8 by its rows, and its shard holds 0" in answer["error"]


def test_other_settings_stop_and_overwrite_embeds_again(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", listings=4)
    embed(root, TINY, RAY)
    exact = TINY.model_copy(update={"precision": "fp32"})
    with pytest.raises(SettingsError, match=r"embed\.precision: None there, 'fp32' asked for.*--overwrite"):
        embed(root, exact, RAY)
    assert embed(root, exact, RAY, overwrite=True)["done_now"] == 1
    assert committed(root, "demo-0").settings["embed"]["precision"] == "fp32"


def test_weights_that_are_nowhere_end_the_run_as_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "a", listings=4)
    assert main(["--root", root.text, "--set", "embed.encoder=timm:test_vit", "--set", "embed.device=cpu"]) == 2
    assert "--set embed.weights=PATH" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    with pytest.raises(UsageError, match="is no file"):
        embed(root, EmbedSettings(weights="nowhere.pt"), RAY)


def test_killed_at_any_moment_and_run_again_it_is_what_an_undisturbed_run_makes(tmp_path: Path) -> None:
    undisturbed, root = fill(tmp_path / "a", per_part=2), fill(tmp_path / "b", per_part=2)
    embed(undisturbed, TINY, RAY)
    process = start(root)
    receipts = tmp_path / "b" / "receipts" / embed_stage(TINY.encoder)
    deadline_s = time.monotonic() + 90
    while len(list(receipts.glob("*.json"))) < _KILLED_AFTER_PARTS and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end(family)
    (tmp_path / "b" / embeddings_folder(TINY.encoder) / "demo-99.parquet").write_bytes(b"never committed")
    assert embed(root, TINY, RAY)["photos"] == 24
    assert vectors(root) == vectors(undisturbed)
    folder = tmp_path / "b" / embeddings_folder(TINY.encoder)
    assert len(list(folder.iterdir())) == 6


def end(family: Sequence[psutil.Process]) -> None:
    """End what a killed run's Ray leaves: some of it lives on for minutes."""
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def start(root: Root) -> "subprocess.Popen[bytes]":
    sets: list[Any] = [f"embed.{name}={getattr(TINY, name)}" for name in ("encoder", "weights", "device")]
    command = [sys.executable, "-m", "pipeline.embed", "--root", root.text]
    command += [word for one in sets for word in ("--set", one)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
