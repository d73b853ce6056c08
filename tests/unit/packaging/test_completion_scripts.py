"""The package's completions: those of tunnelctl are tested with it, here is what tunneld's own are made of."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tunnelctl.completion import SCRIPTS
from tunneld import commands
from tunneld.errors import CODES

FILES = {"bash": "bash/tunneld", "zsh": "zsh/_tunneld", "fish": "fish/tunneld.fish"}


def complete(shell: str, scripts: Path, *words: str) -> list[str]:
    """What a real shell offers behind `tunneld WORDS…`, the last of them unfinished."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    quoted = " ".join(f"'{word}'" for word in words)
    text = {
        "bash": f"COMP_WORDS=(tunneld {quoted}); COMP_CWORD={len(words)}; _tunneld; "
        "printf '%s\\n' \"${COMPREPLY[@]}\"",
        "fish": f"complete -C 'tunneld {' '.join(words)}'",
    }[shell]
    flags = ["--no-config"] if shell == "fish" else []
    command = [shell, *flags, "-c", f"source {scripts / FILES[shell]}; {text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=scripts, stdin=subprocess.DEVNULL)
    assert done.stderr == ""
    return sorted(line.partition("\t")[0] for line in done.stdout.split("\n") if line)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_tunneld(shell: str, scripts: Path) -> None:
    first = {words[0] for words in commands.COMMANDS}
    assert complete(shell, scripts, "") == sorted(first)
    below = {words[2] for words in commands.COMMANDS if words[:2] == ("server", "token")}
    assert complete(shell, scripts, "server", "token", "") == sorted(below)
    assert complete(shell, scripts, "--config", "/x", "server", "tok") == ["token"]
    assert complete(shell, scripts, "explain", "") == sorted(CODES)
    assert complete(shell, scripts, "check", "--role", "") == ["agent", "server"]
    assert complete(shell, scripts, "server", "token", "create", "--exp") == ["--expires"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_written(shell: str, scripts: Path) -> None:
    file = scripts / FILES[shell]
    assert Path(str(file).replace("tunneld", "tunnelctl")).read_text() == SCRIPTS[shell]
    assert "_live" not in file.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", file], check=True)
