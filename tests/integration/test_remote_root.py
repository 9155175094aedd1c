"""What reads a whole root does so on an object store as on a folder."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from pipeline.catalog import query
from pipeline.dedup import DedupSettings, dedup
from pipeline.digest import digest
from pipeline.verify import repair, verify
from schemas.storage import Root
from tests.pipeline.roots import Listing, Missed, cut_out, new_root, noise, write_part

FIRST: list[Listing | Missed] = [Listing("1", [noise(1), noise(1), cut_out(plate="ABC 123"), None]), Missed("2")]
SECOND: list[Listing | Missed] = [Listing("11", [cut_out(plate="XYZ 987")])]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("FORECOURT_CACHE", str(tmp_path / "cache"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://whole-root?{store}")
    filesystem.create_dir("whole-root")
    yield Root.open(f"s3://whole-root/cars?{store}", create=True)
    server.stop()


@pytest.mark.slow
def test_a_remote_root_is_deduplicated_queried_digested_verified_and_repaired(remote: Root, tmp_path: Path) -> None:
    local = new_root(tmp_path / "local")
    for root in (remote, local):
        write_part(root, "demo-0", FIRST)
        write_part(root, "demo-10", SECOND)
        dedup(root, DedupSettings())
    joined = "photos JOIN listings USING (site, listing_id) JOIN duplicates USING (key)"
    sql = f"SELECT key, make, kept FROM {joined} ORDER BY key"
    assert query(remote, sql).equals(query(local, sql))
    assert query(remote, sql)["kept"].to_pylist() == [True, False, True, True]
    assert digest(remote) == digest(local)
    assert verify(remote).problems == []
    remote.write_bytes("photos/left.parquet", b"x")
    remote.write_bytes("attempts/demo-0.parquet", b"not what was committed")
    assert {problem.what for problem in verify(remote).problems} == {"orphan", "file_size"}
    assert len(repair(remote)) == 6
    assert verify(remote).problems == []
    write_part(remote, "demo-0", FIRST)
    dedup(remote, DedupSettings())
    assert digest(remote) == digest(local)
