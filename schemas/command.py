"""The frame of every script: arguments, logs to stderr, one JSON object as the last line of stdout, exit 0, 1 or 2."""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from schemas.errors import ForecourtError, UsageError

EXIT_DONE, EXIT_FAILED, EXIT_MISUSE = 0, 1, 2

log = logging.getLogger("forecourt")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes become the last line too."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see {self.prog} --help")


def script_parser(doc: str, *, root: bool = True, settings: bool = True) -> argparse.ArgumentParser:
    """Make the parser of a script from its docstring, with the options every script has."""
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if root:
        parser.add_argument("--root", required=True, help="folder or object-store URL that holds the data set")
    if settings:
        parser.add_argument("--config", metavar="FILE.yaml", help="settings, one section a module")
        parser.add_argument("--set", dest="sets", action="append", default=[], metavar="a.b=c", help="one setting")
    return parser


def run_script(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], Mapping[str, Any] | None],
    *,
    argv: Sequence[str] | None,
) -> int:
    """Run `body` on the arguments and print what it returns as the last line of stdout.

    The body's mapping may carry `exit_code`, which is not printed, for a run that ended and found fault.
    A body that returns None has printed all that is to be printed, such as rows.
    An error of ours is printed as `{"error": ...}`; a bug keeps its traceback and exits 1, with the line too.
    """
    try:
        configure_logs()
        returned = body(parser.parse_args(argv))
    except KeyboardInterrupt:
        return _print_last({"error": "interrupted; run the same command again to go on"}, EXIT_FAILED)
    except ForecourtError as error:
        return _print_last({"error": str(error), "kind": type(error).__name__}, error.exit_code)
    except Exception as error:
        log.exception("event=bug")
        return _print_last({"error": f"{type(error).__name__}: {error}", "kind": "bug"}, EXIT_FAILED)
    if returned is None:
        return EXIT_DONE
    answer = dict(returned)
    return _print_last(answer, int(answer.pop("exit_code", EXIT_DONE)))


def configure_logs() -> None:
    """Send log lines to stderr, `FORECOURT_LOG` naming the level (INFO where it is not set).

    Raises:
        UsageError: there is no level of that name.
    """
    level = os.environ.get("FORECOURT_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise UsageError(f"FORECOURT_LOG names no level: {level!r}; use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")


def _print_last(answer: Mapping[str, Any], code: int) -> int:
    sys.stdout.write(json.dumps(_plain(answer), default=str, allow_nan=False) + "\n")
    sys.stdout.flush()
    return code


def _plain(value: Any) -> Any:
    """Return a value with null for each number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Show long work on stderr: a bar where it is a terminal, a log line every ten seconds where not."""

    _LINE_EVERY_S = 10.0

    def __init__(self, total: int | None, unit: str) -> None:
        self._unit, self._total = unit, total
        self._done = 0
        self._started_s = self._last_line_s = time.monotonic()
        self._bar = tqdm(total=total, unit=f" {unit}", file=sys.stderr) if sys.stderr.isatty() else None

    def show(self, done: int, **notes: int | str) -> None:
        """Say how much is done now, with a few figures beside it."""
        if self._bar is not None:
            self._bar.set_postfix(notes, refresh=False)
            self._bar.update(done - self._done)
        elif time.monotonic() - self._last_line_s > self._LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            rate = done / (self._last_line_s - self._started_s)
            log.info("event=progress %s=%d of=%s per_s=%.1f %s", self._unit, done, self._total, rate, _pairs(notes))
        self._done = done

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _pairs(notes: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in notes.items())
