import re
from pathlib import Path

import pytest

from tunneld.config.agent import AgentConfig
from tunneld.config.common import Model
from tunneld.config.load import load, load_agent, load_server
from tunneld.config.server import ServerConfig

EXAMPLES = Path(__file__).parents[3] / "config"


def keys_of(model: Model) -> set[str]:
    """The names of all keys below a model, however deep."""
    names: set[str] = set()
    for key in type(model).model_fields:
        value = getattr(model, key)
        names.add(key)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Model):
                names |= keys_of(item)
    return names


def test_the_examples_load_as_they_stand() -> None:
    agent = load_agent(str(EXAMPLES / "tunneld.yaml"))
    server = load_server(str(EXAMPLES / "server.yaml"))
    assert agent.server.url == f"ws://{server.listen[0]}"


@pytest.mark.parametrize("name", ["tunneld.yaml", "server.yaml"])
def test_the_examples_name_every_key(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    missing = {key for key in keys_of(load(str(EXAMPLES / name))) if not re.search(rf"\b{key}:", text)}
    assert not missing


@pytest.mark.parametrize(("name", "model"), [("tunneld.yaml", AgentConfig), ("server.yaml", ServerConfig)])
def test_the_examples_show_the_defaults(name: str, model: type[Model], tmp_path: Path) -> None:
    """A section whose comment signs are taken off loads, and is what holds without it."""
    config = load(str(EXAMPLES / name))
    text = (EXAMPLES / name).read_text()
    keys = ["heartbeat", "resume", "drain_timeout", "limits", "sse", "alerts"]
    for key in keys + (["reconnect"] if name == "tunneld.yaml" else []):
        block = re.search(rf"^# {key}:.*\n(?:#   .*\n)*", text, re.M)
        assert block is not None, key
        path = tmp_path / name
        path.write_text(text + re.sub(r"^# ", "", block[0], flags=re.M))
        assert getattr(load(str(path)), key) == getattr(config, key), key


def test_every_commented_line_can_be_taken_in(tmp_path: Path) -> None:
    """All of them at once: what the examples offer is valid (but for a group that this machine may not have)."""
    for name in ("tunneld.yaml", "server.yaml"):
        lines = (EXAMPLES / name).read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        out: list[str] = []
        for line in lines[start:]:
            if re.match(r"#? *(-|listen:|# listen:)", line) and name == "server.yaml" and line.startswith("#"):
                continue  # the second form of listen
            bare = re.sub(r"^( *)# (?=[ a-z_]+:)", r"\1", line)
            out.append("  group: root" if bare.strip().startswith("group:") else bare)
        path = tmp_path / name
        path.write_text("\n".join(line for line in out if not line.lstrip().startswith("#")) + "\n")
        assert load(str(path), "agent" if name == "tunneld.yaml" else "server")
