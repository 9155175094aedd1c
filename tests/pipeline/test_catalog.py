import csv
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline import catalog as script
from pipeline.catalog import Catalog, CatalogSettings, query
from pipeline.dedup import DedupSettings, dedup
from pipeline.funnel import funnel
from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from pipeline.verify import verify
from schemas.errors import ReconcileError, RootError, RunError, UsageError
from schemas.manifest import read_manifest
from schemas.storage import Root
from schemas.tables import DUPLICATES, PHOTOS
from tests.pipeline.roots import Listing, Missed, new_root, noise, write_part


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "it's a root")
    columns = {"price": Decimal("12500.00"), "currency": "USD", "title": "two\nlines", "year": 2019}
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(1)], columns=columns), Missed("2")])
    write_part(
        root, "demo-1", [Listing("3", [noise(2), None], columns={"year": 2020}), Missed("4", "failed", "timeout")]
    )
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = script.main(arguments)
    return code, capsys.readouterr().out


def test_views_join_and_read_committed_parts_only(root: Root) -> None:
    write_part(root, "demo-2", [Listing("9", [noise(3)])])
    root.remove("receipts/crawl/demo-2.json")
    table = query(
        root,
        "SELECT key, make FROM photos JOIN listings USING (site, listing_id) WHERE outcome = ? ORDER BY key",
        ["stored"],
    )
    assert table.to_pydict() == {"key": ["demo/1/000", "demo/1/001", "demo/3/000"], "make": ["Volvo"] * 3}


def test_a_later_generation_replaces_the_earlier_one(root: Root) -> None:
    write_part(root, "demo-1", [Listing("3", [noise(2)], columns={"make": "Saab"})])
    assert query(root, "SELECT make FROM listings WHERE listing_id = '3'")["make"].to_pylist() == ["Saab"]


def test_a_table_with_nothing_committed_is_an_empty_view_with_its_columns(tmp_path: Path) -> None:
    root = new_root(tmp_path / "empty")
    assert query(root, "FROM photos").schema.names == PHOTOS.names
    described = query(root, "DESCRIBE duplicates").to_pylist()
    assert [row["column_name"] for row in described] == DUPLICATES.names
    assert query(root, "SELECT count(*) AS n FROM edges_hash")["n"].to_pylist() == [0]


def test_a_catalog_keeps_the_tables_it_was_opened_with(root: Root) -> None:
    with Catalog(root) as catalog:
        write_part(root, "demo-2", [Listing("9", [noise(3)])])
        assert catalog.query("SELECT count(*) AS n FROM attempts")["n"].to_pylist() == [4]
    assert query(root, "SELECT count(*) AS n FROM attempts")["n"].to_pylist() == [5]


def test_rows_come_in_batches_and_temporary_tables_hold_arrow_rows(root: Root) -> None:
    with Catalog(root, CatalogSettings(memory_gib=0.25, threads=1)) as catalog:
        catalog.load("numbers", catalog.query("SELECT range AS n FROM range(10000)"))
        batches = list(catalog.stream("SELECT n FROM numbers ORDER BY n DESC", rows_per_batch=4096))
    assert sum(batch.num_rows for batch in batches) == 10_000
    assert max(batch.num_rows for batch in batches) <= 4096


def test_what_outgrows_memory_says_which_setting_helps(root: Root, tmp_path: Path) -> None:
    settings = CatalogSettings(memory_gib=0.125, temp_folder=str(tmp_path))
    with Catalog(root, settings) as catalog, pytest.raises(RunError, match=r"catalog\.memory_gib"):
        catalog.query("SELECT list(range) FROM range(50000000)")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("forecourt")] == []


@pytest.mark.parametrize("part", ["demo-0", "demo-1"])
def test_a_damaged_file_is_an_error_of_the_root(root: Root, part: str) -> None:
    Path(root.path(f"photos/{part}.parquet")).write_bytes(b"PAR1 no more")
    with pytest.raises(RootError, match="verify"):
        query(root, "SELECT count(key) FROM photos")


