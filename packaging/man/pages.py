"""The manual, made of what the programs say of themselves: `python packaging/man/pages.py FOLDER` writes every page.

A verb, an option or a key that is added stands in the next build's pages by itself. What is written by hand here is
only what no parser and no model knows: signals, files, exit statuses.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import os
import sys
from pathlib import Path
from typing import get_type_hints

sys.path.insert(0, str(Path(__file__).parent))

from keys import Key, keys
from roff import Page

import tunneld.__main__ as daemon
from tunnelctl import cli
from tunnelctl.doctor.findings import CHECKS
from tunneld import __version__, commands
from tunneld.config.agent import AgentConfig
from tunneld.config.server import ServerConfig
from tunneld.control.event_shapes import BY_TYPE

__all__ = ["PAGES", "write"]

EXAMPLES = Path(__file__).parents[2] / "config"
_UNITS = (
    "Durations are written `500ms`, `30s`, `2m`, `1h`, `90d` or as plain seconds; sizes `256KiB`, `4MiB` or as plain "
    "bytes; flags `true` or `false`. An unknown key is an error, and `tunneld check` says what is wrong with a file, "
    "line by line."
)


def _page(title: str, section: str, what: str) -> Page:
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH") or (EXAMPLES / "tunneld.yaml").stat().st_mtime)
    date = datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()
    page = Page(
        title=title, section=section, date=date, source=f"tunneld {__version__}", manual="The tunnel and its sidecar"
    )
    page.name(title, what)
    return page


def _sentence(text: str) -> str:
    first = text if "://" in text.partition(" ")[0] else f"{text[:1].upper()}{text[1:]}"
    return f"{first.removesuffix('.')}."


def _see_also(page: Page, *others: str) -> None:
    page.section("See also")
    page.text(", ".join(f"`{other}`" for other in others))


# -- commands ----------------------------------------------------------------------------------------------------------


def _invocation(action: argparse.Action) -> str:
    """How an option or argument is written: ``--config, -c FILE``."""
    choices = "|".join(map(str, action.choices or ()))
    value = choices or (action.metavar if isinstance(action.metavar, str) else None) or action.dest.upper()
    if not action.option_strings:
        return f"{value} …" if action.nargs in ("*", "+") else value
    value = f" {value}" + (" …" if action.nargs in ("*", "+") else "")
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else value)


def _usage(program: str, parser: argparse.ArgumentParser) -> str:
    """The parser's own usage, on one line."""
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _command(page: Page, usage: str, summary: str, parser: argparse.ArgumentParser, shared: set[str]) -> None:
    page.part(usage)
    page.text(_sentence(summary))
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not shared & set(action.option_strings):
            page.item(_invocation(action), _sentence((action.help or "").replace("%%", "%")))


def _shared(parsers: list[argparse.ArgumentParser]) -> set[str]:
    """The options that every verb has."""
    return set.intersection(*({spelling for a in one._actions for spelling in a.option_strings} for one in parsers))


def _shared_items(page: Page, parser: argparse.ArgumentParser, shared: set[str]) -> None:
    for action in parser._actions:
        if shared & set(action.option_strings):
            page.item(_invocation(action), _sentence((action.help or "").replace("%%", "%")))


