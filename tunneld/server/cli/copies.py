"""``tunneld server backup``: a copy of the store."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld.errors import ConfigError
from tunneld.server.cli.desk import Arguments, on_store

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig

__all__ = [
    "backup",
    "backup_arguments",
]


def backup_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("file", metavar="FILE", help="where the copy goes; a file that is there is replaced")


def backup(config: ServerConfig, arguments: Arguments) -> int:
    """Copy the store, while the server runs or not."""
    from tunneld.server.store.files import path_of

    path = path_of(config.store)
    if path is not None and not Path(path).exists():
        raise ConfigError([f"store: {path}: there is none yet, so nothing to back up"])
    on_store(config, lambda store: store.backup(arguments.file))
    print(f"copied {path} to {arguments.file}", file=sys.stderr)
    return 0
