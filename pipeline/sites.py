"""Show what a site file reads from a saved page.

Reads:  SITE.yaml, a site file, and PAGE.html, a page of that site as saved from it.
Writes: nothing. The last line of stdout is one JSON object: outcome, error, listing, photos.
Exit:   0 a listing was read; 1 the page is no listing; 2 the site file or the page cannot be used.

Examples:
  cp pipeline/configs/sites/json_ld_example.yaml my-site.yaml   # then fill in the address and your contact
  python pipeline/sites.py my-site.yaml saved-page.html
  python pipeline/sites.py my-site.yaml saved-page.html --url https://cars.example.org/listing/17 --status 403
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, urlsplit

import yaml
from pydantic import ValidationError, field_validator, model_validator

from pipeline.pages.block_pages import is_block_page
from pipeline.pages.extract import ExtractSettings, extract_listing
from pipeline.pages.page import Page, check_selector, select
from schemas.command import run_script, script_parser
from schemas.errors import SiteFileError, UsageError, http_reason
from schemas.settings import Section, operational, result
from schemas.tables import LISTINGS

Outcome = Literal["found", "gone", "failed"]
MAX_SITE_FILE_BYTES = 1_000_000
NOT_READ_FROM_PAGES = frozenset({"site", "listing_id", "price_usd", "num_photos", "fetched_at"})
COLUMNS = tuple(name for name in LISTINGS.names if name not in NOT_READ_FROM_PAGES)
_HTML_TYPES = ("html", "xml", "text/plain", "json", "octet-stream")


def main(argv: Sequence[str] | None = None) -> int:
    """Read a saved page with a site file and print what it says."""
    parser = script_parser(__doc__ or "", root=False, settings=False)
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the site file")
    parser.add_argument("page", type=Path, metavar="PAGE.html", help="a saved page of the site")
    parser.add_argument("--url", help="the address the page came from, for its relative links (default: base_url)")
    parser.add_argument("--status", type=int, default=200, help="the HTTP status it came with (default: 200)")
    return run_script(parser, _show, argv=argv)


def _show(args: argparse.Namespace) -> Mapping[str, Any]:
    site = load_site(args.site)
    try:
        html = args.page.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the page {args.page}: {error.strerror}") from error
    reading = read_page(html, url=args.url or site.base_url, site=site, status=args.status)
    listing = reading.listing and {k: float(v) if isinstance(v, Decimal) else v for k, v in reading.listing.items()}
    return {
        "outcome": reading.outcome,
        "error": reading.error,
        "listing": listing,
        "photos": list(reading.photo_urls),
        "exit_code": 0 if reading.outcome == "found" else 1,
    }


class IdsSettings(Section):
    """The listing ids of a site: a range, both ends included, or a file with one id a line."""

    first: int | None = operational(None, "First id; with `last`", ge=0)
    last: int | None = operational(None, "Last id, included", ge=0)
    file: str | None = operational(None, "A file of ids, one a line; relative to the site file")

    @model_validator(mode="after")
    def _check(self) -> "IdsSettings":
        ranged = self.first is not None or self.last is not None
        if ranged == (self.file is not None) or (ranged and (self.first is None or self.last is None)):
            raise ValueError("give either first and last, or file")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ValueError(f"the range is reversed: first {self.first} is above last {self.last}; swap them")
        return self


class GoneSettings(Section):
    """What tells that a listing is no longer, or never was, there."""

    status: tuple[int, ...] = result((404, 410), "HTTP statuses of a page that is gone")
    css: str | None = result(None, "CSS selector that only pages of gone listings have")

    @field_validator("css")
    @classmethod
    def _check(cls, css: str | None) -> str | None:
        if css is not None:
            check_selector("css", css)
        return css


class PolitenessSettings(Section):
    """How the crawler behaves as a guest, per host of a URL."""

    requests_per_second: float = operational(
        1.0, "Requests a second to one host, of the whole cluster", gt=0, le=100_000
    )
    concurrency: int = operational(8, "Requests to one host at the same time", ge=1, le=1000)
    contact: str = operational(..., "mailto: or https: address of whoever runs the crawl; sent with every request")

    @field_validator("contact")
    @classmethod
    def _check(cls, contact: str) -> str:
        text = contact.strip()
        known = re.fullmatch(r"mailto:[!-'*-?A-~]+@[A-Za-z0-9.-]+\.[A-Za-z0-9-]+|https://[A-Za-z0-9.-]+[!-'*-~]*", text)
        if not known:
            raise ValueError(f"{contact!r} is no contact; give mailto:you@your-domain or an https: address of yours")
        return text


class SiteFile(Section):
    """A site as its YAML file describes it; a new site is one such file and no code."""

    name: str = result(..., "Short name, part of every key", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    base_url: str = result(..., "http(s) address of the site")
    listing_url: str = result(..., "Path or address of a listing's page, with {id} where its id goes")
    ids: IdsSettings = operational(..., "The ids to ask for")
    gone: GoneSettings = result(GoneSettings(), "What tells that a listing is gone")
    extract: ExtractSettings = result(..., "How a page is read")
    politeness: PolitenessSettings = operational(..., "How the crawler behaves")
    allow_private_addresses: bool = operational(False, "Whether hosts on private or loopback addresses may be asked")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if "-list-" in f"{name}-":
            raise ValueError("must not hold `-list-` or end with `-list`: parts of ids that are no numbers have it")
        return name

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        try:
            parts = urlsplit(base_url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            known = False
        if not known or parts.username or re.search(r"[\s{}]", base_url):
            raise ValueError("must be an http:// or https:// address with a host, without a password")
        return base_url

    @field_validator("listing_url")
    @classmethod
    def _check_listing_url(cls, listing_url: str) -> str:
        if "{id}" not in listing_url:
            raise ValueError("must hold {id} where a listing's id goes, such as /listing/{id}")
        if other := re.findall(r"\{(?!id\})[^}]*\}?", listing_url):
            raise ValueError(f"knows only {{id}}, found {other[0]}")
        if "://" in listing_url and not listing_url.startswith(("http://", "https://")):
            raise ValueError("must be a path below base_url, or an http(s) address")
        return listing_url

    def url_of(self, listing_id: str | int) -> str:
        """Return the address of a listing's page."""
        path = self.listing_url.replace("{id}", quote(str(listing_id), safe=""))
        return path if path.startswith(("http://", "https://")) else f"{self.base_url.rstrip('/')}/{path.lstrip('/')}"


