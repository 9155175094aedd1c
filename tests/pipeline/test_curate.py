"""The stages in order on a small root, with a tiny encoder of drawn weights on a real local Ray."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.curate import CurateSettings, chosen_stages, curate, main
from pipeline.embed import EmbedSettings
from pipeline.runner import RaySettings, connected
from pipeline.verify import main as verify
from schemas.errors import ReconcileError, RunError, UsageError
from schemas.manifest import latest_version
from schemas.receipts import read_receipts
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

SETTINGS = CurateSettings(
    embed=EmbedSettings(encoder="timm:test_efficientnet", weights="random", device="cpu"), ray=RaySettings(part_tries=1)
)
COLUMNS = {"model": "V60", "year": 2019, "price_usd": 21_500}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(SETTINGS.ray):
        yield


def fill(folder: Path, *, per_part: int = 5) -> Root:
    """Twenty listings of two photos; two listings show one picture, and one has no target."""
    root = new_root(folder)
    rows = [
        Listing(str(n), [noise(n), noise(1 if n == 2 else 100 + n)], columns={} if n == 9 else COLUMNS)
        for n in range(20)
    ]
    for start in range(0, len(rows), per_part):
        write_part(root, f"demo-{start}", rows[start : start + per_part])
    return root


def digest(root: Root, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert verify(["--root", root.text, "--digest"]) == 0
    return str(json.loads(capsys.readouterr().out.splitlines()[-1])["digest"])


@slow
@pytest.mark.usefixtures("cluster")
def test_a_root_becomes_a_data_set_whose_counts_add_up(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    answer = curate(root, SETTINGS, dataset="cars")
    reasons = ("exact_dropped", "near_dropped", "copy_dropped", "stock_dropped", "junk_dropped", "no_target_dropped")
    assert {name: answer[name] for name in ("photos", "unreadable", *reasons, "kept")} == {
        **{"photos": 40, "unreadable": 0, "exact_dropped": 1, "near_dropped": 0, "copy_dropped": 0},
        **{"stock_dropped": 0, "junk_dropped": 0, "no_target_dropped": 2, "kept": 37},
    }
    assert answer["train"] + answer["val"] + answer["test"] == 37
    assert (answer["dataset"], answer["version"]) == ("cars", latest_version(root, "cars"))
    assert list(answer["seconds_by_stage"]) == ["dedup", "embed", "copies", "score", "publish"]


@slow
@pytest.mark.usefixtures("cluster")
def test_a_second_run_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    first = curate(root, SETTINGS, dataset="cars")
    stages = ("dedup", "embed/timm-test_efficientnet", "copies", "duplicates", "score", "publish")
    before = [list(read_receipts(root, stage)) for stage in stages]
    second = curate(root, SETTINGS, dataset="cars")
    assert [list(read_receipts(root, stage)) for stage in stages] == before
    assert all(before)
    timed = {"seconds", "seconds_by_stage", "unchanged"}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


@slow
@pytest.mark.usefixtures("cluster")
def test_the_result_depends_neither_on_parts_nor_on_running_by_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, pieces = fill(tmp_path / "a"), fill(tmp_path / "b", per_part=3)
    curate(whole, SETTINGS, dataset="cars")
    for stage in ("dedup", "embed", "copies", "score", "publish"):
        curate(pieces, SETTINGS, stages=(stage,), dataset="cars")
    assert digest(whole, capsys) == digest(pieces, capsys)


@slow
@pytest.mark.usefixtures("cluster")
def test_new_listings_move_no_group_of_the_version_before(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    curate(root, SETTINGS, dataset="cars")
    first = latest_version(root, "cars")
    write_part(root, "demo-20", [Listing(str(n), [noise(n)], columns=COLUMNS) for n in range(20, 30)])
    answer = curate(root, SETTINGS, dataset="cars")
    assert (answer["photos"], answer["kept"], answer["parent"]) == (50, 47, f"cars@{first}")
    assert (answer["groups_moved"], answer["groups_merged"]) == (0, 0)


@slow
@pytest.mark.usefixtures("cluster")
def test_a_stage_that_fails_ends_the_run_and_what_came_before_stays(tmp_path: Path) -> None:
    root = fill(tmp_path / "a")
    (Path(root.text) / "shards" / "demo-5.lmdb").unlink()
    with pytest.raises(RunError, match=r"embed: 1 parts failed.*demo-5"):
        curate(root, SETTINGS, dataset="cars")
    assert [receipt.part for receipt in read_receipts(root, "dedup")] == ["all"]
    assert len(list(read_receipts(root, "embed/timm-test_efficientnet"))) == 3


def test_stages_up_to_one_unite_what_tiers_there_are(tmp_path: Path) -> None:
    answer = curate(fill(tmp_path / "a"), SETTINGS, stages=chosen_stages(until="dedup"))
    assert (answer["photos"], answer["exact_dropped"], answer["kept"], answer["stages"]) == (40, 1, 39, ["dedup"])


def test_stages_that_saw_other_photos_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.curate.score", lambda *_, **__: {"photos": 39, "seconds": 0.0})
    with pytest.raises(ReconcileError, match=r"different numbers of photos: \{'dedup': 40, 'score': 39\}"):
        curate(fill(tmp_path / "a"), SETTINGS, stages=("dedup", "score"))


def test_a_stage_that_there_is_not_names_those_there_are() -> None:
    assert chosen_stages(only="copies") == ("copies",)
    assert chosen_stages(until="copies") == ("dedup", "embed", "copies")
    with pytest.raises(UsageError, match="--until label: there is no such stage; there are dedup, embed, copies"):
        chosen_stages(until="label")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--dataset NAME; or stop before it: --until score"),
        (["--dataset", "a/b"], "a data set's name is letters"),
        (["--only", "label"], "there is no such stage"),
        (["--dataset", "cars", "--set", "dedup.polcy=keep_one"], "polcy"),
    ],
)
def test_misuse_is_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    root = fill(tmp_path / "a")
    assert main(["--root", root.text, *arguments]) == 2
    assert says in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert not (tmp_path / "a" / "receipts" / "dedup").exists()