def test_the_funnel_reconciles_with_and_without_dedup(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--root", root.text, "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert {
        "step": "stored",
        "outcome": "undecided",
        "reason": "not_deduplicated",
        "count": 3,
        "percent": 100.0,
    } in rows
    dedup(root, DedupSettings())
    code, out = run(capsys, "--root", root.text, "--format", "json")
    found = {(row["step"], row["outcome"], row["reason"]): row["count"] for row in json.loads(out)}
    assert found == {
        ("ids", "all", None): 4,
        ("ids", "found", None): 2,
        ("ids", "gone", None): 1,
        ("ids", "failed", "timeout"): 1,
        ("photos", "all", None): 4,
        ("photos", "stored", None): 3,
        ("photos", "failed", "http_404"): 1,
        ("stored", "all", None): 3,
        ("stored", "kept", None): 2,
        ("stored", "dropped", "exact_duplicate"): 1,
    }


def test_the_funnel_of_an_empty_root_is_all_zero(tmp_path: Path) -> None:
    rows = funnel(lambda sql: query(new_root(tmp_path / "empty"), sql)).to_pylist()
    assert [(row["step"], row["count"], row["percent"]) for row in rows] == [
        ("ids", 0, None),
        ("photos", 0, None),
        ("stored", 0, None),
    ]


def test_a_funnel_that_does_not_add_up_is_an_error(root: Root) -> None:
    write_part(root, "demo-1", [Listing("3", [noise(2), None], columns={"num_photos": 1})])
    with (
        Catalog(root) as catalog,
        pytest.raises(ReconcileError, match="3 photos named by listings, but 4 rows in photos"),
    ):
        funnel(catalog.query)


def test_csv_and_json_give_every_value_whole(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT title, price, year, vin, fetched_at, price > 1 AS dear FROM listings ORDER BY listing_id"
    _, out = run(capsys, "--root", root.text, "--format", "csv", sql)
    first = next(csv.DictReader(io.StringIO(out)))
    assert first == {
        "title": "two\nlines",
        "price": "12500.00",
        "year": "2019",
        "vin": "",
        "fetched_at": "2026-11-30T00:00:00+00:00",
        "dear": "true",
    }
    _, out = run(capsys, "--root", root.text, "--format", "json", sql)
    assert json.loads(out)[0] == {
        "title": "two\nlines",
        "price": 12500.0,
        "year": 2019,
        "vin": None,
        "fetched_at": "2026-11-30T00:00:00+00:00",
        "dear": True,
    }
    _, out = run(
        capsys,
        "--root",
        root.text,
        "--format",
        "json",
        "SELECT sum(phash) AS s, [1, NULL] AS l, 'NaN'::DOUBLE AS n FROM photos",
    )
    assert json.loads(out)[0]["l"] == [1, None]
    assert isinstance(json.loads(out)[0]["s"], int)


def test_no_rows_still_show_their_columns(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT key, error FROM photos WHERE false"
    assert run(capsys, "--root", root.text, sql)[1] == "key  error\n---  -----\n(0 rows)\n"
    assert run(capsys, "--root", root.text, "--format", "csv", sql)[1] == "key,error\n"
    assert run(capsys, "--root", root.text, "--format", "json", sql)[1] == "[]\n"


def test_a_table_shows_rows_whole_and_says_how_many_it_left_out(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run(capsys, "--root", root.text, "SELECT title, year FROM listings WHERE listing_id = '1'")
    assert out == "title       year\n----------  ----\ntwo\\nlines  2019\n(1 row)\n"
    _, out = run(
        capsys, "--root", root.text, "--rows", "2", "SELECT range AS n, repeat('x', 300) AS t FROM range(200000)"
    )
    assert "x" * 300 in out
    assert out.endswith("(2 of 200,000 rows; --rows N shows more, --format csv or json gives all)\n")


def test_sql_that_duckdb_refuses_exits_2_with_its_message(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--root", root.text, "SELECT colour FROM listings")
    assert code == 2
    assert "colour" in json.loads(out)["error"]
    code, out = run(capsys, "--root", root.text, "SELECT title::INTEGER FROM listings")
    assert code == 2
    assert "Conversion" in json.loads(out.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Conversion Error: Could not convert string", UsageError),
        ("Invalid Input Error: strptime", UsageError),
        ("IO Error: No such file", RootError),
        ("Out of Memory Error: failed to allocate", RunError),
    ],
)
def test_what_fails_while_rows_stream_is_told_apart_by_duckdbs_words(said: str, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=said), script._reported("/root"):
        raise OSError(said)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
        "CREATE TABLE x AS SELECT 1",
        "ATTACH 'x.db'",
        "SET memory_limit = '100GB'",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_sql_can_only_read(root: Root, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Catalog(root) as catalog, pytest.raises(UsageError, match="one SELECT"):
        list(catalog.select(sql))
    assert not (tmp_path / "out.csv").exists()


def test_sql_may_join_a_file_of_the_users_and_sees_no_python_variable(root: Root, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\ndemo/1/000,junk\n", encoding="ascii")
    with Catalog(root) as catalog:
        rows = list(catalog.select(f"SELECT label FROM photos JOIN read_csv('{labels}') USING (key)"))
        assert [value for batch in rows for value in batch.column(0).to_pylist()] == ["junk"]
        with pytest.raises(UsageError, match="rows"):
            list(catalog.select("FROM rows"))


def test_nothing_is_fetched_from_the_network(root: Root) -> None:
    with Catalog(root) as catalog, pytest.raises(UsageError, match="httpfs"):
        list(catalog.select("FROM read_csv('http://127.0.0.1:9/x.csv')"))


def test_misuse_exits_2_and_a_root_that_is_none_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--root", str(tmp_path), "--format", "xml")[0] == 2
    code, out = run(capsys, "--root", str(tmp_path / "none"))
    assert code == 1
    assert "no data set" in json.loads(out)["error"]


def test_a_wrong_log_level_is_a_last_line_and_no_traceback(
    root: Root, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORECOURT_LOG", "LOUD")
    code, out = run(capsys, "--root", root.text)
    assert (code, "LOUD" in json.loads(out)["error"]) == (2, True)


def test_a_bug_is_a_last_line_too(
    root: Root, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "render", lambda *_, **__: 1 // 0)
    code, out = run(capsys, "--root", root.text)
    assert (code, json.loads(out)["kind"]) == (1, "bug")


def test_a_closed_pipe_is_no_traceback(root: Root) -> None:
    command = [sys.executable, "-m", "pipeline.catalog", "--root", root.text, "--format", "csv", "FROM range(3000000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_data_sets_whose_names_look_alike_and_are_equal_stand_beside_each_other(root: Root) -> None:
    for name in ("cars", "Cars", "c-a", "c_a"):
        publish(root, name, PublishSettings())
    counted = "SELECT dataset, count(*) AS n FROM datasets GROUP BY ALL ORDER BY dataset"
    assert query(root, counted).to_pylist() == [{"dataset": name, "n": 3} for name in ("Cars", "c-a", "c_a", "cars")]
    assert verify(root).ok


def test_a_lost_file_of_a_data_set_stops_only_what_asks_for_it(root: Root) -> None:
    publish(root, "cars", PublishSettings())
    for name in read_manifest(root, "cars").files_of("photos"):
        root.remove(name)
    assert query(root, "SELECT count(*) AS n FROM photos")["n"].to_pylist() == [4]
    assert not dedup(root, DedupSettings(policy="drop_all"))["unchanged"]
    for _ in range(2):
        with pytest.raises(RootError, match="see pipeline/verify"):
            query(root, "FROM datasets")
