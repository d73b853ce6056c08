"""How the shapes of both APIs are written; they are shared with ``tunnelctl``.

TypedDicts, because every answer is JSON that is built once and read once: no model classes live in the
daemon's memory. pydantic reads them only when ``/openapi.json`` is asked for. ``tunnelctl`` imports them
for type checking alone: `typing_extensions` would cost it 20 ms of its start.

Units: ``*_s`` seconds, ``*_ms`` milliseconds, ``bytes_*`` octets. ``None`` (JSON ``null``): not known yet.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic can read only this one's annotations before Python 3.12
    from typing_extensions import TypedDict

__all__ = ["Boolean", "TypedDict", "strict"]


class Boolean:
    """Beside ``Literal[True]``: pydantic takes 1 and 1.0 for it, strict or not, as Python holds them equal."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema  # here: tunnelctl does without

        return core_schema.no_info_before_validator_function(_no_number, handler(source))


def _no_number(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def strict(*bodies: type) -> None:
    """What callers send is checked strictly: no "5" for 5, no key that would be passed over in silence."""
    for body in bodies:
        setattr(body, "__pydantic_config__", {"extra": "forbid", "strict": True})  # noqa: B010 (mypy knows no such key)
