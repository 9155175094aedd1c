"""What the labelling page and its server say to each other."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from yarl import URL

from pipeline.label_csv import MAX_NAME_CHARS
from pipeline.label_queue import Photo
from pipeline.label_rows import LabelRow
from schemas.settings import Section

MAX_AT_ONCE = 16

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Key = Annotated[str, Field(min_length=1, max_length=512)]
Sampling = Literal["random", "uncertain", "likely_junk", "likely_keep", "prompt"]


class Next(Section):
    """Ask for photos; `held` are the keys that the page has."""

    labeller: Name
    sampling: Sampling
    prompt: str = Field("", max_length=200)
    held: tuple[Key, ...] = Field((), max_length=64)
    num: int = Field(6, ge=1, le=MAX_AT_ONCE)


class Click(Section):
    """Label a photo; `click` is the same when it is sent again."""

    click: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    labeller: Name
    key: Key
    label: Literal["keep", "junk", "unsure"]
    junk_type: str | None = Field(None, max_length=64)
    sampled_by: Sampling


class Undo(Section):
    """Take back the label of that moment."""

    labeller: Name
    key: Key
    labelled_at: datetime


def picture_fields(photo: Photo) -> dict[str, str]:
    """Return a photo as the page shows it; its address changes with its bytes."""
    listing, _, number = photo.key.rpartition("/")
    alt = f"Photo {int(number) + 1} of {photo.title or 'an untitled listing'} ({listing})"
    return {"key": photo.key, "url": str(URL.build(path=f"/photo/{photo.key}", query={"v": photo.version})), "alt": alt}


def row_fields(row: LabelRow) -> dict[str, Any]:
    """Return a stored label as the page knows it."""
    return {**row._asdict(), "labelled_at": row.labelled_at.isoformat()}
