"""The manual says what the parsers and the models say: it is made of them, and here nothing falls through."""

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tunneld.__main__ as daemon
from tests.unit.config.test_examples import keys_of
from tests.unit.packaging.conftest import ROOT
from tunnelctl import cli
from tunnelctl.doctor.findings import CHECKS
from tunneld import commands
from tunneld.config.load import load
from tunneld.control.models.doctor import DoctorFinding, DoctorReport


def plain(page: str) -> str:
    """A page's words without roff, one space between two."""
    page = re.sub(r"^\.(br|TP|PP|nf|fi|RS|RE).*$", "", page, flags=re.M)
    return " ".join(re.sub(r"\\f[BR]|\\&", "", page).replace("\\-", "-").replace("\\e", "\\").split())


def helps(parser: argparse.ArgumentParser) -> list[str]:
    """Every line of help and every spelling that a parser's own --help shows."""
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    spellings = [spelling for action in actions for spelling in action.option_strings]
    texts = [" ".join((action.help or "").replace("%%", "%").split()) for action in actions]
    return spellings + [text[1:] for text in texts if text]  # a page begins its sentences with a capital


def test_tunneld_8_has_every_command_and_option(manual: dict[str, str]) -> None:
    page = plain(manual["tunneld.8"])
    for words, command in commands.COMMANDS.items():
        assert f"tunneld {' '.join(words)} [" in page
        assert command.help.replace("`", "")[1:] in page
        for text in helps(daemon.parser_for(words)):
            assert text.replace("`", "") in page
    for path in commands.DEFAULT_FILES.values():
        assert path in page


def test_tunnelctl_1_has_every_verb_and_option(manual: dict[str, str]) -> None:
    page = plain(manual["tunnelctl.1"])
    for name, verb in cli.VERBS.items():
        assert f"tunnelctl {name} [" in page
        assert verb.summary.replace("`", "")[1:] in page
        for text in helps(cli.parser_for(name)):
            assert text.replace("`", "") in page


def test_tunnelctl_1_has_every_finding_of_the_doctor_and_the_keys_of_its_report(manual: dict[str, str]) -> None:
    page = plain(manual["tunnelctl.1"]).partition("WHAT DOCTOR FINDS")[2]
    for name, what in CHECKS.items():
        assert f" {name} " in page
        assert what.replace("`", "")[1:] in page
    for key in (*DoctorReport.__annotations__, *DoctorFinding.__annotations__):
        assert key in page


@pytest.mark.parametrize(
    ("page", "example"), [("tunneld.yaml.5", "tunneld.yaml"), ("tunneld-server.yaml.5", "server.yaml")]
)
def test_the_file_pages_have_every_key(page: str, example: str, manual: dict[str, str]) -> None:
    named = set(re.findall(r"[a-z_0-9]+", plain(manual[page]).partition('"KEYS"')[2]))
    assert keys_of(load(str(ROOT / "config" / example))) - named == set()


def test_a_key_is_told_with_its_kind_bounds_and_default(manual: dict[str, str]) -> None:
    agent, server = plain(manual["tunneld.yaml.5"]), plain(manual["tunneld-server.yaml.5"])
    for page, said in [
        (agent, r"limits\.stream_window \S.{5,90} A size, at least 16KiB, at most \d+\. Default: 256KiB\."),
        (agent, r"server\.url \S.{5,90} Text\. It has to be given\."),
        (agent, r"log\.level One of debug, info, warning, error\. Default: info\."),
        (agent, r'"tunnels\[\]\.limits: a mapping" The keys of limits, for this one alone\.'),
        (server, r"heartbeat\.min \S.{5,90} A duration, at least 10ms\. Default: 1s\."),
    ]:
        assert re.search(said, page), said
    assert "listen[].serve" in server


@pytest.mark.parametrize("page", ["tunneld.8", "tunnelctl.1", "tunneld.yaml.5", "tunneld-server.yaml.5"])
def test_a_page_is_whole(page: str, manual: dict[str, str], tmp_path: Path) -> None:
    """Both formatters of this world read it without a word of complaint, and its name says where it is found."""
    path = tmp_path / page
    path.write_text(manual[page])
    title, _, section = page.rpartition(".")
    assert manual[page].startswith(f'.TH "{title}" {section} "2'.replace("-s", "\\-s"))
    for command in (["mandoc", "-T", "lint", "-W", "warning"], ["man", "--warnings", "-E", "UTF-8", "-l"]):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        if command[0] == "mandoc":
            assert done.stdout == ""


def test_pages_name_pages_that_are_there(manual: dict[str, str]) -> None:
    there = {f"{name.rpartition('.')[0]}({name.rpartition('.')[2]})" for name in manual}
    named = {word for page in manual.values() for word in re.findall(r"[a-z.-]+\([158]\)", plain(page))}
    assert named == there
    units = [path.read_text() for path in (ROOT / "packaging/systemd").glob("*.service")]
    assert {word for unit in units for word in re.findall(r"man:(\S+)", unit)} <= there
