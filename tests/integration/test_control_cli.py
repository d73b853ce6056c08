"""The real ``python -m tunnelctl`` against the control API over its real socket."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.control_agent import MemoryAgent, stream_info, tunnel_status
from tunnelctl.render import width_of
from tunneld import __version__
from tunneld.control.app import create_app
from tunneld.control.listener import ControlServer


@dataclass
class Done:
    status: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    keep = ("PATH", "HOME", "VIRTUAL_ENV", "PYTHONPATH", "LANG")
    return {key: os.environ[key] for key in keep if key in os.environ} | more


async def start(*words: str, env: dict[str, str] | None = None, **more: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tunnelctl",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**(env or {})),
        **more,  # type: ignore[arg-type]
    )


async def ctl(*words: str, env: dict[str, str] | None = None) -> Done:
    process = await start(*words, env=env)
    out, err = await process.communicate()
    assert process.returncode is not None
    done = Done(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in done.err
    return done


Run = Callable[..., Awaitable[Done]]


@pytest.fixture
def agent() -> MemoryAgent:
    agent = MemoryAgent()
    agent.add(
        stream_info("aa11cc", age_s=100, idle_s=50),
        stream_info("aa22cc", kind="http", path="/upload", method="POST"),
        stream_info("bb33cc", tunnel="other", age_s=5),
    )
    return agent


@pytest.fixture
async def path(agent: MemoryAgent, folder: Path) -> AsyncIterator[Path]:
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        yield folder / "c.sock"


@pytest.fixture
def run(path: Path) -> Run:
    async def run(*words: str, **env: str) -> Done:
        return await ctl(*words, "--socket", str(path), env=env)

    return run


async def test_status(agent: MemoryAgent, run: Run) -> None:
    agent.tunnels["late"] = tunnel_status(
        "late", state="failed", public_url=None, connected_s=None, last_error="the token was refused"
    )
    shown = await run("status")
    assert shown.status == 0
    assert "http://127.0.0.1:8440/t/demo/" in shown.out
    assert "late: the token was refused" in shown.out
    assert "5.0 MiB out" in shown.out
    told = await run("status", "--json")
    assert json.loads(told.out) == agent.status()
    assert told.err == ""


@pytest.mark.parametrize(("health", "status"), [("ok", 0), ("degraded", 1), ("down", 2)])
async def test_health(agent: MemoryAgent, run: Run, health: str, status: int) -> None:
    agent.health_status = health
    shown = await run("health")
    assert (shown.status, shown.out.splitlines()[0]) == (status, health)
    told = await run("health", "--json")
    assert (told.status, json.loads(told.out)) == (status, agent.health())


async def test_streams(agent: MemoryAgent, run: Run) -> None:
    shown = await run("streams", "--tunnel", "demo")
    assert [line.split()[0] for line in shown.out.splitlines()] == ["ID", "aa11cc", "aa22cc"]
    assert [
        one["request_id"] for one in json.loads((await run("streams", "--kind", "http", "--json")).out)["streams"]
    ] == ["aa22cc"]
    agent.live.clear()
    assert (await run("streams")).out == "no streams\n"
    assert json.loads((await run("streams", "--json")).out) == {"streams": []}


@pytest.mark.parametrize("columns", [20, 40, 80, 132])
async def test_tables_fit(agent: MemoryAgent, run: Run, columns: int) -> None:
    agent.add(stream_info("long", path="/" + "ab/漢字/" * 60, client="[2001:db8::1]:40000", last_event_id="x" * 300))
    agent.tunnels["long"] = tunnel_status("long", public_url="https://tunnel.example.org/t/" + "n" * 63 + "/")
    for verb in ("streams", "status"):
        shown = await run(verb, COLUMNS=str(columns))
        assert shown.status == 0
        assert max(map(width_of, shown.out.splitlines())) <= columns
    whole = await run("streams")  # a pipe has no width
    assert "ab/漢字/" * 60 in whole.out


async def test_what_is_known_of_a_tunnel_fits_too(agent: MemoryAgent, run: Run) -> None:
    address = "https://tunnel.example.org/t/" + "n" * 63
    agent.tunnels["demo"] = tunnel_status("demo", public_url=address, last_error="a word " * 40)
    whole, folded = await run("info", "demo"), await run("info", "demo", COLUMNS="60")
    assert whole.status == folded.status == 0
    assert [line for line in folded.out.splitlines() if width_of(line) > 60] == [f"address      {address}/"]
    # Since when it is connected is told by the clock, which goes on between the two.
    words, same = (re.sub(r"since\s+[-\d]+\s+[:\d]+", "since then", one.out).split() for one in (folded, whole))
    assert words == same
    assert "then" in words
    assert max(map(width_of, whole.out.splitlines())) > 200


async def test_a_visitor_writes_nothing_to_the_terminal(agent: MemoryAgent, run: Run) -> None:
    agent.add(stream_info("evil", path="/\x1b[2J\x9b2J\u202e", last_event_id="\ud800"))
    for words in (("streams",), ("streams", "--json")):
        shown = await run(*words, LANG="C.UTF-8")
        assert shown.status == 0
        assert not set("\x1b\x9b") & set(shown.out)
    assert "\\x1b[2J\\x9b2J\\u202e" in (await run("streams")).out


async def test_cancel_by_id_and_prefix(agent: MemoryAgent, run: Run) -> None:
    assert (await run("cancel", "aa11cc")).out == "cancelled aa11cc\n"
    assert json.loads((await run("cancel", "b", "--json")).out) == {"cancelled": ["bb33cc"]}
    gone = await run("cancel", "aa11cc")
    assert (gone.status, gone.out) == (1, "")
    assert "no stream 'aa11cc'" in gone.err
    agent.add(stream_info("aa2"))
    assert (await run("cancel", "aa2")).out == "cancelled aa2\n"  # a whole id is never ambiguous
    agent.add(stream_info("aa33cc"))
    ambiguous = await run("cancel", "aa")
    assert ambiguous.status == 1
    assert "aa22cc" in ambiguous.err
    assert "aa33cc" in ambiguous.err
    assert set(agent.live) == {"aa22cc", "aa33cc"}
    assert (await run("cancel", "aa2", "zz")).status == 1
    assert set(agent.live) == {"aa22cc", "aa33cc"}  # one that is wrong: none of them


@pytest.mark.parametrize(
    ("words", "cancelled"),
    [
        (["--tunnel", "demo"], ["aa11cc", "aa22cc"]),
        (["--kind", "http"], ["aa22cc"]),
        (["--path", "/up*"], ["aa22cc"]),
        (["--older-than", "1m"], ["aa11cc"]),
        (["--idle", "30s", "--tunnel", "demo"], ["aa11cc"]),
        (["--all"], ["aa11cc", "aa22cc", "bb33cc"]),
    ],
)
async def test_cancel_by_filter_without_a_terminal(run: Run, words: list[str], cancelled: list[str]) -> None:
    assert json.loads((await run("cancel", *words, "--json")).out) == {"cancelled": cancelled}
    again = await run("cancel", *words)
    assert (again.status, again.out, again.err) == (1, "", "tunnelctl: no stream fits\n")


async def test_reload(agent: MemoryAgent, run: Run) -> None:
    assert (await run("reload")).out == "nothing changed\n"
    agent.changed = ["tunnel demo: sse.keepalive is 15 s"]
    assert (await run("reload")).out == "tunnel demo: sse.keepalive is 15 s\n"
    agent.faults = ["a.yaml:3: heartbaet: unknown key", "a.yaml:9: tunnels: expected a list"]
    bad = await run("reload")
    assert (bad.status, bad.out) == (1, "")
    assert bad.err.splitlines() == [f"tunnelctl: {fault}" for fault in agent.faults]


async def test_reconnect_and_drain(agent: MemoryAgent, run: Run) -> None:
    assert (await run("reconnect", "demo")).status == 0
    missing = await run("reconnect", "nix")
    assert (missing.status, missing.out) == (1, "")
    assert "no tunnel 'nix'" in missing.err
    assert "3 streams left" in (await run("drain")).out
    assert agent.draining


async def test_events_until_ctrl_c(agent: MemoryAgent, path: Path) -> None:
    process = await start("events", "--socket", str(path))
    assert process.stdout is not None
    await agent.subscribed.wait()
    agent.publish("tunnel", tunnel="demo", state="offline", error="it is gone")
    line = (await process.stdout.readline()).decode()
    assert line.split()[1:4] == ["tunnel", "tunnel=demo", "state=offline"]
    assert 'error="it is gone"' in line
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_events_as_json_and_the_agents_end(agent: MemoryAgent, folder: Path) -> None:
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        process = await start("--json", "--socket", str(folder / "c.sock"), "events")
        assert process.stdout is not None
        await agent.subscribed.wait()
        agent.publish("stream_opened", request_id="x")
        assert json.loads(await process.stdout.readline())["request_id"] == "x"
    _, err = await process.communicate()
    assert process.returncode == 3
    assert b"stopping" in err


async def test_some_events_are_left_to_the_agent(agent: MemoryAgent, path: Path) -> None:
    process = await start(
        "events", "--json", "--type", "tunnel", "--tunnel", "demo", "--tunnel", "other", "--socket", str(path)
    )
    assert process.stdout is not None
    await agent.subscribed.wait()
    assert not agent.tells_streams
    for name in ("demo", "third", "other"):
        agent.publish("heartbeat", tunnel=name, ok=True)
        agent.publish("tunnel", tunnel=name, state="offline")
    told = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert [(one["type"], one["tunnel"]) for one in told] == [("tunnel", "demo"), ("tunnel", "other")]
    process.send_signal(signal.SIGINT)
    assert (await process.communicate())[0] == b""


async def test_events_end_when_the_pipe_is_closed(agent: MemoryAgent, path: Path) -> None:
    ours, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tunnelctl", "events", "--socket", str(path), stdout=theirs, env=environment()
    )
    os.close(theirs)
    await agent.subscribed.wait()
    os.close(ours)
    assert await process.wait() == 0  # with no event to write


async def test_a_closed_pipe_is_no_error(agent: MemoryAgent, path: Path) -> None:
    agent.add(*(stream_info(f"{number:08}") for number in range(3000)))
    ours, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tunnelctl",
        "streams",
        "--socket",
        str(path),
        stdout=theirs,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    os.close(theirs)
    os.close(ours)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["stauts"], "did you mean status?"),
        (["open", "x"], "SERVICE"),
        (["close"], "NAME or --all"),
        (["status", "--jsn"], "did you mean --json?"),
        (["status", "extra"], "extra"),
        (["cancel"], "say which"),
        (["cancel", "x", "--all"], "not both"),
        (["cancel", "--older-than", "soon"], "not a duration"),
        (["cancel", "--kind", "smtp"], "smtp"),
        (["reconnect"], "NAME"),
        (["completion", "tcsh"], "tcsh"),
        (["status", "--socket"], "expected one argument"),
        (["status", "--socket", "/x", "--instance", "y"], "not both"),
        (["status", "--instance", "../x"], "no name"),
        (["--socket"], "give a verb"),
        (["--json"], "give a verb"),
    ],
)
async def test_usage(words: list[str], hint: str) -> None:
    done = await ctl(*words)
    assert (done.status, done.out) == (2, "")
    assert hint in done.err
    assert len(done.err.splitlines()) == 1


async def test_the_unit_that_is_named_is_the_instances_own() -> None:
    for words, unit in ((("--socket", "/none/c.sock"), "tunneld"), (("--instance", "none"), "tunneld@none")):
        done = await ctl("status", *words)
        assert (done.status, done.out) == (3, "")
        assert f"(systemctl status {unit})" in done.err


async def test_no_verb_shows_the_verbs() -> None:
    done = await ctl()
    assert (done.status, done.out) == (2, "")
    assert "streams" in done.err
    assert (await ctl("--help")).out == (await ctl("help")).out == done.err
    assert "--older-than" in (await ctl("cancel", "--help")).out


async def test_version_and_options_before_or_after(path: Path) -> None:
    for words in (("--version",), ("status", "--version"), ("--version", "status")):
        assert (await ctl(*words)).out == f"tunnelctl {__version__}\n"
    for words in (
        ("--socket", str(path), "--json", "status"),
        ("status", f"--socket={path}", "--json"),
        ("--json", "status", "--socket", str(path)),
    ):
        assert json.loads((await ctl(*words)).out)["pid"] == 4242
    assert (await ctl("--kind", "http", "streams", "--socket", str(path))).out.count("\n") == 2


async def test_which_socket(agent: MemoryAgent, path: Path, folder: Path) -> None:
    assert (await ctl("health", env={"TUNNELD_SOCKET": str(path)})).status == 0
    wrong = await ctl("health", "--socket", str(folder / "no"), env={"TUNNELD_SOCKET": str(path)})
    assert wrong.status == 3
    assert f"/run/tunneld-x{os.getpid()}/control.sock" in (await ctl("health", "--instance", f"x{os.getpid()}")).err
    async with ControlServer(lambda: create_app(agent), folder / "tunneld" / "control.sock"):
        if not Path("/run/tunneld/control.sock").exists():
            assert (await ctl("health", env={"XDG_RUNTIME_DIR": str(folder)})).status == 0


async def test_not_reachable(folder: Path) -> None:
    import socket

    (folder / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "stale"))
    for name, hint in (("none", "is it running"), ("file", "not a socket"), ("stale", "has ended"), ("f" * 120, "")):
        done = await ctl("status", "--socket", str(folder / name))
        assert (done.status, done.out) == (3, "")
        assert hint in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200",
    ],
)
async def test_something_else_answers(folder: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "c.sock")
    try:
        done = await ctl("status", "--socket", str(folder / "c.sock"))
    finally:
        server.close()
        await server.wait_closed()
    assert done.status == 3
    assert len(done.err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_not_ours_to_use_names_the_group(path: Path, folder: Path) -> None:
    import grp

    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, 65534))
    folder.chmod(0o755)
    os.chown(path, -1, group.gr_gid)
    script = (
        "import os, sys, grp, pwd, shutil; from tunnelctl.cli import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "status", "--socket", str(path), stderr=asyncio.subprocess.PIPE, env=environment()
    )
    _, err = await process.communicate()
    assert process.returncode == 3
    assert f"join group {group.gr_name}" in err.decode()


async def test_an_answer_of_another_shape_is_one_line(agent: MemoryAgent, run: Run) -> None:
    for words in (("streams",), ("cancel", "x")):
        agent.live = {"x": {"tunnel": "demo", "kind": "sse", "request_id": None}}  # type: ignore[dict-item]
        done = await run(*words)
        assert (done.status, len(done.err.splitlines())) == (1, 1)
        assert "another version" in done.err
