"""What the service manager says of the units: the agent's, and a server's on the same machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from typing import Any

from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn

__all__ = ["SERVER", "server", "settings", "systemd", "token_places", "unit_of"]

AGENT, SERVER = "tunneld.service", "tunneld-server.service"
_INSTANCE = re.compile(r"/run/tunneld-([^/]+)/control\.sock")
_PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "MainPID", "NRestarts"),
    *("Result", "ExecMainCode", "ExecMainStatus", "ExecStart", "StartLimitBurst", "StartLimitIntervalUSec"),
)
_KILLED = ("2", "3")
"""`ExecMainCode` of a process that a signal ended, without and with a core."""
_WHY = {
    "start-limit-hit": "it was started too often in too short a time",
    "watchdog": "it hung, and its watchdog ended it",
    "timeout": "it did not start or stop in time",
    "oom-kill": "the kernel ended it: the machine was out of memory",
    "protocol": "it ended without saying that it was ready",
    "resources": "the system lacked what it needs to start",
}
"""What `Result` means, where the exit status says no more."""
_MEANINGS = {"2": "bad usage or configuration; it is not tried again", "70": "a defect"}
"""Of our own exit statuses."""


def unit_of(socket_path: str) -> str:
    """The unit of the agent that has this control socket."""
    found = _INSTANCE.fullmatch(socket_path)
    return f"tunneld@{found[1]}.service" if found else AGENT


def settings(unit: str) -> str:
    """The file that this unit of the package starts its agent with."""
    return f"/etc/tunneld/{unit.removesuffix('.service').partition('@')[2] or 'tunneld'}.yaml"


def state(unit: str) -> str:
    """The folder that this unit of the package gives its agent to write in."""
    instance = unit.removesuffix(".service").partition("@")[2]
    return f"/var/lib/tunneld/{instance}" if instance else "/var/lib/tunneld"


def token_places(unit: str) -> list[str]:
    """Where the token lies that this unit of the package hands to its agent."""
    instance = unit.removesuffix(".service").partition("@")[2]
    name = f"tunneld-{instance}.token" if instance else "tunneld.token"
    return [f"{folder}/{name}" for folder in ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")]


def systemd(unit: str, status: dict[str, Any] | None, config: str) -> Finding:
    """What the service manager says of the agent's unit.

    Args:
        unit: its name.
        status: of the agent that answers; None: none does.
        config: the file that is looked at.
    """
    facts, why_not = _asked(unit)
    if facts is None:
        return skip("systemd", why_not)
    if facts["LoadState"] == "not-found":
        if status is not None:
            return skip("systemd", f"There is no unit {unit}: the agent is started by something else.")
        return warn(
            "systemd",
            f"There is no unit {unit}: nothing starts an agent here.",
            "Install the package (`make deb`), or copy packaging/systemd to /etc/systemd/system, then "
            f"`systemctl enable --now {unit}`.",
        )
    if facts["ActiveState"] == "inactive" and status is not None:
        return warn(
            "systemd",
            f"{unit} is inactive, but an agent answers (pid {status['pid']}): something else started it.",
            f"End that one, then `systemctl enable --now {unit}`, so that it is watched, and there after a boot.",
        )
    found = _not_well("systemd", unit, facts) or _another("systemd", unit, facts, status, config)
    return found or _well("systemd", unit, facts)


def server() -> list[Finding]:
    """The same of a server's unit, where this machine has one that runs, should run, or has failed."""
    facts, _ = _asked(SERVER)
    if facts is None or facts["LoadState"] == "not-found":
        return []
    if facts["ActiveState"] == "inactive" and not facts.get("UnitFileState", "").startswith("enabled"):
        return []
    return [_not_well("systemd-server", SERVER, facts) or _well("systemd-server", SERVER, facts)]


