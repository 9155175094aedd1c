"""Run the main job on a drawn site, with no network and no service to start: what `make demo` does.

Starts the demo site and crawls it, imports labels of 300 photos drawn at random, curates a data set and publishes it,
prints the funnel and two queries, checks the root, writes a report and a contact sheet, and holds what was found
against what the site knows. Everything lies under one folder, which a second run replaces.

    python pipeline/demo.py
    python pipeline/demo.py --folder out/demo --listings 600 --labels 200
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.demo_truth import hold_against, stored_photos, write_labels
from pipeline.tabular import render
from schemas.command import run_script, script_parser
from schemas.errors import RunError, UsageError
from schemas.storage import Root

_SCRIPTS = Path(__file__).parent
_MARK = "made-by-forecourt-demo"
_START_S = 60.0
_DATASET = "demo"
_CARS = """
    SELECT make, model, count(DISTINCT listing_id) AS listings, count(*) AS photos,
           round(avg(price_usd)) AS mean_price_usd, min(year) AS from_year, max(year) AS to_year
    FROM datasets GROUP BY ALL ORDER BY photos DESC, make, model LIMIT 8"""
_WHY = """
    SELECT outcome, reason, count(*) AS photos, min(key) AS for_example
    FROM outcomes GROUP BY ALL ORDER BY photos DESC, reason"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = script_parser(__doc__, root=False, settings=False)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="what the demo makes (out/demo)")
    parser.add_argument("--listings", type=int, default=1500, metavar="N", help="ids of the site (1500)")
    parser.add_argument("--labels", type=int, default=300, metavar="N", help="photos labelled, at random (300)")
    return run_script(parser, _demo, argv=argv)


def _demo(arguments: argparse.Namespace) -> Mapping[str, Any]:
    started_s = time.monotonic()
    folder: Path = arguments.folder
    _make_empty(folder)
    root, site = str(folder / "data"), str(folder / "site.yaml")
    with _demo_site(site, arguments.listings) as address:
        _say(f"A site with {arguments.listings:,} listing ids is at {address}. Crawl it:")
        crawl = _run("crawl.py", "--root", root, "--site", site, "--set", "crawl.ids_per_part=100")
    photos, labels = stored_photos(arguments.listings), folder / "labels.csv"
    count = write_labels(photos, labels, arguments.labels)
    _say(f"Import the labels of {count} photos, drawn at random (or give them yourself: label.py):")
    _run("label.py", "--root", root, "--import", str(labels), "--sampled-by", "random", "--labeller", "demo")
    _say("Find duplicates, embed, fit the junk filter, split by group, publish:")
    curated = _run("curate.py", "--root", root, "--dataset", _DATASET)
    _say("What became of every id and photo:")
    _run("catalog.py", "--root", root, shows=True)
    _say("Ask the tables anything, in SQL:")
    _run("catalog.py", "--root", root, _CARS, shows=True)
    _say("Why is a photo in, or out?")
    _run("catalog.py", "--root", root, _WHY, shows=True)
    _say("Check every file against its receipt:")
    verify = _run("verify.py", "--root", root, "--digest")
    _say("Hold it against what the site knows:")
    held = hold_against(Root.open(root), photos)
    print("".join(render(iter(held.to_batches()), "table", max_rows=len(held))), flush=True)
    report = _run("report.py", "--root", root, "--dataset", _DATASET)
    sheet = _run("contact_sheet.py", "--root", root, "--out", str(folder / "contact_sheet.html"))
    _say(f"Look at the report: {report['report']}")
    return {
        "root": root,
        "report": report["report"],
        "contact_sheet": sheet["contact_sheet"],
        **{name: crawl[name] for name in ("ids", "found")},
        **{name: curated[name] for name in ("photos", "kept", "groups", "train", "val", "test", "dataset", "version")},
        "digest": verify["digest"],
        "seconds": round(time.monotonic() - started_s, 1),
    }


def _make_empty(folder: Path) -> None:
    """Replace what an earlier demo made, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise UsageError(f"{folder} holds something the demo did not make; name another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


@contextmanager
def _demo_site(site_file: str, listings: int) -> Iterator[str]:
    arguments = ["--port", "0", "--listings", str(listings), "--write-site", site_file]
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPTS / "demo_site.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RunError(f"the demo site did not start; it exited with {process.wait(_START_S)}")
        yield address
    finally:
        process.terminate()
        process.wait()


def _run(script: str, *arguments: str, shows: bool = False) -> dict[str, Any]:
    """Run a script as a user would; show its output, and return its last line unless its rows are the output."""
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, str(_SCRIPTS / script), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        raise RunError(f"{script} exited with {done.returncode}; its messages are above")
    answer: dict[str, Any] = {} if shows else json.loads(done.stdout.rstrip().splitlines()[-1])
    return answer


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
