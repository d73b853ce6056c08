"""What each verb does: a call or two, and its answer for people or as the API's JSON. Each returns an exit status."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tunnelctl.client import Client, Refused, Unreachable
from tunnelctl.render import (
    Column,
    Screen,
    clean,
    duration,
    elide,
    parse_duration,
    plural,
    safe_json,
    size,
    table,
    to_json,
)
from tunneld import __version__
from tunneld.errors import TunneldError, UsageError

if TYPE_CHECKING:
    import threading

    from tunneld.control.models.agent import Health, Status
    from tunneld.control.models.streams import Filter, StreamInfo
    from tunneld.control.models.tunnels import TunnelStatus

__all__ = ["cancel", "completion", "drain", "events", "health", "reconnect", "reload", "status", "streams", "top"]

_HEALTH_EXIT = {"ok": 0, "degraded": 1, "down": 2}
_COLOURS = {
    "online": "green",
    "ok": "green",
    "connecting": "yellow",
    "degraded": "yellow",
    "resuming": "yellow",
    "draining": "yellow",
    "offline": "red",
    "failed": "red",
    "down": "red",
}
_TUNNELS = (
    Column("TUNNEL", least=8),
    Column("STATE"),
    Column("PUBLIC URL", least=40),
    Column("SERVICE", least=12, drop=1),
    Column("STREAMS", right=True),
    Column("UP", right=True, drop=2),
    Column("PONG", right=True, drop=3),
    Column("RECONNECTS", right=True, drop=4),
)
_STREAMS = (
    Column("ID"),
    Column("TUNNEL", least=8),
    Column("KIND"),
    Column("METHOD", drop=3),
    Column("PATH", least=12),
    Column("CLIENT", least=9, drop=2),
    Column("STATE", drop=7),
    Column("AGE", right=True),
    Column("IDLE", right=True, drop=1),
    Column("IN", right=True, drop=6),
    Column("OUT", right=True, drop=4),
    Column("EVENTS", right=True, drop=5),
    Column("LAST ID", least=6, drop=8),
)


def _say(line: str, screen: Screen) -> None:
    print(line if screen.width is None else elide(line, screen.width))


def _say_troubles(one: TunnelStatus, screen: Screen) -> None:
    """What is wrong with a tunnel, and its last outage."""
    if one["last_error"] and one["state"] != "online":
        _say(f"  {clean(one['name'])}: {clean(one['last_error'])}", screen)
    if (outages := one.get("outages")) and (last := outages["last"]):
        cost = f"{size(last['replayed_bytes'])} sent again, nothing lost"
        if not last["resumed"]:
            cost = f"not resumed, {plural(last['streams_lost'], 'stream')} lost"
        lasted = f"the last for {duration(last['seconds'])} at {clean(last['at'])}: {cost}"
        _say(f"  {clean(one['name'])}: {plural(outages['count'], 'outage')}, {lasted}", screen)


def status(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show the agent and its tunnels."""
    found: Status = client.call("GET", "/v1/status")
    if args.json:
        print(to_json(found))
        return 0
    server = clean(found["server"] or "no server")
    head = f"tunneld {found['version']} · pid {found['pid']} · up {duration(found['uptime_s'])} · {server}"
    _say(clean(head), screen)
    if found["config_file"]:
        _say(f"config {clean(found['config_file'])}", screen)
    print()
    rows = [
        (
            one["name"],
            one["state"],
            one["public_url"] or "-",
            one["service"],
            one["active_streams"],
            duration(one["connected_s"]),
            duration(one["heartbeat"]["last_pong_s"]),
            one["reconnects"],
        )
        for one in found["tunnels"]
    ]
    for line in table(_TUNNELS, rows, screen, paint=_COLOURS) if rows else ["no tunnels"]:
        print(line)
    for one in found["tunnels"]:
        _say_troubles(one, screen)
    totals = found["totals"]
    print()
    _say(
        f"{plural(totals['active_streams'], 'stream')} now, {totals['streams']} in all · "
        f"{size(totals['bytes_in'])} in, {size(totals['bytes_out'])} out",
        screen,
    )
    if found["version"] != __version__:
        print(f"tunnelctl: this is {__version__}; the {client.daemon} is {clean(found['version'])}", file=sys.stderr)
    return 0


