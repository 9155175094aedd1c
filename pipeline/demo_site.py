"""Serve a local site of vehicle listings to crawl: drawn cars, or real photos that have a labels.csv.

The first line on stdout is the site's address; it runs until it gets SIGINT or SIGTERM. Beside the listings it serves
/truth.json (what a crawl must find; ?first=ID&last=ID for some ids only), /requests.json (every request since the
start: monotonic time, path, client port, host; ?since=SECONDS) and /reset-tries (forget how often a URL was asked).

    python pipeline/demo_site.py --listings 1000 --port 8099 --write-site demo.yaml
    python pipeline/demo_site.py --photos FOLDER --port 0 --write-site real.yaml
    python pipeline/demo_site.py --faults --shape state --rate 100
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
import yaml
from aiohttp import web

from pipeline.drawn_site.pages import GONE_CSS, GONE_STATUS, SHAPES, site_extract
from pipeline.drawn_site.server import FIRST_ID, SITE_KEY, DemoConfig, build_app
from pipeline.drawn_site.truth import SITE_NAME
from schemas.errors import ForecourtError

__all__ = ["DemoConfig", "build_app", "main", "serve", "site_file"]

HOST = "127.0.0.1"
CONTACT = "mailto:demo@example.org"
# The site is ours; with fewer at a time its slow answers, not its rate, would set the pace.
CONCURRENCY = 64

log = logging.getLogger("demo_site")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    config = DemoConfig(
        seed=args.seed,
        first=args.first,
        listings=args.listings,
        photos=args.photos,
        shape=args.shape,
        faults=args.faults,
        fault_scale=args.fault_scale,
        edition=args.edition,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config, args))
    except ForecourtError as error:
        log.error("demo_site_failed error=%s", error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="serve these real photos instead of drawn ones")
    parser.add_argument(
        "--listings", type=int, default=1000, metavar="N", help="number of ids (1000); 0: any id is gone"
    )
    parser.add_argument("--first", type=int, default=FIRST_ID, metavar="ID", help="first id (660000000)")
    parser.add_argument("--shape", choices=SHAPES, default="json_ld", help="how a page carries its data (json_ld)")
    parser.add_argument(
        "--faults", action="store_true", help="slow, broken, forbidden and hostile answers, as in /truth.json"
    )
    parser.add_argument(
        "--fault-scale", type=float, default=1.0, metavar="X", help="multiply the share of faulty URLs (1.0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another site (0)")
    parser.add_argument(
        "--edition", type=int, default=0, help="1: some listings sold, some cheaper than in edition 0 (0)"
    )
    parser.add_argument("--port", type=int, default=8099, help="0 takes any free one (8099)")
    parser.add_argument("--write-site", type=Path, metavar="FILE", help="write the site file a crawl needs")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second in the site file (200)")
    return parser


async def _run(config: DemoConfig, args: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    app = build_app(config)
    runner, address = await serve(app, port=args.port)
    if args.write_site is not None:
        site = app[SITE_KEY]
        # Without listings the range is for the crawl's --ids to say; a site file must name one.
        last = max(site.first, site.last)
        text = site_file(address, first=site.first, last=last, shape=config.shape, rate=args.rate)
        args.write_site.write_text(text, encoding="utf-8")
    print(address, flush=True)
    await stop.wait()
    await runner.cleanup()
    return 0


async def serve(app: web.Application, *, port: int = 0) -> tuple[web.AppRunner, str]:
    """Start an app on loopback; returns what to clean up, and the address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        raise ForecourtError(
            f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --port, or 0"
        ) from error
    return runner, f"http://{HOST}:{runner.addresses[0][1]}"


def site_file(address: str, *, first: int, last: int, shape: str = "json_ld", rate: float = 200.0) -> str:
    """Write the site file of a running demo site."""
    content = {
        "name": SITE_NAME,
        "base_url": address,
        "listing_url": "/listing/{id}",
        "ids": {"first": first, "last": last},
        "gone": {"status": list(GONE_STATUS), "css": GONE_CSS},
        "extract": site_extract(shape),
        "politeness": {"requests_per_second": rate, "concurrency": CONCURRENCY, "contact": CONTACT},
        "allow_private_addresses": True,
    }
    return yaml.safe_dump(content, sort_keys=False)


if __name__ == "__main__":
    raise SystemExit(main())
