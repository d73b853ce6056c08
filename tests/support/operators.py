"""An operator at the command line of a server: `tunneld server token …` in this process, which costs no start."""

from __future__ import annotations

import contextlib
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tunneld.__main__ import main

__all__ = ["Operator"]


class Operator:
    """`tunneld server …` on one store, in this process."""

    def __init__(self, file: Path, **settings: Any) -> None:
        self.file = file
        self.store = file.with_name("server.db")
        self.settings = {"store": f"sqlite:///{self.store}", "auth": {"mode": "token"}, **settings}
        file.write_text(yaml.safe_dump(self.settings))
        file.chmod(0o600)

    def run(self, line: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            ThreadPoolExecutor(1) as thread,  # which has no loop running, as the command's own process
        ):
            status = thread.submit(main, ["server", *line.split(), "--config", str(self.file)]).result()
        return status, out.getvalue(), err.getvalue()

    def do(self, line: str) -> str:
        """Its stdout, where it must succeed."""
        status, out, err = self.run(line)
        assert status == 0, err
        return out.strip()

    def create(self, line: str) -> tuple[str, str]:
        """(id, secret) of a new token."""
        status, out, err = self.run(f"token create {line}")
        assert status == 0, err
        match = re.search(r"token (\w+) \(", err)
        assert match is not None
        return match[1], out.strip()