def _asked(unit: str) -> tuple[dict[str, str] | None, str]:
    """Its properties; or None, and why there are none."""
    program = shutil.which("systemctl")
    if program is None or not os.path.isdir("/run/systemd/system"):
        return None, "There is no systemd here."
    command = [program, "show", unit, f"--property={','.join(_PROPERTIES)}"]
    try:
        done = subprocess.run(  # noqa: S603 - systemctl with our own words and a unit's name
            command, capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"systemctl does not answer: {error}."
    facts = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if done.returncode != 0 or "LoadState" not in facts:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        return None, f"systemctl does not tell: {said.rstrip('.')}."
    return facts, ""


def _not_well(check: str, unit: str, facts: dict[str, str]) -> Finding | None:
    """What is wrong with a unit that does not run; None: it runs."""
    journal = f"journalctl -u {unit} -e has why"
    if facts["LoadState"] == "masked":
        return fail(check, f"{unit} is masked: nothing can start it.", f"systemctl unmask {unit}.")
    if facts["LoadState"] != "loaded":
        return fail(
            check, f"{unit} cannot be loaded ({facts['LoadState']}).", f"systemd-analyze verify {unit} has why."
        )
    active, sub = facts["ActiveState"], facts["SubState"]
    if active == "failed":
        if _too_often(facts):
            return fail(
                check,
                f"{unit} has failed, and is not started any more after {facts['StartLimitBurst']} starts within "
                f"{facts['StartLimitIntervalUSec']}: {_last(facts)}.",
                f"{journal}; then systemctl reset-failed {unit} and systemctl start {unit}.",
            )
        return fail(check, f"{unit} has failed: {_last(facts)}.", f"{journal}; then systemctl start {unit}.")
    if active == "inactive":
        return fail(check, f"{unit} is inactive ({_stopped(facts)}).", f"systemctl enable --now {unit}.")
    if sub == "auto-restart":
        return fail(
            check, f"{unit} is started again and again ({facts['NRestarts']} times): {_last(facts)}.", f"{journal}."
        )
    if active != "active":
        return warn(check, f"{unit} is {active} ({sub}).", f"Wait a moment and look again; {journal}.")
    return None


def _another(
    check: str, unit: str, facts: dict[str, str], status: dict[str, Any] | None, config: str
) -> Finding | None:
    """The unit runs, but what is looked at is another agent, or another file."""
    pid = facts.get("MainPID", "0")
    if status is not None and pid not in ("0", str(status["pid"])):
        return warn(
            check,
            f"{unit} is active as pid {pid}, but pid {status['pid']} answers on this socket, with "
            f"{status['config_file']}.",
            "Two agents run: end one, or give --socket or --instance of the one that is meant.",
        )
    own = _config_of(facts)
    if own is not None and os.path.realpath(own) != os.path.realpath(config):
        return warn(
            check,
            f"{unit} is active with {own}; what is looked at here is {config}.",
            f"Give --config {own}, or have the unit use {config} (systemctl edit {unit}).",
        )
    return None


def _well(check: str, unit: str, facts: dict[str, str]) -> Finding:
    """The unit runs: what could still be better."""
    state = f"{facts['ActiveState']} ({facts['SubState']})"
    if facts.get("NeedDaemonReload") == "yes":
        return warn(
            check,
            f"{unit} is {state}, but its file was changed since.",
            f"systemctl daemon-reload, then systemctl restart {unit}.",
        )
    if (restarts := facts.get("NRestarts", "0")) not in ("", "0"):
        return warn(check, f"{unit} is {state}, but was restarted {restarts} times.", f"journalctl -u {unit} has why.")
    if facts.get("UnitFileState") == "disabled":
        return warn(check, f"{unit} is {state}, but will not start at boot.", f"systemctl enable {unit}.")
    return ok(check, f"{unit} is {state}.")


def _too_often(facts: dict[str, str]) -> bool:
    """The start limit holds it down. After crashes `Result` still tells of the last one, so the starts are counted."""
    if facts.get("Result") == "start-limit-hit":
        return True
    burst, restarts = facts.get("StartLimitBurst", ""), facts.get("NRestarts", "")
    return burst.isdecimal() and restarts.isdecimal() and 0 < int(burst) <= int(restarts) + 1


def _last(facts: dict[str, str]) -> str:
    """How its process ended the last time."""
    result, status = facts.get("Result", ""), facts.get("ExecMainStatus", "0")
    if result in ("exit-code", "start-limit-hit") and status != "0" and facts.get("ExecMainCode") not in _KILLED:
        meaning = f" ({_MEANINGS[status]})" if status in _MEANINGS else ""
        return f"the last process ended with exit status {status}{meaning}"
    if result in ("signal", "core-dump") or (facts.get("ExecMainCode") in _KILLED and result == "start-limit-hit"):
        return f"the last process was ended by {_signal(status)}"
    return _WHY.get(result, f"result {result or 'unknown'}")


def _signal(number: str) -> str:
    try:
        return signal.Signals(int(number)).name
    except ValueError:
        return f"signal {number}"


def _stopped(facts: dict[str, str]) -> str:
    return "it will not start at boot" if facts.get("UnitFileState") == "disabled" else facts["SubState"]


def _config_of(facts: dict[str, str]) -> str | None:
    """The file that its command line names; None: none that is seen."""
    argv = re.search(r"argv\[\]=(.*?) ;", facts.get("ExecStart", ""))
    words: list[str] = argv[1].split() if argv else []
    for index, word in enumerate(words):
        if word in ("--config", "-c") and index + 1 < len(words):
            return words[index + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None
