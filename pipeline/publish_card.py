"""What stands beside a data set's rows: its card for people, and its Croissant description for programs."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.photo_outcomes import COUNT_OF_REASON
from schemas.manifest import SPLITS, UNKNOWN, Manifest
from schemas.tables import DATASET_PHOTOS

_MOST_FREQUENT = 10
_MAX_SITES = 20

# What each column of photos/ means, in the card and in Croissant.
COLUMNS = {
    "key": "SITE/LISTING_ID/INDEX of the photo, its key in the shard",
    "part": "part whose shard, shards/PART.lmdb in the root, holds the JPEG",
    "split": "train, val or test, one for all photos of a group",
    "group_id": "smallest listing of those tied by VIN or picture",
    "site": "site or imported set",
    "listing_id": "listing on its site",
    "make": "make as the listing spells it",
    "model": "model as the listing spells it",
    "year": "model year",
    "price_usd": "asking price in USD",
    "odometer_mi": "odometer in miles",
    "price_bin": "class of the price",
    "make_model": f"class of make and model; {UNKNOWN} where known and outside the vocabulary",
    "make_model_id": f"id of make_model, 0 is {UNKNOWN}",
    "year_id": f"id of the year, 0 is {UNKNOWN}",
    "sha256": "SHA-256 of the JPEG that this version means",
    "width_px": "width of the JPEG",
    "height_px": "height of the JPEG",
}
# Croissant's own context, which readers want whole; see docs.mlcommons.org/croissant/docs/croissant-spec.html.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_PARQUET = "application/x-parquet"
_LICENCE = (
    "None is granted here. Photos and listings belong to those who made them; whether and how this data set may be "
    "used or passed on is for its publisher to say, in this place."
)


def card(manifest: Manifest) -> str:
    """Write the data set card, in Markdown."""
    return (
        "\n\n".join(
            [
                f"# {manifest.name}",
                f"{manifest.counts['kept']:,} photos of {_sum(manifest, 'listings'):,} vehicle listings in "
                f"{manifest.counts['groups']:,} groups. Version `{manifest.version}`, published "
                f"{manifest.created_at:%Y-%m-%d} by Forecourt {manifest.code_version}"
                + (f" after `{manifest.parent}`." if manifest.parent else "."),
                _files(manifest),
                "## Splits\n\n" + _splits(manifest),
                "## Targets\n\n" + _targets(manifest),
                "## Where the photos went\n\n" + _funnel(manifest),
                "## Sources\n\n" + _sources(manifest),
                f"## Licence\n\n{_LICENCE}",
                "## Known limits\n\n" + _limits(manifest),
            ]
        )
        + "\n"
    )


def croissant(manifest: Manifest) -> str:
    """Describe the rows as Croissant 1.0, one JSON-LD object; its files are named from this version's folder."""
    prefix = f"{manifest.folder}/"
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": name.removeprefix(prefix),
            "name": name.removeprefix(prefix),
            "contentUrl": name.removeprefix(prefix),
            "contentSize": f"{manifest.files[name].bytes} B",
            "encodingFormat": _PARQUET,
            "sha256": manifest.files[name].sha256,
        }
        for name in manifest.files_of("photos")
    ]
    # Beside this description the files are a set by their names; each of them is there once more with its checksum.
    rows = {
        "@type": "cr:FileSet",
        "@id": "photo-rows",
        "name": "photo-rows",
        "encodingFormat": _PARQUET,
        "includes": "photos/*.parquet",
    }
    source = {"fileSet": {"@id": rows["@id"]}}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"photos/{field.name}",
            "name": field.name,
            "description": COLUMNS[field.name],
            "dataType": _croissant_type(field.type),
            "source": {**source, "extract": {"column": field.name}},
        }
        for field in DATASET_PHOTOS
    ]
    description = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": f"{manifest.counts['kept']:,} photos of vehicle listings with price, make/model and year; the "
        "JPEGs lie in the shards of the root, by key.",
        "version": f"1.0.0+{manifest.version}",
        "datePublished": f"{manifest.created_at:%Y-%m-%d}",
        "distribution": [*files, rows],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "photos", "name": "photos", "field": fields}],
    }
    return json.dumps(description, indent=1) + "\n"


