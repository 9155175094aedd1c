"""Run the main job on a drawn site, with no network and no service to start: what `make demo` does.

Starts the demo site, crawls it, drops exact duplicates, prints the funnel and a query, checks the root, and writes a
contact sheet. Everything lies under one folder, which a second run replaces.

    python pipeline/demo.py
    python pipeline/demo.py --folder out/demo --listings 300
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

from schemas.command import run_script, script_parser
from schemas.errors import RunError, UsageError

_SCRIPTS = Path(__file__).parent
_MARK = "made-by-forecourt-demo"
_START_S = 60.0
_QUERY = """
    SELECT l.make, l.model, count(DISTINCT l.listing_id) AS listings, count(*) AS photos,
           round(avg(l.price_usd)) AS mean_price_usd, min(l.year) AS from_year, max(l.year) AS to_year
    FROM listings l JOIN photos p USING (site, listing_id) JOIN duplicates d USING (key)
    WHERE d.kept GROUP BY ALL ORDER BY photos DESC, l.make, l.model LIMIT 8"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = script_parser(__doc__, root=False, settings=False)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="what the demo makes (out/demo)")
    parser.add_argument("--listings", type=int, default=1000, metavar="N", help="ids of the site (1000)")
    return run_script(parser, _demo, argv=argv)


def _demo(arguments: argparse.Namespace) -> Mapping[str, Any]:
    started_s = time.monotonic()
    folder: Path = arguments.folder
    _make_empty(folder)
    root, site = str(folder / "data"), str(folder / "site.yaml")
    with _demo_site(site, arguments.listings) as address:
        _say(f"A site with {arguments.listings:,} listing ids is at {address}. Crawl it:")
        crawl = _run("crawl.py", "--root", root, "--site", site, "--set", "crawl.ids_per_part=100")
    _say("Drop exact duplicates and stock photos:")
    dedup = _run("dedup.py", "--root", root)
    _say("What became of every id and photo:")
    _run("catalog.py", "--root", root, shows=True)
    _say("Ask the tables anything, in SQL:")
    _run("catalog.py", "--root", root, _QUERY, shows=True)
    _say("Check every file against its receipt:")
    verify = _run("verify.py", "--root", root, "--digest")
    sheet = _run("contact_sheet.py", "--root", root, "--out", str(folder / "contact_sheet.html"))
    _say(f"Look at the photos: {sheet['contact_sheet']}")
    return {
        "root": root,
        "contact_sheet": sheet["contact_sheet"],
        **{name: crawl[name] for name in ("ids", "found", "photos", "stored")},
        "kept": dedup["kept"],
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
