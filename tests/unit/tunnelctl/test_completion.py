import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tunnelctl import cli
from tunnelctl.cli import VERBS, parser_for
from tunnelctl.completion import SCRIPTS, Place, script, verb_of
from tunnelctl.render import to_json

STREAMS = to_json({"streams": [{"request_id": "aa11", "path": "/x"}, {"request_id": "$(touch pwned)"}]})
STATUS = to_json({"tunnels": [{"name": "demo", "state": "online"}]})
NESTED = [
    verb_of(path, f"do {path}", parser_for("completion" if path.endswith("create") else "status"), lambda *_: Place())
    for path in ("agent", "server", "server token list", "server token create")
]


@pytest.fixture
def asked(folder: Path) -> Path:
    """Puts a tunnelctl that answers from two texts beside the scripts; the file has what it was asked, a line each."""
    fake = folder / "tunnelctl"
    fake.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {folder}/asked\n'
        f"case \"$*\" in *streams*) cat <<'E'\n{STREAMS}\nE\n;; *status*) cat <<'E'\n{STATUS}\nE\n;; esac\n"
    )
    fake.chmod(0o755)
    shutil.copy(fake, folder / "nested")
    for shell, text in SCRIPTS.items():
        (folder / shell).write_text(text)
        (folder / f"nested.{shell}").write_text(script(shell, "nested", NESTED))
    return folder / "asked"


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def bash(folder: Path, asked: Path):
    """Completes a command line in a real bash."""

    def complete(*line: str, program: str = "tunnelctl") -> list[str]:
        quoted = " ".join(f"'{word}'" for word in line)
        source = folder / ("bash" if program == "tunnelctl" else f"{program}.bash")
        text = (
            f"source {source}; COMP_WORDS=({program} {quoted}); COMP_CWORD={len(line)}; "
            f"_{program}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        command = [need("bash"), "-c", text]
        env = environment(folder)
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


def test_bash(bash, folder: Path, asked: Path) -> None:
    assert bash("") == list(VERBS)
    assert bash("statu") == ["status"]
    assert bash("cancel", "") == ["aa11"]
    assert bash("cancel", "aa11", "a") == ["aa11"]
    assert bash("cancel", "b") == []
    assert not (folder / "pwned").exists()
    assert bash("reconnect", "") == ["demo"]
    assert bash("reconnect", "demo", "") == []
    assert bash("streams", "--tunnel", "d") == ["demo"]
    assert bash("streams", "--kind", "") == ["sse", "http", "websocket"]
    assert bash("cancel", "--o") == ["--older-than"]
    assert bash("status", "--j") == ["--json"]
    assert bash("--j") == ["--json"]
    assert bash("cancel", "--older-than", "") == []
    assert bash("completion", "") == ["bash", "zsh", "fish"]
    assert bash("--socket", f"{folder}/as") == [f"{folder}/asked"]
    asked.unlink()
    assert bash("--socket", "/x y", "cancel", "a") == ["aa11"]
    assert asked.read_text() == "--socket /x y streams --json\n"


def test_bash_of_verbs_within_verbs(bash) -> None:
    assert bash("", program="nested") == ["agent", "server"]
    assert bash("server", "", program="nested") == ["token"]
    assert bash("server", "token", "c", program="nested") == ["create"]
    assert bash("server", "token", "create", "z", program="nested") == ["zsh"]


@pytest.fixture
def fish(folder: Path, asked: Path):
    """Completes a command line in a real fish."""

    def complete(line: str) -> list[str]:
        source = folder / ("fish" if line.startswith("tunnelctl") else "nested.fish")
        command = [need("fish"), "--no-config", "-c", f"source {source}; complete -C '{line}'"]
        env = environment(folder)
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [one.partition("\t")[0] for one in done.stdout.splitlines()]

    return complete


def test_fish(fish, folder: Path, asked: Path) -> None:
    assert sorted(fish("tunnelctl ")) == sorted(VERBS)
    assert fish("tunnelctl cancel ") == ["aa11"]
    assert fish("tunnelctl reconnect ") == ["demo"]
    assert fish("tunnelctl streams --tunnel ") == ["demo"]
    assert sorted(fish("tunnelctl streams --kind ")) == ["http", "sse", "websocket"]
    assert fish("tunnelctl cancel --ol") == ["--older-than"]
    assert sorted(fish("tunnelctl completion ")) == ["bash", "fish", "zsh"]
    assert not (folder / "pwned").exists()
    asked.unlink()
    assert fish("tunnelctl --socket /x cancel a") == ["aa11"]
    assert asked.read_text() == "--socket /x streams --json\n"
    assert fish("nested server ") == ["token"]
    assert sorted(fish("nested server token ")) == ["create", "list"]


def test_zsh(folder: Path, asked: Path) -> None:
    """Typed into a real zsh with its completion system: what the program gets is what TAB made of it."""
    typed = {
        "statu\t": "status",
        "cancel a\t": "cancel aa11",
        "reconnect \t": "reconnect demo",
        "streams --tunnel d\t": "streams --tunnel demo",
        "streams --kind w\t": "streams --kind websocket",
        "cancel --old\t1h": "cancel --older-than 1h",
        "completion z\t": "completion zsh",
        f"--socket {folder}/aske\t status": f"--socket {folder}/asked status",
    }
    begin = [f"cd {folder}", "autoload -Uz compinit && compinit -u -D", "source ./zsh", "source ./nested.zsh"]
    lines = [f"tunnelctl {line}" for line in typed] + ["nested serv\ttok\tcr\tb\t"]
    leader, follower = pty.openpty()
    command = [need("zsh"), "-f", "-i"]
    shell = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment(folder), start_new_session=True
    )
    os.close(follower)
    try:
        os.write(leader, "\n".join([*begin, *lines, "exit", ""]).encode())
        output = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # how a terminal says that its last program has gone
                break
            if not piece:
                break
            output += piece
        shell.wait(10)
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)
    got = [line for line in asked.read_text().splitlines() if not line.endswith(" --json")]
    assert got == [*typed.values(), "server token create bash"], output.decode()
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_filled_in(shell: str, asked: Path, folder: Path) -> None:
    text = SCRIPTS[shell]
    assert not re.findall(r"@[A-Z]+@", text)
    for verb in VERBS:
        assert verb in text
        for spelling in parser_for(verb)._option_string_actions:
            bare = spelling.lstrip("-") if shell == "fish" else spelling
            assert re.search(rf"(?<![\w]){re.escape(bare)}\b", text), spelling
    if shutil.which(shell):
        subprocess.run([shell, "-n", folder / shell], check=True)


def test_the_options_that_take_a_value_are_known_before_the_verb_is() -> None:
    taking = {
        spelling
        for verb in VERBS
        for spelling, action in parser_for(verb)._option_string_actions.items()
        if action.nargs != 0
    }
    assert taking == cli._WITH_VALUE