def tunneld_8() -> Page:
    """The daemon's command line."""
    page = _page("tunneld", "8", "tunnel server and sidecar agent for HTTP and event streams")
    parsers = {words: daemon.parser_for(words) for words in commands.COMMANDS}
    shared = _shared(list(parsers.values()))
    page.section("Synopsis")
    for line in daemon.overview().splitlines():
        if line.startswith("usage: "):
            page.text(f"`{line.removeprefix('usage: ')}`")
    page.section("Description")
    page.text(
        "`tunneld agent` runs beside services on a private machine and holds one WebSocket to a `tunneld server` on a "
        "public one. Visitors of the server reach the services through it, and their bytes pass as they are made. Both "
        "ends know at every moment what is connected; `tunnelctl` shows and cancels it. Without a command: agent. "
        "Options are taken before and after the command alike."
    )
    page.section("Options")
    _shared_items(page, next(iter(parsers.values())), shared)
    page.section("Commands")
    for words, parser in parsers.items():
        _command(page, _usage("tunneld", parser), commands.COMMANDS[words].help, parser, shared)
    page.section("Signals")
    page.item("SIGHUP", "Read the configuration again and apply what changed; a bad file changes nothing.")
    page.item(
        "SIGTERM, SIGINT",
        "Take no new streams, let those under way end for `drain_timeout`, end the rest visibly, then leave. A second "
        "one leaves at once.",
    )
    page.section("Environment")
    page.item("TUNNELD_TOKEN", "The agent's credential, where neither `token_file` nor a systemd credential names it.")
    page.item("CREDENTIALS_DIRECTORY", "Set by systemd: the credential is read from `tunneld.token` in it.")
    page.item("HTTPS_PROXY, NO_PROXY", "The proxy that the agent dials through, unless `server.proxy` is set.")
    page.item("TUNNELD_DEBUG", "`1` shows a defect's traceback.")
    page.section("Files")
    for role, path in commands.DEFAULT_FILES.items():
        page.item(path, f"The {role}'s configuration.")
    page.item("/etc/credstore/tunneld.token", "The agent's credential, which systemd hands to its unit alone.")
    page.item("/run/tunneld/control.sock", "The agent's control socket; its group may use `tunnelctl`.")
    page.section("Exit status")
    page.item("0", "Done; a daemon that was told to stop.")
    page.item("1", "What was asked for failed.")
    page.item("2", "Bad usage or bad configuration; a service manager does not try again.")
    page.item(str(daemon.EXIT_DEFECT), "A defect of the program.")
    _see_also(page, "tunnelctl(1)", "tunneld.yaml(5)", "tunneld-server.yaml(5)")
    return page


def _events(page: Page) -> None:
    """What ``events`` tells, from the shapes that OpenAPI is made of."""
    page.section("What events tells")
    page.text(
        "`tunnelctl events --json` prints an object a line, as `GET /v1/events` sends it: `id`, which rises, over "
        "restarts of the agent too; `type`; `time`, ISO 8601 in UTC; and the keys of its type. `--since ID` (the "
        "header `Last-Event-ID`) goes on behind that event, after an event `gap` where not all since then is kept: a "
        "restarted agent knows nothing of what came before it. With `--type` and `--tunnel` (parameters `type` and "
        "`tunnel` of the call) the agent sends some, `gap` and `lagged` always; where no reader asks for events "
        "of streams, those are not made. New types and keys may come; pass over those that you do not know."
    )
    for name, shape in BY_TYPE.items():
        keys = [key for key in get_type_hints(shape) if key not in ("id", "type", "time")]
        page.item(name, f"{inspect.getdoc(shape)} Keys: {', '.join(f'`{key}`' for key in keys)}.")


