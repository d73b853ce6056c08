"""DNS labels made from the free text by which clients of the older dialect name their tunnels. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b

__all__ = ["MAX_NAME", "clean_name", "labels"]

#: Characters of a name.
MAX_NAME = 256
_LONGEST = 63
_OTHER = re.compile(r"[^a-z0-9]+")


def clean_name(text: str) -> str | None:
    """The name that this text says, one spelling for each; None when it says none.

    White space around it is out, and any run of it inside is one space; Unicode is composed.
    """
    name = " ".join(unicodedata.normalize("NFC", text[: 4 * MAX_NAME]).split())
    return name if 0 < len(name) <= MAX_NAME and len(text) <= 4 * MAX_NAME and name.isprintable() else None


def labels(name: str) -> Iterator[str]:
    """The labels that a cleaned name may get, the best first: the next one where another name holds the one before.

    Each is the same whenever it is asked for: ``my-server``, ``my-server-1c9f2a77``, ``my-server-1c9f2a77d0b14e5a``
    and so on, up to the whole of the name's hash.
    """
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    base = _OTHER.sub("-", plain).strip("-")[:_LONGEST].rstrip("-")
    digest = blake2b(name.encode("utf-8", "replace"), digest_size=20).hexdigest()
    if base:
        yield base
    for size in (8, 16, 40):
        yield f"{(base or 'tunnel')[: _LONGEST - 1 - size].rstrip('-')}-{digest[:size]}"
