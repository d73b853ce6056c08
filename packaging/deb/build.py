"""Build the Debian package: `/usr/bin/python3 packaging/deb/build.py --pip PYTHON` leaves one `dist/tunneld_*.deb`.

The package carries the program and what it depends on, as wheels give it, in a private environment on the system's own
Python: `/usr/lib/tunneld`, whose `bin/python3` is a link to `/usr/bin/python3`. Nothing is fetched when it is
installed. It is made with dpkg-deb alone; the maintainer scripts beside this file do what debhelper's would.

The same tree built twice with one SOURCE_DATE_EPOCH (default: the last commit's time) gives the same files: every
time is that one, every owner root, and the byte code is compiled here, unchecked, so that nothing writes there later.
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PRIVATE = "usr/lib/tunneld"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WHO = "The authors of tunneld <tunneld@localhost>"
NEXT = f"{sys.version_info.major}.{sys.version_info.minor + 1}"
PROGRAMS = {"tunneld": "tunneld.__main__", "tunnelctl": "tunnelctl.cli"}
COPIED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tunneld", "tunnelctl", "packaging", "config")
CONFFILES = ("etc/tunneld/tunneld.yaml", "etc/tunneld/server.yaml")
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions",
    "zsh": "usr/share/zsh/vendor-completions",
    "fish": "usr/share/fish/vendor_completions.d",
}


def fail(text: str) -> None:
    """End with one line."""
    sys.exit(f"make deb: {text}")


def run(*command: str | Path, **options: object) -> None:
    """Run a program whose failure is ours."""
    done = subprocess.run([str(word) for word in command], check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        fail(f"{' '.join(map(str, command[:6]))} … failed with {done.returncode}")


def put(path: Path, text: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


def put_gzip(path: Path, text: bytes) -> None:
    """Write a file as Debian packs documents: no name and no time inside."""
    put(path.with_name(f"{path.name}.gz"), gzip.compress(text, 9, mtime=0))


# -- what goes in ------------------------------------------------------------------------------------------------------


def environment(source: Path, root: Path, pip: list[str]) -> Path:
    """Install the program and its dependencies into the private environment; returns its site-packages."""
    private = root / PRIVATE
    site = private / "lib" / f"python{PYTHON}" / "site-packages"
    site.mkdir(parents=True)
    (private / "bin").mkdir()
    for name in ("python3", "python"):
        (private / "bin" / name).symlink_to("/usr/bin/python3" if name == "python3" else "python3")
    version = platform.python_version()
    put(private / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-warn-conflicts", "--root-user-action=ignore")
    whole = f"{source}[otlp]"  # an extra could not be added later: there is no pip in there
    run(*pip, "install", *quiet, "--no-compile", "--target", site, whole, env={**os.environ, "PYTHONHASHSEED": "0"})
    shutil.rmtree(site / "bin", ignore_errors=True)  # the dependencies' own programs
    for origin in site.glob("*.dist-info/direct_url.json"):  # where this tree was
        origin.unlink()
        record = origin.with_name("RECORD")
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if "/direct_url.json," not in line))
    for name, module in PROGRAMS.items():
        text = f"#!/{PRIVATE}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        put(root / "usr/bin" / name, text, mode=0o755)
    return site


def compiled(site: Path, root: Path) -> None:
    """Byte code that is never checked against its source: the daemon may not write there, and purge finds nothing.

    One process, and no random hashes: else the order of a constant set would differ from build to build.
    """
    where = ("-s", root, "-p", "/", "-r", "30", "--invalidation-mode", "unchecked-hash")
    run(sys.executable, "-I", "-m", "compileall", "-qq", *where, site, env={**os.environ, "PYTHONHASHSEED": "0"})


def settings(source: Path, root: Path) -> None:
    """The configuration files as Debian installs them; they load, and name no file that is not there.

    The agent's token comes as a credential of systemd's, and the server, which others may reach through a proxy on the
    same machine, asks for tokens.
    """
    for conffile in CONFFILES:
        kept: list[str] = []
        dropping = False
        for line in (source / "config" / Path(conffile).name).read_text().splitlines():
            key = re.match(r"\s*(?:#\s*)?(\w+):", line)
            if key or not re.match(r"\s*#?\s{10,}#?\s*\S", line):
                dropping = bool(key and key[1] == "token_file")
            if dropping and key and line.startswith("  "):
                kept.append(
                    "  # The token: /etc/credstore/tunneld.token (root's, mode 600); systemd hands it to the agent."
                )
            if not dropping:
                kept.append(line)
        text = "\n".join(kept) + "\n"
        if conffile.endswith("server.yaml"):
            text, count = re.subn(
                r"^  mode: open .*\n(?:\s{20,}#.*\n)*",
                "  mode: token                        # agents need a credential: tunneld server token create NAME\n",
                text,
                flags=re.M,
            )
            text = text.replace(
                "As it stands it serves this machine alone and lets any agent in: good to begin with.",
                "As it stands it serves this machine alone, to agents with a token.",
            )
            if count != 1:
                fail("config/server.yaml: no line `mode: open` to turn into `mode: token`")
        put(root / conffile, text)


def documents(source: Path, root: Path, site: Path, version: str) -> None:
    """Manual, completions, copyright, changelog, examples: made by the program that is being packed."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        run(sys.executable, source / "packaging/man/pages.py", made / "man", env=env, cwd=made)
        run(sys.executable, source / "packaging/completions/scripts.py", made / "completions", env=env, cwd=made)
        for page in (made / "man").iterdir():
            put_gzip(root / "usr/share/man" / f"man{page.name[-1]}" / page.name, page.read_bytes())
        for shell, place in COMPLETIONS.items():
            for script in (made / "completions" / shell).iterdir():
                put(root / place / script.name, script.read_bytes())
    doc = root / "usr/share/doc/tunneld"
    put(doc / "copyright", (HERE / "copyright").read_text())
    date = email.utils.formatdate(int(os.environ["SOURCE_DATE_EPOCH"]))
    title, news = f"tunneld ({version}) stable; urgency=medium", "  * See CHANGELOG.md.gz beside this file."
    put_gzip(doc / "changelog", f"{title}\n\n{news}\n\n -- {WHO}  {date}\n".encode())
    for name in ("CHANGELOG.md", "README.md"):
        put_gzip(doc / name, (source / name).read_bytes())
    for name in ("proxies", "prometheus", "grafana"):
        if (source / "packaging" / name).is_dir():
            shutil.copytree(source / "packaging" / name, doc / "examples" / name)