def load_site(path: Path) -> SiteFile:
    """Read a site file and check all of it before anything is fetched.

    Raises:
        SiteFileError: with the file, the field, what was found, and what to do.
    """
    path = Path(path)
    try:
        text = path.read_bytes()[:MAX_SITE_FILE_BYTES].decode("utf-8")
        values = yaml.safe_load(text)
    except OSError as error:
        raise SiteFileError(f"cannot read the site file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SiteFileError(f"the site file {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        found = type(values).__name__
        raise SiteFileError(f"the site file {path} must hold keys such as name and base_url; found {found}")
    try:
        site = SiteFile.model_validate(values)
    except ValidationError as error:
        raise SiteFileError(f"site file {path}: " + "; ".join(_explained(error))) from error
    return _with_ids_file(site, path)


def _with_ids_file(site: SiteFile, path: Path) -> SiteFile:
    if site.ids.file is None:
        return site
    file = (path.parent / site.ids.file).resolve()
    if not file.is_file():
        raise SiteFileError(f"site file {path}: ids.file: no file {file}; relative paths start at the site file")
    return site.model_copy(update={"ids": site.ids.model_copy(update={"file": str(file)})})


_HINTS = {
    "name": "small letters, digits, - and _, such as demo",
    "ids": "such as {first: 1, last: 1000} or {file: ids.txt}",
    "extract": "such as {kind: json_ld}",
    "politeness": 'such as {requests_per_second: 1.0, contact: "mailto:you@your-domain"}',
    "politeness.contact": 'whom to ask about the crawl, such as "mailto:you@your-domain"; it goes into the User-Agent',
    "listing_url": "such as /listing/{id}",
    "base_url": "such as https://cars.example.org",
}


def _explained(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"])
        hint = f" ({_HINTS[where]})" if where in _HINTS else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where}; known here: {', '.join(_known_keys(problem['loc']))}")
        elif problem["type"] == "missing" or (where == "politeness.contact" and problem["input"] in (None, "")):
            lines.append(f"{where} is missing; fill it in{hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            lines.append(f"{where}: {message}{found}{hint}")
    return lines


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model: type[Section] = SiteFile
    for step in location[:-1]:
        annotation = model.model_fields[str(step)].annotation
        choices = [annotation, *get_args(annotation)]
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, Section))
    return sorted(model.model_fields)


def user_agent(site: SiteFile) -> str:
    """Return the User-Agent of every request: who crawls, in which version, and whom to ask."""
    try:
        number = version("forecourt")
    except PackageNotFoundError:
        number = "unpackaged"
    return f"Forecourt/{number} (+{site.politeness.contact})"


@dataclass(frozen=True)
class PageReading:
    """What a page said. `listing` has every column of COLUMNS where the outcome is found, else it is None."""

    outcome: Outcome
    error: str | None
    listing: dict[str, Any] | None
    photo_urls: tuple[str, ...]


def read_page(
    html: bytes, *, url: str, site: SiteFile, status: int = 200, content_type: str | None = None
) -> PageReading:
    """Read a fetched page; never raises, whatever the bytes are.

    `url` is the final address, after redirects; `content_type` the header, for its charset.
    """
    if status in site.gone.status:
        return PageReading("gone", None, None, ())
    if content_type and not any(kind in content_type.lower() for kind in _HTML_TYPES):
        return _failed("no_listing" if status == 200 else http_reason(status))
    page = Page(html, url=url, content_type=content_type)
    try:
        return _read(page, site, status)
    except (RecursionError, MemoryError):
        return _failed("no_listing")


def _read(page: Page, site: SiteFile, status: int) -> PageReading:
    if status != 200:
        return _failed("block_page" if is_block_page(page, status) else http_reason(status))
    if site.gone.css is not None and page.tree is not None and select(page.tree, site.gone.css):
        return PageReading("gone", None, None, ())
    extraction = extract_listing(page, site.extract)
    if not extraction.is_listing:
        return _failed("block_page" if is_block_page(page, status) else "no_listing")
    listing = {name: extraction.listing.get(name) for name in COLUMNS} | {"url": page.url}
    return PageReading("found", None, listing, extraction.photo_urls)


def _failed(error: str) -> PageReading:
    return PageReading("failed", error, None, ())


if __name__ == "__main__":
    raise SystemExit(main())
