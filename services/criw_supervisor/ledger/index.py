"""What is there, by id: found by prefixes, filtered, and listed as bytes that are serialised once."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from criw.errors import InvalidArgument
from criw.ids import resolve


class Listed(Protocol):
    """A pod or container as an index knows it."""

    @property
    def id(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def listing(self) -> bytes: ...


L = TypeVar("L", bound=Listed)


class Index(Generic[L]):
    """Pods or containers by id, in the order they were made."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._items: dict[str, L] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[L]:
        return iter(list(self._items.values()))

    def add(self, item: L) -> None:
        self._items[item.id] = item

    def discard(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def get(self, item_id: str) -> L | None:
        """The one of that full id."""
        return self._items.get(item_id)

    def find(self, text: str) -> L:
        """The one whose id is `text` or the only one whose id begins with it. Raises NotFound."""
        exact = self._items.get(text)
        return exact if exact is not None else self._items[resolve(text, self._items, what=self._what)]

    def find_or_none(self, text: str) -> L | None:
        """As `find`, for calls that succeed when there is nothing to do.

        Raises InvalidArgument without an id, NotFound if more than one id begins with `text`.
        """
        if not text:
            raise InvalidArgument(f"cannot find a {self._what} without an id")
        return self.find(text) if any(one.startswith(text) for one in self._items) else None

    def matching(self, prefix: str, labels: Mapping[str, str]) -> list[L]:
        """Those whose id begins with `prefix` and that have all of `labels`."""
        if not prefix and not labels:
            return list(self._items.values())
        exact = self._items.get(prefix)
        candidates = [exact] if exact is not None else self._items.values()
        return [
            item
            for item in candidates
            if item.id.startswith(prefix) and all(item.labels.get(key) == value for key, value in labels.items())
        ]


def list_reply(items: Iterable[Listed]) -> bytes:
    """A reply whose field 1 is the repeated item: the items' own chunks, one after the other."""
    return b"".join(item.listing for item in items)


def chunk(message: bytes) -> bytes:
    """A message as an element of a repeated field 1 (protobuf encoding: tag, length, bytes)."""
    length, head = len(message), bytearray(b"\x0a")
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + message