def units(source: Path, root: Path) -> list[str]:
    """The units with their drop-ins, sysusers.d and tmpfiles.d; returns the units that can be enabled."""
    for folder, place in {
        "systemd": "lib/systemd/system",
        "sysusers.d": "usr/lib/sysusers.d",
        "tmpfiles.d": "usr/lib/tmpfiles.d",
    }.items():
        shutil.copytree(source / "packaging" / folder, root / place)
    found = (root / "lib/systemd/system").glob("*.*")
    return sorted(path.name for path in found if path.is_file() and "@" not in path.name)


# -- the package -------------------------------------------------------------------------------------------------------


def libc(site: Path) -> str:
    """The C library that the wheels were built for: the newest of their tags; of one built here, this machine's."""
    here = os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.36"
    found = {(2, 17)}
    for wheel in site.glob("*.dist-info/WHEEL"):
        tags = re.findall(r"^Tag: \S+-\S+-(\S+)$", wheel.read_text(), re.M)
        if any(tag.startswith("linux_") for tag in tags):
            found.add(tuple(map(int, here.split()[1].split(".")))[:2])
        platforms = [re.match(r"manylinux_(\d+)_(\d+)_", tag) for tag in tags]
        ours = [(int(one[1]), int(one[2])) for one in platforms if one]
        found |= {min(ours)} if ours else set()
    return ".".join(map(str, max(found)))


