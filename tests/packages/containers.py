"""A small builder of Containerfiles, for machines without a container engine: each stage is a Debian root of its own.

It knows the instructions that ours uses and refuses any other, so that nothing passes unseen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.support.processes import ROOT
from tests.support.roots import Root, overlaid

__all__ = ["Image", "built", "healthy", "parsed"]

FILE = ROOT / "packaging/container/Containerfile"
BASE = "debian:bookworm-slim"


@dataclass
class Image:
    """A built stage: its root, and what its instructions say of running it."""

    root: Root
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def child(self, root: Root) -> Image:
        """What a stage that begins FROM this one starts with; an image's health check is its own."""
        return Image(
            root, self.user, list(self.entrypoint), [], [], dict(self.environment), list(self.ports), list(self.volumes)
        )

    def enter(self, *argv: str) -> list[str]:
        """The command that runs `argv` in there, as its user, without capabilities and without a network."""
        uid, gid = self.user.split(":")
        environment = [f"{key}={value}" for key, value in self.environment.items()]
        dropped = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={gid}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
        return self.root.command(*dropped, "env", *environment, *argv)


def parsed() -> list[tuple[str, str]]:
    """Each instruction and its value, in order, comments and continuations taken out."""
    parser = DockerfileParser(fileobj=BytesIO(FILE.read_bytes()))
    return [(one["instruction"], one["value"]) for one in parser.structure if one["instruction"] != "COMMENT"]


def built(debian: Path, folder: Path, ends: ExitStack) -> dict[str, Image]:
    """Every stage by its name; the roots live as long as `ends`."""
    stages: dict[str, Image] = {}
    image: Image | None = None
    for instruction, value in parsed():
        if instruction == "FROM":
            image = _from(value, debian, folder, ends, stages)
            continue
        assert image is not None
        if instruction == "RUN":
            _run(image, value)
        elif instruction == "COPY":
            _copy(image, value.split(), stages)
        else:
            _setting(image, instruction, value)
    return stages


def _from(value: str, debian: Path, folder: Path, ends: ExitStack, stages: dict[str, Image]) -> Image:
    source, word, name = value.split()
    assert word.upper() == "AS"
    place = folder / name
    place.mkdir()
    if source == BASE:
        made = Image(ends.enter_context(overlaid(debian, place)))
    else:
        made = stages[source].child(ends.enter_context(overlaid(stages[source].root, place)))
    stages[name] = made
    return made


def _run(image: Image, value: str) -> None:
    """As a build does: root, with a network, and with what a client of registries needs on this machine."""
    assert image.user == "0:0", "a RUN below USER is not known here"
    shutil.copy("/etc/resolv.conf", image.root.path / "etc/resolv.conf")
    trusted = image.root.path / "tmp/ca.pem"
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", trusted)
    passed = {key: text for key, text in os.environ.items() if key.startswith("PIP_") and key != "PIP_FIND_LINKS"}
    passed["PIP_CERT"] = "/tmp/ca.pem"
    passed |= {
        key: text for key, text in os.environ.items() if key.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    environment = [f"{key}={text}" for key, text in {**passed, **image.environment}.items()]
    image.root.run("env", *environment, "/bin/sh", "-c", value, network=True, timeout=280)
    trusted.unlink()


def _copy(image: Image, words: list[str], stages: dict[str, Image]) -> None:
    base = ROOT
    if words[0].startswith("--from="):
        base = stages[words.pop(0).partition("=")[2]].root.path
    *sources, target = words
    to = image.root.path / target.lstrip("/")
    for source in sources:
        path = base / source.lstrip("/")
        assert path.exists(), f"COPY {source}: there is no such file"
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__") if base == ROOT else None
            shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)


def _setting(image: Image, instruction: str, value: str) -> None:
    if instruction == "USER":
        image.user = value
    elif instruction == "ENTRYPOINT":
        image.entrypoint = json.loads(value)
    elif instruction == "CMD":
        image.command = json.loads(value)
    elif instruction == "HEALTHCHECK":
        image.health = json.loads(value.partition(" CMD ")[2])
    elif instruction == "ENV":
        key, _, text = value.partition("=")
        image.environment[key] = text
    elif instruction == "EXPOSE":
        image.ports.append(value)
    elif instruction == "VOLUME":
        image.volumes += json.loads(value)
    else:
        assert instruction == "STOPSIGNAL", f"{instruction}: not known to this builder"
        assert value == "SIGTERM"


def healthy(image: Image, pid: int) -> bool:
    """What the image's health check says, run where the process `pid` runs."""
    inside = ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", f"--root=/proc/{pid}/root", "--wd=/"]
    environment = [f"{key}={value}" for key, value in image.environment.items()]
    uid, gid = image.user.split(":")
    command = [
        *inside,
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "env",
        *environment,
        *image.health,
    ]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