def health(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show each check; the exit status is the agent's health."""
    found: Health = client.call("GET", "/v1/health")
    if args.json:
        print(to_json(found))
    else:
        print(screen.paint(clean(found["status"]), _COLOURS.get(found["status"])))
        columns = (Column("CHECK"), Column("STATUS"), Column("DETAIL", least=20))
        rows = [(one["name"], one["status"], one["detail"]) for one in found["checks"]]
        for line in table(columns, rows, screen, paint=_COLOURS) if rows else []:
            print(line)
    return _HEALTH_EXIT.get(found["status"], 2)


def streams(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show the streams under way."""
    query = {"tunnel": args.tunnel, "kind": args.kind}
    given = urlencode({key: value for key, value in query.items() if value is not None})
    answer = client.call("GET", f"/v1/streams?{given}" if given else "/v1/streams")
    if args.json:
        print(to_json(answer))
        return 0
    found: list[StreamInfo] = answer["streams"]
    if not found:
        print("no streams")
        return 0
    for line in _stream_lines(found, screen):
        print(line)
    return 0


def _stream_lines(found: list[StreamInfo], screen: Screen) -> list[str]:
    rows = [
        (
            one["request_id"],
            one["tunnel"],
            one["kind"],
            one["method"],
            one["path"],
            one["client"],
            one["state"],
            duration(one["age_s"]),
            duration(one["idle_s"]),
            size(one["bytes_in"]),
            size(one["bytes_out"]),
            one["events"] if one["kind"] == "sse" else "-",
            one["last_event_id"] or "-",
        )
        for one in found
    ]
    return table(_STREAMS, rows, screen)


def cancel(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Cancel by ids or by filter; ask first where several would go and someone is there to answer."""
    wanted = _filter(args)
    if args.ids and wanted:
        raise UsageError("give ids or a filter, not both")
    if not args.ids and not wanted:
        raise UsageError("say which: ids, --tunnel, --kind, --path, --older-than, --idle or --all")
    if wanted and (args.yes or not _someone_answers()):
        done: list[str] = client.call("POST", "/v1/streams/cancel", wanted)["cancelled"]
        missing: list[str] = []
    else:
        live: list[StreamInfo] = client.call("GET", "/v1/streams")["streams"]
        chosen = _resolve(args.ids, live) if args.ids else _matching(wanted, live)
        if len(chosen) > 1 and not args.yes and _someone_answers() and not _confirmed(chosen, screen):
            print("tunnelctl: nothing was cancelled", file=sys.stderr)
            return 1
        done, missing = _cancel_each(client, [one["request_id"] for one in chosen])
    if args.json:
        print(to_json({"cancelled": done}))
    else:
        for request_id in done:
            print(f"cancelled {clean(request_id)}")
    for request_id in missing:
        print(f"tunnelctl: {clean(request_id)} had already ended", file=sys.stderr)
    if not done and not missing:
        print("tunnelctl: no stream fits", file=sys.stderr)
    return 0 if done and not missing else 1


def _filter(args: argparse.Namespace) -> Filter:
    wanted: dict[str, Any] = {
        "tunnel": args.tunnel,
        "kind": args.kind,
        "path": args.path,
        "older_than_s": None if args.older_than is None else parse_duration(args.older_than),
        "idle_s": None if args.idle is None else parse_duration(args.idle),
        "all": args.all or None,
    }
    return {key: value for key, value in wanted.items() if value is not None}  # type: ignore[return-value]


def _someone_answers() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _matching(wanted: Filter, live: list[StreamInfo]) -> list[StreamInfo]:
    from tunneld.control.models.streams import matches

    return [one for one in live if matches(one, wanted)]


def _resolve(prefixes: list[str], live: list[StreamInfo]) -> list[StreamInfo]:
    """Return the one stream of each id or prefix."""
    chosen: dict[str, StreamInfo] = {}
    faults = []
    for prefix in prefixes:
        fitting = [one for one in live if one["request_id"] == prefix] or [
            one for one in live if prefix and one["request_id"].startswith(prefix)
        ]
        if len(fitting) == 1:
            chosen[fitting[0]["request_id"]] = fitting[0]
        elif fitting:
            faults.append(f"{prefix!r} fits {len(fitting)} streams; give more of the id:")
            faults += [f"  {one['request_id']}  {one['tunnel']}  {one['path']}" for one in fitting]
        else:
            faults.append(f"no stream {prefix!r}; `tunnelctl streams` lists those under way")
    if faults:
        raise TunneldError("\n".join(faults))
    return list(chosen.values())


def _confirmed(chosen: list[StreamInfo], screen: Screen) -> bool:
    for line in _stream_lines(chosen[:20], screen):
        print(line, file=sys.stderr)
    if len(chosen) > 20:
        print(f"… and {len(chosen) - 20} more", file=sys.stderr)
    print(f"Cancel these {len(chosen)} streams? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _cancel_each(client: Client, request_ids: list[str]) -> tuple[list[str], list[str]]:
    """Cancel exactly these; return what was cancelled, and what had ended meanwhile."""
    done: list[str] = []
    missing: list[str] = []
    for request_id in request_ids:
        try:
            done += client.call("DELETE", f"/v1/streams/{quote(request_id, safe='')}")["cancelled"]
        except Refused as error:
            if error.code != "no_such_stream":
                raise
            missing.append(request_id)
    return done, missing


def reload(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Apply the changed file and show what changed."""
    answer = client.call("POST", "/v1/reload")
    if args.json:
        print(to_json(answer))
        return 0
    for line in answer["changed"]:
        print(clean(line))
    for line in answer.get("restart", ()):
        print(f"after a restart: {clean(line)}")
    if not answer["changed"] and not answer.get("restart"):
        print("nothing changed")
    return 0


def reconnect(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Let one tunnel dial again."""
    if not args.name:
        raise UsageError("give the tunnel's name")
    answer = client.call("POST", f"/v1/tunnels/{quote(args.name, safe='')}/reconnect")
    print(to_json(answer) if args.json else f"{clean(answer['tunnel'])} dials again; it was {answer['was']}")
    return 0


def top(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show the live screen."""
    from tunnelctl.top.command import run  # here: it loads rich, which no other verb needs

    return run(client, args)


def drain(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Let the agent drain and leave."""
    answer = client.call("POST", "/v1/drain")
    if args.json:
        print(to_json(answer))
    else:
        left = plural(answer["streams"], "stream")
        print(
            f"draining: no new streams; {left} left, which have {duration(answer['timeout_s'])} to end. "
            "Then the agent leaves."
        )
    return 0


def events(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Print a line for each event until Ctrl-C, or until the reader of the pipe leaves."""
    from tunneld.control.models.events import EVENT_TYPES

    if args.since is not None and not (args.since.isascii() and args.since.isdigit()):
        raise UsageError(f"--since: {args.since[:60]!r} is no id of an event; --json shows them")
    for one in args.type or ():
        if one not in EVENT_TYPES:
            raise UsageError(f"--type: {one[:60]!r} is none of {', '.join(EVENT_TYPES)}")
    gone = _watch_stdout(client)
    try:
        asked = [("type", one) for one in args.type or ()] + [("tunnel", one) for one in args.tunnel or ()]
        for text in client.events(args.since, asked):
            if _is_wanted(text, args):
                print(safe_json(text) if args.json else _event_line(text, screen), flush=True)
            if '"lagged"' in text and json.loads(text).get("type") == "lagged":
                raise TunneldError("the agent cut this reader: it took the events too slowly")
    except KeyboardInterrupt:
        return 0  # how one ends it
    except Unreachable:
        if not gone.is_set():
            raise
    if gone.is_set():
        return 0
    raise Unreachable("the agent ended the events; it is stopping")


def _is_wanted(text: str, args: argparse.Namespace) -> bool:
    """Whether an event passes the filters, which an older agent knows nothing of."""
    if not args.type and not args.tunnel:
        return True
    event = json.loads(text)
    if event["type"] in ("gap", "lagged"):  # of the reader itself
        return True
    if args.type and event["type"] not in args.type:
        return False
    return not args.tunnel or event.get("tunnel") in args.tunnel or event.get("subject") in args.tunnel


def _watch_stdout(client: Client) -> threading.Event:
    """End the client's connection when the reader of our stdout leaves, which no read of ours would notice."""
    import select
    import threading

    gone = threading.Event()
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told

    def watch() -> None:
        poll.poll()
        gone.set()
        client.abort()

    threading.Thread(target=watch, daemon=True).start()
    return gone


def _event_line(text: str, screen: Screen) -> str:
    try:
        event = json.loads(text)
    except ValueError:
        return clean(text)
    clock = str(event.pop("time", "")).partition("T")[2].rstrip("Z")
    event.pop("id", None)
    kind = clean(event.pop("type", "?"))
    words = [f"{clean(key)}={clean(_word(value))}" for key, value in event.items() if value is not None]
    return " ".join([screen.paint(clean(clock), "dim"), f"{kind:<13}", *words])


def _word(value: object) -> str:
    if isinstance(value, str) and value and not any(one in value for one in ' "='):
        return value
    return json.dumps(value, ensure_ascii=False)


def completion(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Print a shell's completion script; asks no agent."""
    from tunnelctl.completion import SCRIPTS

    print(SCRIPTS[args.shell], end="")
    return 0
