"""Which credential `tunnelctl doctor` shows to which server: never one to a server that it was not given for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.sockets import LOOPBACK
from tunnelctl.cli import main
from tunnelctl.doctor import units

UNITS, SHELLS = "tnl_of-the-unit", "tnl_of-the-shell"


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, set[str]]]:
    """A server that refuses everybody; its address, and the credentials of who asked for a tunnel (empty: none)."""
    shown: set[str] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "Upgrade: websocket" in head:  # and not the one that measures the way
                shown.add(next((x[22:] for x in head.split("\r\n") if x.startswith("Authorization: Bearer ")), ""))
            writer.write(b"HTTP/1.1 401 No\r\nX-Tunnel-Error: unauthorized\r\nContent-Length: 0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a look whether the port is open
        finally:
            writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield f"ws://{LOOPBACK}:{server.sockets[0].getsockname()[1]}", shown
    finally:
        server.close()
        await server.wait_closed()


class Machine:
    """One whose unit has a token, and whose shell may have another."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.own = folder / "tunneld.yaml"
        (folder / "credential").write_text(UNITS)
        patch.setattr(units, "token_places", lambda unit: [str(folder / "none"), str(folder / "credential")])
        patch.setattr(units, "settings", lambda unit: str(self.own))
        patch.delenv("TUNNELD_TOKEN", raising=False)

    async def look(self, file: Path) -> int:
        """The doctor's exit status, of a socket that nobody listens on."""
        socket = str(self.folder / "none.sock")
        return await asyncio.to_thread(main, ["doctor", "--socket", socket, "--config", str(file), "--json"])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def written(file: Path, url: str, token_file: str | None = None) -> Path:
    file.write_text(json.dumps({"server": {"url": url, **({"token_file": token_file} if token_file else {})}}))
    return file


async def test_the_units_token_goes_with_the_units_own_file_alone(machine: Machine) -> None:
    async with listening() as (url, shown):
        await machine.look(written(machine.folder / "tried.yaml", url))
        assert shown == {""}, "another file may name anybody's server"
        shown.clear()
        machine.patch.setenv("TUNNELD_TOKEN", SHELLS)
        await machine.look(machine.folder / "tried.yaml")
        assert shown == {SHELLS}
        shown.clear()
        link = machine.folder / "link.yaml"
        link.symlink_to(written(machine.own, url))
        await machine.look(link)
        assert shown == {UNITS}, "as the unit's agent itself, which never sees this shell"


async def test_an_agent_that_answers_is_shown_no_token_of_another_server(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket may be anybody's: what answers there names a server that the file does not."""
    (machine.folder / "mine").write_text("tnl_of-the-file")
    async with listening() as (theirs, shown), listening() as (ours, _):
        status = {"server": theirs, "pid": 1, "config_file": str(machine.own), "tunnels": []}
        monkeypatch.setattr("tunnelctl.doctor.here.agent", lambda client: ([], status))
        for token_file in (None, str(machine.folder / "mine")):
            written(machine.own, ours, token_file)
            await machine.look(machine.own)
            assert shown == {""}
            shown.clear()
            written(machine.own, theirs + "/", token_file)
            await machine.look(machine.own)
            assert shown == {"tnl_of-the-file" if token_file else UNITS}
            shown.clear()


@pytest.mark.parametrize("token_file", ["~nobody-of-this-name/token", "a\0b", "no/such/file", "\ud800/x"])
async def test_a_token_file_that_is_no_path_is_told_of_and_the_rest_is_looked_at(
    machine: Machine, token_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listening() as (url, shown):
        machine.patch.setenv("TUNNELD_TOKEN", SHELLS)
        bundle = machine.folder / "bundle.tar.gz"
        file = written(machine.own, url, token_file)
        words = ["doctor", "--socket", str(machine.folder / "none.sock"), "--config", str(file), "--json"]
        assert await asyncio.to_thread(main, [*words, "--bundle", str(bundle)]) == 1
        assert shown == {""}, "the file's is wanted, and no other"
    said = capsys.readouterr()
    assert said.err == ""
    found = {one["id"] for one in json.loads(said.out)["findings"]}
    assert {"config", "tcp", "token"} <= found
    assert bundle.stat().st_size > 0
