import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from schemas.command import Progress, run_script, script_parser
from schemas.errors import ForecourtError, IntegrityError, PartError, SettingsError

DOC = "Crawl a site.\n\n    python pipeline/crawl.py --root data --share 50%\n"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def run(body: Callable[[argparse.Namespace], Mapping[str, Any]], *argv: str, root: bool = False) -> int:
    return run_script(script_parser(DOC, root=root), body, argv=argv)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def test_the_answer_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def body(args: argparse.Namespace) -> Mapping[str, Any]:
        print("a row")
        return {"ids": 3, "root": args.root}

    assert run(body, "--root", "data", root=True) == 0
    assert last_line(capsys) == {"ids": 3, "root": "data"}


def test_a_number_that_json_has_no_word_for_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"rate": float("nan"), "bins": [1.5, float("inf")], "by": {"part": (-float("inf"), 2)}}
    assert run(lambda _: found) == 0
    assert capsys.readouterr().out == '{"rate": null, "bins": [1.5, null], "by": {"part": [null, 2]}}\n'


def test_a_run_that_found_fault_exits_with_its_code_and_does_not_print_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: {"problems": 2, "exit_code": 1}) == 1
    assert last_line(capsys) == {"problems": 2}


@pytest.mark.parametrize(
    ("error", "code"), [(SettingsError("wrong"), 2), (PartError("failed"), 1), (IntegrityError("torn"), 1)]
)
def test_an_error_of_ours_is_a_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: ForecourtError, code: int
) -> None:
    def body(_: argparse.Namespace) -> Mapping[str, Any]:
        raise error

    assert run(body) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": str(error), "kind": type(error).__name__}
    assert "Traceback" not in captured.err


def test_a_bug_keeps_its_traceback_and_still_ends_with_a_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(lambda _: {"share": 1 // 0}) == 1
    assert last_line(capsys)["kind"] == "bug"
    assert caplog.records[-1].exc_info is not None


def test_an_interrupted_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: argparse.Namespace) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    assert run(body) == 1
    assert "run the same command again" in last_line(capsys)["error"]


@pytest.mark.parametrize("argv", [[], ["--root"], ["--root", "data", "--nonsense"], ["--root", "data", "extra"]])
def test_misuse_is_a_line_and_exit_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert run(lambda _: {}, *argv, root=True) == 2
    assert "--help" in last_line(capsys)["error"]


def test_the_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda _: {}, "--help", root=True)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "    python pipeline/crawl.py --root data --share 50%" in shown
    assert all(option in shown for option in ("--root", "--config", "--set"))


def test_several_settings_are_gathered_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda args: {"sets": args.sets}, "--set", "a.b=1", "--set", "a.b=2") == 0
    assert last_line(capsys) == {"sets": ["a.b=1", "a.b=2"]}


def test_a_log_level_that_does_not_exist_is_misuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORECOURT_LOG", "loud")
    assert run(lambda _: {}) == 2
    assert "FORECOURT_LOG names no level: 'LOUD'" in last_line(capsys)["error"]


def test_progress_is_a_log_line_now_and_then_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(100, "ids")
    progress.show(1)
    assert caplog.messages == []
    monkeypatch.setattr(Progress, "_LINE_EVERY_S", 0.0)
    progress.show(50, failed=2)
    progress.close()
    assert len(caplog.messages) == 1
    assert "event=progress ids=50 of=100" in caplog.messages[0]
    assert "failed=2" in caplog.messages[0]
