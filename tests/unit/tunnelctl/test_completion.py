import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tunnelctl.cli import VERBS
from tunnelctl.completion import SCRIPTS
from tunnelctl.render import to_json

STREAMS = to_json({"streams": [{"request_id": "aa11", "path": "/x"}, {"request_id": "$(touch pwned)"}]})
STATUS = to_json({"tunnels": [{"name": "demo", "state": "online"}]})


@pytest.fixture
def bash(folder: Path):
    """Completes a command line in a real bash, with a tunnelctl that answers from two texts."""
    fake = folder / "tunnelctl"
    fake.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {folder}/asked\n'
        f"case \"$*\" in *streams*) cat <<'E'\n{STREAMS}\nE\n;; *status*) cat <<'E'\n{STATUS}\nE\n;; esac\n"
    )
    fake.chmod(0o755)
    (folder / "script").write_text(SCRIPTS["bash"])

    def complete(*line: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in line)
        script = (
            f"source {folder}/script; COMP_WORDS=(tunnelctl {quoted}); COMP_CWORD={len(line)}; "
            "_tunnelctl; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        env = {"PATH": f"{folder}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", script], env=env, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash(bash, folder: Path) -> None:
    assert bash("") == list(VERBS)
    assert bash("st") == ["status", "streams"]
    assert bash("cancel", "") == ["aa11"]
    assert bash("cancel", "b") == []
    assert not (folder / "pwned").exists()
    assert bash("reconnect", "") == ["demo"]
    assert bash("streams", "--tunnel", "d") == ["demo"]
    assert bash("streams", "--kind", "") == ["sse", "http", "websocket"]
    assert bash("cancel", "--o") == ["--older-than"]
    assert bash("status", "--j") == ["--json"]
    assert bash("completion", "") == ["bash", "zsh", "fish"]
    (folder / "asked").unlink()
    assert bash("--socket", "/x y", "cancel", "a") == ["aa11"]
    assert (folder / "asked").read_text() == "--socket /x y streams --json\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str, folder: Path) -> None:
    script = SCRIPTS[shell]
    assert "@" not in script.replace('"$@"', "").replace("${at[@]}", "")
    for verb in VERBS:
        assert verb in script
    if shutil.which(shell) is None:
        return  # its syntax is checked where the shell is
    (folder / "script").write_text(script)
    subprocess.run([shell, "-n", folder / "script"], check=True)
