"""Label photos as keep, junk or unsure on a web page of this machine; or import and export labels as CSV.

Reads: photos, listings, duplicates, shards, and where they are there scores and embeddings. Writes: `labels/`.

    python pipeline/label.py --root data
    python pipeline/label.py --root data --port 8100 --labeller ann
    python pipeline/label.py --root data --import labels.csv --sampled-by random
    python pipeline/label.py --root data --export labels.csv

The page's address is the first line on stdout; it runs until it gets SIGINT or SIGTERM. Every click is on disk before
its answer. Keys: K keep, J junk, 1 to 9 junk of a kind, U unsure, Z undo, S skip (nothing is stored). Several people
label at once, each under a name of their own. Photos dropped as duplicates are not shown; photos that were stored since
the start are, once the page is started again. Only labels drawn at random prove how many keepers the filter loses.

CSV: columns `key,label`, and where wanted `junk_type,sampled_by,labeller,labelled_at`. A file with a mistake imports
nothing. Last line of an import or export: `labels` (photos that have one), `keep`, `junk`, `unsure`.
"""

import argparse
import asyncio
import json
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from aiohttp import web
from pydantic import ConfigDict, ValidationError
from yarl import URL

from pipeline.catalog import CatalogSettings
from pipeline.embeddings import DEFAULT_ENCODER
from pipeline.label_csv import MAX_NAME_CHARS, clean_name, export_labels, import_labels
from pipeline.label_guard import content_policy, is_own_request
from pipeline.label_messages import Click, Next, Undo, picture_fields, row_fields
from pipeline.label_prompt import load_text_encoder, text_ranking
from pipeline.label_queue import PhotoIndex, QueueError, Queues
from pipeline.label_rows import IMPORT, LABEL_VALUES, SAMPLINGS, label_rows, read_labels, settled_labels
from pipeline.label_store import LabelStore, open_store
from pipeline.same_picture import StoredPhotos
from schemas.command import run_script, script_parser
from schemas.errors import RunError, UsageError
from schemas.settings import Section, load_settings, operational
from schemas.storage import Root

HOST, PORT = "127.0.0.1", 8100
MAX_BODY_BYTES = 64 << 10
_PAGE = Path(__file__).parent / "label_page" / "page.html"
_KEPT_FOR_GOOD = "private, max-age=31536000, immutable"  # the address changes with the bytes
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
T = TypeVar("T")
M = TypeVar("M", bound=Section)

