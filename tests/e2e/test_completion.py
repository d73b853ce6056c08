"""TAB in a real shell, with a live agent: the names of its tunnels and the ids of its streams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import need
from tests.support.daemons import Pair
from tests.support.processes import ROOT, clean_environment
from tests.support.visitors import Curl, request_id


def offered(shell: str, script: Path, *words: str) -> list[str]:
    """What the shell offers for the last of the words."""
    line, last = " ".join(words), len(words) - 1
    text = {
        "bash": f"COMP_WORDS=({line} ''); COMP_CWORD={last + 1}; _tunnelctl; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        "fish": f"complete -C '{line} '",
    }[shell]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = ["--no-config"] if shell == "fish" else []
    done = subprocess.run(
        [need(shell, f"apt-get install {shell}"), *flags, "-c", f"source {script}; {text}"],
        env={**clean_environment(), "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return [one.partition("\t")[0] for one in done.stdout.splitlines() if one]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_live_names_and_ids(shell: str, pair: Pair, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(pair.agent.tunnelctl("completion", shell).stdout)
    at = ("tunnelctl", "--socket", str(pair.agent.socket))
    assert offered(shell, script, *at, "reconnect") == ["app"]
    curl = Curl(pair.url("app", f"/events?id=tab-{shell}&gap=0.1"))
    try:
        curl.wait_line("data: event 1")
        one = request_id(curl.head())
        assert one in offered(shell, script, *at, "cancel")
        assert offered(shell, script, *at, "streams", "--tunnel") == ["app"]
    finally:
        curl.stop()
    nobody = ("tunnelctl", "--socket", str(tmp_path / "nobody.sock"), "cancel")
    assert offered(shell, script, *nobody) == [], "no agent, no names, and no word of it"