def tunnelctl_1() -> Page:
    """The operator's command line."""
    page = _page("tunnelctl", "1", "show and cancel what a tunneld agent has connected")
    parsers = {name: cli.parser_for(name) for name in cli.VERBS}
    shared = _shared(list(parsers.values()))
    page.section("Synopsis")
    page.text("`tunnelctl VERB [options]`")
    page.section("Description")
    page.text(
        "Talks to the control socket of a running `tunneld agent`. To use it, be in the socket's group (`tunneld` in "
        "the packaged service). Options are taken before and after the verb alike; ids may be shortened to a prefix "
        "that fits one stream."
    )
    page.section("Options")
    _shared_items(page, next(iter(parsers.values())), shared)
    page.section("Verbs")
    for name, parser in parsers.items():
        _command(page, _usage("tunnelctl", parser), cli.VERBS[name].summary, parser, shared)
    page.section("Environment")
    page.item("TUNNELD_SOCKET", "The control socket, where neither `--socket` nor `--instance` is given.")
    page.item("NO_COLOR", "Set to anything: no colours.")
    page.item("TUNNELD_DEBUG", "`1` shows a defect's traceback.")
    page.section("Files")
    page.item(cli.SYSTEM_SOCKET, "The control socket of the packaged service.")
    _events(page)
    page.section("What doctor finds")
    page.text(
        "`tunnelctl doctor --json` prints an object with `status` (`ok`, `warn` or `fail`: the worst), `version` (of "
        "tunnelctl) and `findings`, in the order in which things were looked at. Each has an `id`, a stable word of "
        "the list below, which may stand several times; a `subject`, the tunnel's name where each has one of its own, "
        "else null; `check`, both together; a `status`: `ok`, `warn` (works, but not as it might), `fail` (does not "
        "work) or `skip` (could not be looked at); a sentence `detail`; and `advice`, what to do about it, empty where "
        "there is nothing."
    )
    for name, what in CHECKS.items():
        page.item(name, _sentence(what))
    page.text(
        "`--bundle FILE` writes the report, versions, the configuration, the agent's answers, its metrics and the end "
        "of its journal into a new file (.tar.gz, mode 0600, at most 1 MiB of each; a file that is there stays). "
        "Values of keys that may hold a secret, credentials, queries, and visitors' addresses and paths are taken out."
    )
    page.section("Exit status")
    page.item("0", "Done. Of `health`: ok. Of `doctor`: nothing fails, though it may warn.")
    page.item(
        "1", "What was asked for failed: no such stream, say. Of `health`: degraded. Of `doctor`: something fails."
    )
    page.item("2", "Bad usage. Of `health`: down.")
    page.item("3", "The agent is not reachable, or its socket is not yours to use.")
    _see_also(page, "tunneld(8)", "tunneld.yaml(5)")
    return page


# -- files -------------------------------------------------------------------------------------------------------------


def _keys_of(page: Page, found: list[Key] | tuple[Key, ...]) -> None:
    for key in found:
        if not key.section:
            page.item(key.path, *_said(key))
    for key in found:
        if key.section:
            page.part(f"{key.path}: {key.kind}")
            if key.text:
                page.text(_sentence(key.text))
            _keys_of(page, key.inner)


def _said(key: Key) -> list[str]:
    ends = ["It has to be given."] if key.required else []
    ends += [f"Default: `{key.default}`."] if key.default is not None else []
    repeats = key.text.replace(", ", "") in key.kind.replace("`", "").replace(", ", "")  # a list of the choices
    lines = [_sentence(key.text)] if key.text and not repeats else []
    return [*lines, " ".join([_sentence(key.kind), *ends])]


def tunneld_yaml_5() -> Page:
    """The agent's file."""
    page = _page("tunneld.yaml", "5", "configuration of tunneld agent")
    page.section("Description")
    page.text(f"`{commands.DEFAULT_FILES['agent']}`, YAML. {_UNITS}")
    page.text("A changed file is applied by `systemctl reload tunneld` or `tunnelctl reload`; streams go on.")
    page.section("Example")
    page.block(
        """
        server:
          url: wss://tunnel.example.org
        tunnels:
          - name: demo
            service: http://127.0.0.1:9000
        """
    )
    page.section("Keys")
    _keys_of(page, keys(AgentConfig, EXAMPLES / "tunneld.yaml"))
    _see_also(page, "tunneld(8)", "tunnelctl(1)", "tunneld-server.yaml(5)")
    return page


def tunneld_server_yaml_5() -> Page:
    """The server's file."""
    page = _page("tunneld-server.yaml", "5", "configuration of tunneld server")
    page.section("Description")
    page.text(f"`{commands.DEFAULT_FILES['server']}`, YAML. {_UNITS}")
    page.section("Keys")
    _keys_of(page, keys(ServerConfig, EXAMPLES / "server.yaml"))
    _see_also(page, "tunneld(8)", "tunneld.yaml(5)")
    return page


PAGES = {
    "tunneld.8": tunneld_8,
    "tunnelctl.1": tunnelctl_1,
    "tunneld.yaml.5": tunneld_yaml_5,
    "tunneld-server.yaml.5": tunneld_server_yaml_5,
}
"""Each page's file name and what makes it."""


def write(folder: Path) -> None:
    """Write every page into `folder`, made when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folder / name).write_text(str(make()), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
