"""The README says what is so. Run as a program, it writes the README's table of codes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.bench.__main__ import MEASURES
from tests.bench.table import GOALS
from tunneld.errors import CODES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_BEGIN = "<!-- codes: written by `python -m tests.unit.test_readme` -->\n"
_END = "<!-- end of codes -->"


def codes_table() -> str:
    """Every code, in the order of `CODES`."""
    rows = ["| code | status | what happened | what to do |", "| --- | --- | --- | --- |"]
    for code in CODES.values():
        cells = [f"`{code.code}`", str(code.status or ""), code.title, code.advice]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _around_table(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(_BEGIN)
    table, end, after = rest.partition(_END)
    assert begin
    assert end
    return before + begin, table, end + after


def _blocks(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.M | re.S)
    return [text for name, text in blocks if name == language]


def test_the_table_has_every_code_as_it_is() -> None:
    assert _around_table(README.read_text())[1] == codes_table()


def test_every_file_it_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README.read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_room_is_there_and_no_other() -> None:
    (tree,) = [block for block in _blocks("") if block.startswith("tunneld/\n")]
    named = set(re.findall(r"^  (\w+)(?:/|\.py) ", tree, re.M))
    there = {
        path.stem for path in (ROOT / "tunneld").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert named == there - {"__init__"}


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z0-9-]+)", README.read_text()))
def test_every_make_target_is_there(target: str) -> None:
    if target != "python3-venv":
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_its_configurations_load(tmp_path: Path) -> None:
    from tunneld.config.load import load_agent, load_server

    (block,) = [block for block in _blocks("sh") if "cat >server.yaml" in block]
    assert block.count("\n") < 10
    for name, text in re.findall(r"^cat >(\S+) <<'END'\n(.*?)^END$", block, re.M | re.S):
        path = tmp_path / name
        path.write_text(text)
        (load_server if name == "server.yaml" else load_agent)(str(path))


def test_its_tunnelctl_commands_parse() -> None:
    from tunnelctl import cli

    blocks = [block for block in _blocks("sh") if block.startswith("tunnelctl ")]
    assert len(blocks) >= 2
    for line in "\n".join(blocks).splitlines():
        if words := shlex.split(line, comments=True):
            verb, _ = cli._split(words[1:])
            assert verb in cli.VERBS, line


def test_its_bounds_are_those_that_the_bench_holds() -> None:
    table = README.read_text().partition("### Bounds")[2].partition("## See it")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    named = {name: row for row in rows for name in re.findall(r"`([a-z_]+)`", row.rsplit("|", 2)[1])}
    assert named.keys() <= MEASURES.keys()
    for key, goal in GOALS.items():
        name, _, figure = key.partition(".")
        if name in named and figure not in ("back", "busy_percent"):
            said = [float(one.replace(",", "")) for one in re.findall(r"[\d.,]*\d", named[name])]
            assert goal in said, f"{key}: {goal} stands nowhere in {named[name]}"
    for row in rows[2:]:
        assert re.search(r"`(make [a-z-]+|[a-z_]+)` \|$", row), row


if __name__ == "__main__":
    before, _, after = _around_table(README.read_text())
    README.write_text(before + codes_table() + after)
