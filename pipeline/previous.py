"""A part's committed generation, as the next generation of it reads it."""

from collections import defaultdict
from types import TracebackType
from typing import Any, Self

from schemas.receipts import Receipt
from schemas.shards import Shard
from schemas.storage import Root


class PreviousPart:
    """The rows and photos of a sealed part by listing id; empty where there is no receipt.

    `by_url` has one row a photo URL, a stored one where there is any.
    """

    def __init__(self, root: Root, receipt: Receipt | None) -> None:
        self.attempts: dict[str, dict[str, Any]] = {}
        self.listings: dict[str, dict[str, Any]] = {}
        self.photos: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.by_url: dict[str, dict[str, Any]] = {}
        self._shard: Shard | None = None
        if receipt is None:
            return
        for row in root.read_table(receipt.file("attempts")).to_pylist():
            self.attempts[row["listing_id"]] = row
        for row in root.read_table(receipt.file("listings")).to_pylist():
            self.listings[row["listing_id"]] = row
        for row in root.read_table(receipt.file("photos")).sort_by("key").to_pylist():
            self.photos[row["listing_id"]].append(row)
            known = self.by_url.setdefault(row["url"], row)
            if row["outcome"] == "stored" and known["outcome"] != "stored":
                self.by_url[row["url"]] = row
        self._shard = Shard.open(root, receipt.file("shards"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the shard."""
        if self._shard is not None:
            self._shard.close()

    def jpeg(self, key: str) -> bytes:
        """Return the stored bytes of a photo.

        Raises:
            KeyError: this part holds no such photo.
        """
        if self._shard is None:
            raise KeyError(key)
        return self._shard.get(key)
