"""Debian roots to install into: made by debootstrap from the mirror that apt uses here, entered without a network."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BASE", "Root", "debootstrapped", "mirror", "overlaid"]

BASE = ("python3",)
"""What the package depends on, so that it installs with no network at all; there is no systemd in there."""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


def mirror() -> str:
    """The archive that apt on this machine takes Debian from.

    Raises:
        AssertionError: apt names none.
    """
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)|$(CREATED_BY)", "Codename: bookworm"],
        capture_output=True,
        text=True,
        check=True,
    )
    sites = [line.split("|")[0] for line in done.stdout.splitlines() if line.endswith("|Packages")]
    assert sites, "apt knows no source of bookworm: run apt-get update first"
    return sites[0]


def debootstrapped(folder: Path) -> Path:
    """A small bookworm with `BASE` in a new folder below `folder`; takes a minute."""
    missing = [program for program in ("debootstrap", "chroot", "unshare") if shutil.which(program, path=_PATH) is None]
    assert not missing, f"not installed: {', '.join(missing)} (apt-get install debootstrap)"
    root = folder / "bookworm"
    # In a mount namespace of its own: what it mounts goes when it ends, however that is.
    command = [
        "unshare",
        "--mount",
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(BASE)}",
        "bookworm",
        str(root),
        mirror(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return root


_PATH = _ENVIRONMENT["PATH"]


class Root:
    """A root that is thrown away: an overlay on one that stays as it is.

    Attributes:
        path: where it is.
        layers: the folders that it is made of, the topmost first.
    """

    def __init__(self, path: Path, layers: tuple[Path, ...]) -> None:
        self.path = path
        self.layers = layers

    def command(self, *argv: str, network: bool = False) -> list[str]:
        """`argv` inside, as root, with /proc and a loopback of its own; with `network` this machine's."""
        inner = 'mount -t proc proc "$1/proc" && cd / && shift && exec "$@"'
        if not network:
            inner = f"ip link set lo up && {inner}"
        environment = [f"{key}={value}" for key, value in _ENVIRONMENT.items()]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        enter = ["chroot", str(self.path), "/usr/bin/env", "-i", *environment, *argv]
        return [*apart, "sh", "-c", inner, "sh", str(self.path), *enter]

    def run(self, *argv: str, check: bool = True, network: bool = False, timeout: float = 120) -> str:
        """Run it to its end; what it printed, on both outputs. With `check` a failure is an AssertionError."""
        command = self.command(*argv, network=network)
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def put(self, file: Path, to: str = "/tmp") -> str:
        """Copy a file in; its path inside."""
        shutil.copy(file, self.path / to.lstrip("/"))
        return f"{to}/{file.name}"

    def named(self, word: str, places: Sequence[str]) -> list[str]:
        """Every path below `places` whose name holds the word."""
        inside = [place for place in places if (self.path / place.lstrip("/")).exists()]
        return self.run("find", *inside, "-name", f"*{word}*").split()


@contextmanager
def overlaid(base: Path | Root, folder: Path) -> Iterator[Root]:
    """A throwaway root over `base`, which stays as it is; its changes are kept below `folder`.

    Over another such root the layers of both are taken side by side: the kernel stacks no more than two overlays.
    """
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    below = base.layers if isinstance(base, Root) else (base,)
    lower = ":".join(map(str, below))
    options = f"lowerdir={lower},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(folder / "root")], check=True)
    try:
        yield Root(folder / "root", (folder / "upper", *below))
    finally:
        subprocess.run(["umount", "--lazy", str(folder / "root")], check=True)
