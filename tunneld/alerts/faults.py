"""What every kind of delivery needs: how it says that it failed, its secrets, and whom it trusts."""

from __future__ import annotations

import ssl

from tunneld.config.secrets import read_secret
from tunneld.errors import ConfigError

__all__ = ["Undelivered", "secret", "trusting"]


class Undelivered(Exception):
    """It did not arrive.

    Args:
        why: for people; names no secret.
        final: trying again has no use.
    """

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


def secret(path: str) -> str:
    """The one line of a secret's file; raises Undelivered."""
    try:
        return read_secret(path)
    except ConfigError as error:
        raise Undelivered("; ".join(error.faults), final=True) from None


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """Trusts the system's authorities, and those of a file beside them; raises Undelivered. Takes milliseconds."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # an ssl.SSLError is one
            raise Undelivered(f"ca_file: {ca_file}: {(error.strerror or str(error)).lower()}", final=True) from None
    return context
