"""Tell whether two stored photos show the same picture, where their hash alone cannot.

The coarse hash is blind to what is small against a sixteenth of the picture: two cut-outs on white that differ in a
number plate, or two flat greys, can share it. So it proposes and the stored pixels decide.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import IntegrityError
from schemas.image import decode_stored
from schemas.receipts import INGEST_STAGES, read_receipt
from schemas.shards import Shard
from schemas.storage import Root

GRID_PX = 64
# How far the cells of 64 x 64 move, of a contrast of some 240 levels: real photos saved again at q97 to q90 that keep
# their coarse hash (27 of 1,788) by 14 at most, a drawn cut-out at q75 by 8; a changed plate 70, a spot 233.
MAX_SHARE_OF_CONTRAST = 1 / 16


def thumbnail(jpeg: bytes) -> NDArray[np.int16]:
    """Reduce a stored photo to (64, 64, 3) mean colours, whatever its aspect."""
    picture = Image.fromarray(decode_stored(jpeg))
    return np.asarray(picture.resize((GRID_PX, GRID_PX), Image.Resampling.BOX), dtype=np.int16)


def same_picture(first: NDArray[np.int16], second: NDArray[np.int16]) -> bool:
    """Compare two thumbnails: no cell may differ by more than a sixteenth of the fainter picture's contrast.

    A flat picture has no contrast, so it is the same as another only where they are equal.
    """
    contrast = min(int(np.ptp(first)), int(np.ptp(second)))
    return int(np.abs(first - second).max()) <= contrast * MAX_SHARE_OF_CONTRAST


class StoredPhotos:
    """The stored bytes of single photos of a root, by part and key; one shard is open at a time."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._part: str | None = None
        self._shard: Shard | None = None

    def get(self, part: str, key: str) -> bytes:
        """Return a photo's JPEG.

        Raises:
            IntegrityError: no committed shard holds it.
        """
        if self._shard is None or self._part != part:
            self.close()
            self._shard, self._part = Shard.open(self._root, self._shard_name(part)), part
        try:
            return self._shard.get(key)
        except KeyError as error:
            raise IntegrityError(f"{error.args[0]}; see pipeline/verify.py --repair") from None

    def close(self) -> None:
        """Let go of the open shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _shard_name(self, part: str) -> str:
        for stage in INGEST_STAGES:
            if (receipt := read_receipt(self._root, stage, part)) is not None:
                return receipt.file("shards")
        raise IntegrityError(f"photos name part {part!r}, and no stage has committed it; see pipeline/verify.py")


def first_match(candidate: NDArray[np.int16], pictures: Sequence[NDArray[np.int16]]) -> int | None:
    """Return the index of the first picture that is the candidate's; None where it is a new one."""
    return next((index for index, picture in enumerate(pictures) if same_picture(picture, candidate)), None)
