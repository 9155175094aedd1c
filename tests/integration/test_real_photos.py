"""The main job on real input: 1,788 real photos of 955 listings through the crawl, checked in plain DuckDB."""

import csv
from pathlib import Path

import duckdb
import pytest

from benchmarks import lab
from schemas.image import decode_stored
from schemas.shards import Shard

pytestmark = pytest.mark.slow

# The listing of a photo without one is the photo's own; a listing takes the first non-empty value of its photos, and
# the price as its site had it, in US dollars where only that is known.
_EXPECTED = """
    WITH labels AS (
        SELECT *, row_number() OVER () AS line, coalesce(listing_id, file) AS listing
        FROM read_csv(?, all_varchar = true, header = true))
    SELECT list(file ORDER BY file) AS files,
           first(make ORDER BY line) FILTER (make IS NOT NULL) AS make,
           first(model ORDER BY line) FILTER (model IS NOT NULL) AS model,
           first(year ORDER BY line) FILTER (year IS NOT NULL)::INT AS year,
           coalesce(first(price_native ORDER BY line) FILTER (price_native IS NOT NULL),
                    first(price_usd ORDER BY line) FILTER (price_usd IS NOT NULL))::DECIMAL(12, 2) AS price
    FROM labels GROUP BY listing ORDER BY files"""
_FOUND = """
    WITH p AS (SELECT *, regexp_extract(url, '([^/-]+)$') AS file FROM read_parquet(?))
    SELECT list(p.file ORDER BY p.file) AS files,
           any_value(l.make) AS make, any_value(l.model) AS model, any_value(l.year)::INT AS year,
           any_value(l.price) AS price
    FROM p JOIN read_parquet(?) l USING (site, listing_id) GROUP BY p.site, p.listing_id ORDER BY files"""


def test_a_crawl_of_real_photos_joins_to_their_labels(shared_data: Path, tmp_path: Path) -> None:
    cars = shared_data / "cars"
    root = tmp_path / "data"
    with (cars / "labels.csv").open() as file:
        num_photos = sum(1 for _ in csv.DictReader(file))
    with lab.demo_site(tmp_path, "--photos", str(cars), "--rate", "900") as site:
        line = lab.run("crawl.py", "--root", str(root), "--site", str(site.file), "--set", "crawl.ids_per_part=200")
    assert line["found"] == line["ids"] == 955
    assert line["photos"] == line["stored"] == num_photos == 1788
    with duckdb.connect() as plain:
        expected = plain.execute(_EXPECTED, [str(cars / "labels.csv")]).fetchall()
        found = plain.execute(_FOUND, [str(root / "photos/*.parquet"), str(root / "listings/*.parquet")]).fetchall()
        keys = plain.execute("SELECT key FROM read_parquet(?)", [str(root / "photos/*.parquet")]).fetchall()
    assert found == expected
    assert len({key for (key,) in keys}) == num_photos
    opened = 0
    for path in sorted((root / "shards").glob("*.lmdb")):
        with Shard(path) as shard:
            for _, jpeg in shard.items():
                assert min(decode_stored(jpeg).shape[:2]) >= 1
                opened += 1
    assert opened == num_photos
    assert lab.run("verify.py", "--root", str(root))["ok"]
    assert lab.run("dedup.py", "--root", str(root))["photos"] == num_photos