def control(root: Path, version: str, site: Path, enabled: list[str]) -> None:
    """The control files of the package."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(-(-path.stat().st_size // 1024) for path in files) + sum(path.is_dir() for path in root.rglob("*"))
    native = any(site.rglob("*.so"))
    fields = {
        "@VERSION@": version,
        "@ARCHITECTURE@": subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        if native
        else "all",
        "@PYTHON@": PYTHON,
        "@NEXT@": NEXT,
        "@LIBC@": libc(site),
        "@SIZE@": str(size),
        "@WHO@": WHO,
        "@UNITS@": " ".join(enabled),
    }
    for name in ("control", "postinst", "prerm", "postrm"):
        text = (HERE / name).read_text()
        for mark, value in fields.items():
            text = text.replace(mark, value)
        put(root / "DEBIAN" / name, text, mode=0o644 if name == "control" else 0o755)
    put(root / "DEBIAN/conffiles", "".join(f"/{path}\n" for path in CONFFILES))
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]  # noqa: S324
    put(root / "DEBIAN/md5sums", "".join(sums))


def stamp(source: Path) -> int:
    """The time that every file gets, in seconds: SOURCE_DATE_EPOCH, else the last commit's, else the changelog's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    command = ["git", "-C", str(source), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip() else int((source / "CHANGELOG.md").stat().st_mtime)


def settle(root: Path, when: int) -> None:
    """Modes that do not depend on who builds, and one time for everything."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def build(source: Path, output: Path, version: str | None, pip: list[str], *, bare: bool = False) -> Path:
    """Build the package of `source` into `output`, with `bare` without its documents; returns its file."""
    when = stamp(source)
    os.environ["SOURCE_DATE_EPOCH"] = str(when)
    stated = re.search(r'^__version__ = "([^"]+)"', (source / "tunneld/__init__.py").read_text(), re.M)
    version = version or (stated[1] if stated else fail("tunneld/__init__.py states no version"))
    with tempfile.TemporaryDirectory(prefix="tunneld-deb-") as folder:
        tree, root = Path(folder, "source"), Path(folder, "root")
        tree.mkdir()
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, tree / name, ignore=unwanted)
            else:
                shutil.copy2(source / name, tree / name)
        root.mkdir(mode=0o755)
        site = environment(tree, root, pip)
        settings(tree, root)
        if not bare:
            documents(tree, root, site, version)
        enabled = units(tree, root)
        settle(root, when)
        compiled(site, root)
        control(root, version, site, enabled)
        settle(root, when)
        output.mkdir(parents=True, exist_ok=True)
        for old in output.glob("tunneld_*.deb"):
            old.unlink()
        run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", root, output, stdout=subprocess.DEVNULL)
    (made,) = output.glob("tunneld_*.deb")
    return made


def main() -> None:
    """Build as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pip", default=sys.executable, help="a Python that has pip (default: this one)")
    parser.add_argument("--source", type=Path, default=HERE.parents[1], help="the tree to pack (default: this one)")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "dist", help="where the package goes")
    parser.add_argument("--version", help="the package's version (default: the program's)")
    parser.add_argument("--bare", action="store_true", help="no documents: for a tree from before they were made")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - the system's own, whatever it is
        fail(f"tunneld needs Python 3.11 or newer; {sys.executable} is {platform.python_version()}")
    if shutil.which("dpkg-deb") is None:
        fail("dpkg-deb is missing: the package is built on Debian (apt-get install dpkg)")
    os.umask(0o022)
    pip = [options.pip, "-m", "pip", "--python", sys.executable]
    made = build(options.source.resolve(), options.output.resolve(), options.version, pip, bare=options.bare)
    print(f"{made.relative_to(Path.cwd()) if made.is_relative_to(Path.cwd()) else made}")


if __name__ == "__main__":
    main()
