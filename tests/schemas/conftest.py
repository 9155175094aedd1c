"""What tests of the contract share: a local object store, and an empty cache for what comes from it."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """Serve S3 on loopback; gives the query that makes a URL lead there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    server.stop()


@pytest.fixture
def new_bucket(object_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    """Make buckets; gives the URL of a folder in a new one. Copies of its files go to a cache of this test alone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("FORECOURT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make() -> str:
        bucket = f"bucket-{next(_NUMBERS)}"
        fs, _ = pafs.FileSystem.from_uri(f"s3://{bucket}?{object_store}")
        fs.create_dir(bucket)
        return f"s3://{bucket}/cars/set?{object_store}"

    return make


_NUMBERS = itertools.count(1)