log = logging.getLogger("forecourt.label")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page, or import or export labels."""
    parser = script_parser(__doc__ or "")
    parser.add_argument("--import", dest="import_file", type=Path, metavar="F.csv", help="store the labels of a file")
    parser.add_argument("--export", dest="export_file", type=Path, metavar="F.csv", help="write all labels to a file")
    parser.add_argument("--sampled-by", choices=(*SAMPLINGS, IMPORT), default=IMPORT, help="for lines that do not say")
    parser.add_argument("--labeller", metavar="NAME", help="who labels; without it the page asks")
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the page, 0 takes any free one ({PORT})")
    parser.add_argument("--host", default=HOST, help=f"address to listen on; whoever reaches it can label ({HOST})")
    return run_script(parser, _run, argv=argv)


class LabelSettings(Section):
    """What the page offers, and what the labels shall prove."""

    max_fnr: float = operational(
        0.01, "share of keepers dropped that the labels shall prove; score.max_fnr", gt=0, lt=1
    )
    junk_types: tuple[str, ...] = operational(
        ("interior", "gauges", "wheel", "seats", "engine", "key", "boot", "paper", "other"),
        "kinds of junk with a key of their own, 1 to 9",
        max_length=9,
    )
    seed: str | None = operational(None, "what random draws come from; None is another in each session")


class _EmbedSettings(Section):
    """Whose embeddings a text is compared with; how they are made is for pipeline/embed.py to check."""

    model_config = ConfigDict(extra="ignore")

    encoder: str = operational(DEFAULT_ENCODER, "an encoder that reads text where photos are chosen by text")
    weights: str | None = operational(None, "file of its weights; None is the encoder's own way to them")


class Settings(Section):
    """The sections this script reads."""

    label: LabelSettings = LabelSettings()
    embed: _EmbedSettings = _EmbedSettings()
    catalog: CatalogSettings = CatalogSettings()


def _run(args: argparse.Namespace) -> Mapping[str, Any] | None:
    settings = load_settings(Settings, config=args.config, sets=args.sets)
    labeller = None if args.labeller is None else clean_name(args.labeller)
    if args.labeller is not None and labeller is None:
        raise UsageError(f"--labeller {args.labeller!r} is no name of up to {MAX_NAME_CHARS} characters")
    root = Root.open(args.root)
    if args.import_file is None and args.export_file is None:
        with open_store(root) as store, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            index = PhotoIndex(root, settings.catalog)
            runner.run(_serve(LabelPage(root, store, index, settings, labeller, args.host), args.host, args.port))
        return None
    if args.import_file is not None:
        with open_store(root) as store:
            index, by = PhotoIndex(root, settings.catalog), labeller or IMPORT
            num = import_labels(args.import_file, store, index, sampled_by=args.sampled_by, labeller=by)
        log.info("event=imported file=%s new=%d", args.import_file, num)
    if args.export_file is not None:
        export_labels(args.export_file, label_rows(read_labels(root)))
    labels = settled_labels(root)["label"].to_pylist()
    return {"labels": len(labels), **{label: labels.count(label) for label in LABEL_VALUES}}


async def _serve(page: "LabelPage", host: str, port: int) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    runner = web.AppRunner(page.app(), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        print(URL.build(scheme="http", host=host, port=runner.addresses[0][1]), flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


class LabelPage:
    """The page's answers."""

    def __init__(
        self, root: Root, store: LabelStore, index: PhotoIndex, settings: Settings, labeller: str | None, host: str
    ) -> None:
        self._store, self._index, self._settings, self._labeller, self._host = (
            store,
            index,
            settings.label,
            labeller,
            host,
        )
        seed = settings.label.seed or store.token
        embed = settings.embed
        rank = text_ranking(root, index, embed.encoder, lambda: load_text_encoder(embed.encoder, embed.weights))
        self._queues = Queues(root, index, store.rows_of, seed, rank, settings.catalog)
        self._photos = StoredPhotos(root)
        # Each is used by one thread at a time; choosing by a text is slow, and no click waits for it.
        self._storing, self._choosing, self._reading = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._html = _PAGE.read_bytes()

    def app(self) -> web.Application:
        """Return the page as an aiohttp app."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/", self._front)
        app.router.add_get("/photo/{key:.+}", self._photo)
        app.router.add_get("/api/session", self._session)
        app.router.add_post("/api/next", self._next)
        app.router.add_post("/api/label", self._label)
        app.router.add_post("/api/undo", self._undo)
        app.on_cleanup.append(self._let_go)
        return app

    async def _let_go(self, app: web.Application) -> None:
        """Close the shard that is open."""
        self._photos.close()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse other sites' requests, and turn errors into answers that say what to do."""
        try:
            self._refuse_foreign(request)
            answer = await handler(request)
        except web.HTTPException as error:
            answer = _json({"error": error.text or error.reason}, status=error.status)
        except (QueueError, UsageError) as error:
            answer = _json({"error": str(error)}, status=400)
        except RunError as error:
            log.error("event=request_failed path=%s error=%s", request.path, error)
            answer = _json({"error": str(error)}, status=503)
        answer.headers.update(_HEADERS)
        return answer

    def _refuse_foreign(self, request: web.Request) -> None:
        """Refuse what another site's page sends, by a name that it controls (DNS rebinding) or in a post (CSRF)."""
        origin = request.headers.get("Origin")
        if not is_own_request(request.host, origin, host=self._host):
            asked = f"for {request.host!r} from {origin!r}"
            raise web.HTTPForbidden(text=f"a request {asked} is not taken: open the address that was printed")
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON, as application/json")

    async def _front(self, _request: web.Request) -> web.StreamResponse:
        headers = {"Content-Security-Policy": content_policy(self._html.decode()), "Cache-Control": "no-store"}
        return web.Response(body=self._html, content_type="text/html", charset="utf-8", headers=headers)

    async def _session(self, _request: web.Request) -> web.StreamResponse:
        said = {"labeller": self._labeller, "junk_types": self._settings.junk_types, "samplings": SAMPLINGS}
        return _json({**said, "max_fnr": self._settings.max_fnr, "photos": len(self._index.shown)})

    async def _photo(self, request: web.Request) -> web.StreamResponse:
        photo = self._index.photo(self._place(request.match_info["key"]))
        tag = f'"{photo.version}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.query.get("v") == photo.version:
            headers["Cache-Control"] = _KEPT_FOR_GOOD
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        async with self._reading:
            jpeg = await asyncio.to_thread(self._photos.get, photo.part, photo.key)
        return web.Response(body=jpeg, content_type="image/jpeg", headers=headers)

    async def _next(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, Next)
        labeller, held = _labeller(asked.labeller), frozenset(asked.held)
        prompt = asked.prompt.strip() if asked.sampling == "prompt" else ""

        def take() -> dict[str, Any]:
            places = self._queues.take(asked.num, labeller=labeller, sampling=asked.sampling, prompt=prompt, held=held)
            photos = [self._shown(place, labeller, asked.sampling) for place in places]
            return {**self._figures(labeller), "photos": photos, "last": self._last(labeller)}

        async with self._choosing:
            await asyncio.to_thread(self._queues.prepare, labeller, asked.sampling, prompt)
            return _json(await self._stored(take))

    async def _label(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, Click)
        labeller = _labeller(asked.labeller)
        self._place(asked.key)
        if asked.junk_type is not None and asked.label != "junk":
            raise web.HTTPBadRequest(text=f"a photo labelled {asked.label} has no junk_type")

        def store() -> dict[str, Any]:
            said = asked.model_dump(exclude={"labeller"})
            row = self._store.label(**said, labeller=labeller)
            return {**self._figures(labeller), **row_fields(row)}

        return _json(await self._stored(store))

    async def _undo(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, Undo)
        labeller = _labeller(asked.labeller)
        place = self._place(asked.key)

        def take_back() -> dict[str, Any]:
            row = self._store.undo(labeller=labeller, key=asked.key, labelled_at=asked.labelled_at)
            photo = self._shown(place, labeller, "random" if row is None else row.sampled_by)
            return {**self._figures(labeller), "removed": row is not None, "photo": photo, "last": self._last(labeller)}

        return _json(await self._stored(take_back))

    async def _stored(self, work: Callable[[], T]) -> T:
        """Run what reads or changes the labels in a thread, one at a time."""
        async with self._storing:
            return await asyncio.to_thread(work)

    def _place(self, key: str) -> int:
        place = self._index.find(key)
        if place is None:
            raise web.HTTPNotFound(text=f"no photo {key!r} is stored here; was the page opened on another root?")
        return place

    def _figures(self, labeller: str) -> dict[str, Any]:
        bound = self._store.bound(self._settings.max_fnr)
        return {"counts": self._store.counts(), "mine": self._store.num_by(labeller), "bound": bound}

    def _last(self, labeller: str) -> dict[str, Any] | None:
        row = self._store.last_click(labeller)
        return None if row is None else row_fields(row)

    def _shown(self, place: int, labeller: str, sampling: str) -> dict[str, Any]:
        photo = self._index.photo(place)
        before = [row.label for row in self._store.rows_of(photo.key) if row.labeller == labeller]
        neighbours = [picture_fields(one) for one in self._index.neighbours(place)]
        return {
            **picture_fields(photo),
            "title": photo.title,
            "sampled_by": sampling,
            "before": before[-1] if before else None,
            "neighbours": neighbours,
        }


def _labeller(text: str) -> str:
    if (name := clean_name(text)) is None:
        raise web.HTTPBadRequest(text=f"{text!r} is no name: up to {MAX_NAME_CHARS} printable characters")
    return name


def _json(answer: Mapping[str, Any], *, status: int = 200) -> web.Response:
    text = json.dumps(answer)
    return web.Response(
        text=text, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


async def _body(request: web.Request, model: type[M]) -> M:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        raise web.HTTPBadRequest(text=f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


if __name__ == "__main__":
    raise SystemExit(main())