def _croissant_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Text" if pa.types.is_string(kind) else "sc:Float"


def _files(manifest: Manifest) -> str:
    rows = [[f"`{name}`", meaning] for name, meaning in COLUMNS.items()]
    return (
        "`photos/*.parquet` has a row a photo, `outcomes/*.parquet` says of every stored photo why it is in or out, "
        "`manifest.json` has settings, counts, vocabularies and checksums, `croissant.json` describes the rows.\n\n"
        + _table(["column", "meaning"], rows)
    )


def _splits(manifest: Manifest) -> str:
    rows = [
        [
            split,
            *(f"{number:,}" for number in (of.photos, of.listings, of.groups)),
            *(f"{number:,}" for number in (of.with_price, of.with_make_model, of.with_year)),
            *(_share(share) for share in (of.make_model_coverage, of.year_coverage)),
        ]
        for split, of in ((split, manifest.splits[split]) for split in SPLITS)
    ]
    names = "split, photos, listings, groups, with price, with make/model, with year".split(", ")
    inherited = manifest.inheritance
    text = (
        "All photos of a group are on one side. A group is what listings, VINs with a right check digit, and equal or "
        "nearly equal pictures tie.\n\n" + _table([*names, "make/model in vocabulary", "year in vocabulary"], rows)
    )
    if manifest.parent:
        text += (
            f"\n\nOf the parent {inherited.groups:,} groups keep their split; {inherited.merged:,} groups were several "
            f"there, and for that {inherited.moved:,} of its groups changed sides. {inherited.withdrawn:,} photos that "
            "it kept are stored no more."
        )
    return text


def _targets(manifest: Manifest) -> str:
    words = manifest.vocabulary
    shown = ", ".join(words.make_models[:_MOST_FREQUENT]) or "none"
    years = f"{words.years[0]} to {words.years[-1]}" if words.years else "none"
    return "\n".join(
        [
            f"* `price_bin`: {len(words.price_classes)} classes: {'; '.join(words.price_classes)}.",
            f"* `make_model_id`: {UNKNOWN} and the {len(words.make_models):,} most frequent of the training split: "
            + shown
            + (", ..." if len(words.make_models) > _MOST_FREQUENT else "."),
            f"* `year_id`: {UNKNOWN} and the {len(words.years)} years of the training split: {years}.",
            "",
            f"A target the listing does not give is null. {UNKNOWN} is what it gives and the vocabulary lacks.",
        ]
    )


def _funnel(manifest: Manifest) -> str:
    counts = manifest.counts
    names = ["photos", *COUNT_OF_REASON.values(), "kept"]
    rows = [[name.replace("_", " "), f"{counts[name]:,}"] for name in names]
    text = _table(["stored photos", "number"], [["all", rows[0][1]], *rows[1:]])
    return "\n\n".join([text, *("* " + note for note in manifest.notes)])


def _sources(manifest: Manifest) -> str:
    most = sorted(manifest.sites.items(), key=lambda site: (-site[1], site[0]))
    rows = [[f"`{site}`", f"{photos:,}"] for site, photos in most[:_MAX_SITES]]
    if len(most) > _MAX_SITES:
        rest = sum(photos for _, photos in most[_MAX_SITES:])
        rows.append([f"{len(most) - _MAX_SITES:,} more", f"{rest:,}"])
    return _table(["site or imported set", "photos"], rows)


def _limits(manifest: Manifest) -> str:
    return "\n".join(
        [
            "* Prices are what sellers asked, in the currency's rate that the settings gave, and not what was paid.",
            "* Makes, models and years are as listings give them; spellings that differ in more than letter case and "
            "blanks are classes of their own.",
            "* Two photos of one car on two listings are tied only by a valid VIN in at most "
            f"{manifest.settings['max_vin_listings']} listings, or by a picture that both show.",
            "* The filter for junk lets some pass and takes some keepers; the report has its bound.",
            "* Photos whose owner withdraws them leave the shards: this version then names keys that are not there.",
        ]
    )


def _sum(manifest: Manifest, name: str) -> int:
    return sum(int(getattr(of, name)) for of in manifest.splits.values())


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _table(names: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])
