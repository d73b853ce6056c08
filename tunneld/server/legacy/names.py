"""Which label the tunnel of each name of the older dialect has: made from free text, the same for the same name."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from tunneld.errors import VisitorError
from tunneld.protocol.labels import labels
from tunneld.server.store.interface import LabelStore

__all__ = ["Labels"]


class Labels:
    """The labels that names have, in memory and in the store.

    Args:
        store: where they are kept.
        taken: whether a tunnel of another dialect has this label for its name.
        most: that are kept.
    """

    def __init__(self, store: LabelStore, *, taken: Callable[[str], bool], most: int) -> None:
        self.most = most
        self._store = store
        self._taken = taken
        self._names: dict[str, str] = {}
        self._labels: dict[str, str] = {}

    async def refresh(self) -> None:
        """Read them all."""
        self._names = await self._store.labels()
        self._labels = {name: label for label, name in self._names.items()}

    def __len__(self) -> int:
        return len(self._names)

    def find(self, name: str) -> str | None:
        """The label of a cleaned name; None when it has none yet."""
        return self._labels.get(name)

    async def claim(self, name: str, may_have: Callable[[str], None]) -> str:
        """The label of a cleaned name, given to it now if it has none.

        Args:
            may_have: raises VisitorError for a label that whoever asks may not have; nothing is kept then.

        Raises:
            VisitorError: that of `may_have`; ``store_failed``; ``name_taken``: no label is left for it.
        """
        if (known := self._labels.get(name)) is not None:
            may_have(known)
            return known
        for label in labels(name):
            if label in self._names or (label != name and self._taken(label)):
                continue
            may_have(label)
            holder = await self._store.keep_label(label, name, time(), most=self.most)
            self._remember(label, holder)
            if holder == name:
                return label
        raise VisitorError("name_taken", "Every label that can be made of this name is another's.")

    def _remember(self, label: str, name: str) -> None:
        self._names[label] = name
        self._labels[name] = label
        while len(self._names) > self.most:
            oldest = next(iter(self._names))
            self._labels.pop(self._names.pop(oldest), None)
