"""``tunneld demo``: the whole product on one machine, to look at."""

from tunneld.demo.command import run

__all__ = ["run"]
