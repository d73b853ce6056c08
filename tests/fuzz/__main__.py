"""`make fuzz`: every target for some minutes at the same time, guided by coverage (atheris), its finds kept.

`.fuzz/NAME` holds what the runs of this machine found, `tests/fuzz/corpus/NAME` what is worth keeping for everybody
and is replayed by the tests; `--keep` adds to it what adds coverage. An input that breaks a target is written to
`.fuzz/NAME.crash-…`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")


def run(name: str, arguments: list[str]) -> None:
    """Be one target's process: libFuzzer takes over."""
    import atheris

    with atheris.instrument_imports(include=["tunneld"]):
        from tests.fuzz.targets import TARGETS
    logging.disable(logging.CRITICAL)
    again = f"{sys.executable} -m tests.fuzz --run {name} --"  # a merge runs its parts as processes of their own
    atheris.Setup([again, *arguments], TARGETS[name])
    atheris.Fuzz()


def _child(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.fuzz", "--run", name, "--", *arguments]
    return subprocess.Popen(argv, stderr=(FOUND / f"{name}.log").open("wb"))


def _seed(name: str) -> Path:
    """The folder of a target's finds, with its seeds in it."""
    from tests.fuzz.targets import SEEDS

    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(SEEDS[name]()):
        (folder / f"seed-{number}").write_bytes(data)
    return folder


def fuzz(names: list[str], minutes: float) -> int:
    """Run the targets; returns the exit status."""
    running = {}
    for name in names:
        folder = _seed(name)
        print(f"{name}: {len(list(folder.iterdir()))} inputs found before, {len(list((CORPUS / name).iterdir()))} kept")
        running[name] = _child(
            name,
            f"-max_total_time={minutes * 60:.0f}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={FOUND}/{name}.",
            str(folder),
            str(CORPUS / name),
        )
    failed = 0
    for name, process in running.items():
        status = process.wait()
        lines = (FOUND / f"{name}.log").read_text("utf-8", "replace").splitlines()
        done = [line for line in lines if line.startswith(("Done ", "#")) and ("Done" in line or "exec/s" in line)]
        print(f"{name}: {'ok' if not status else 'BROKEN'}: {' | '.join(done[-2:])}")
        if status:
            failed = 1
            print("\n".join(lines[-40:]))
    return failed


def keep(names: list[str]) -> int:
    """Add to the corpus what of the finds adds coverage; returns the exit status."""
    for name in names:
        before = len(list((CORPUS / name).iterdir()))
        status = _child(name, "-merge=1", str(CORPUS / name), str(_seed(name))).wait()
        if status:
            print((FOUND / f"{name}.log").read_text("utf-8", "replace")[-2000:])
            return 1
        print(f"{name}: {before} inputs were kept, {len(list((CORPUS / name).iterdir()))} are")
    return 0


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", choices=("ingress", "v2", "v3"), help="this one alone")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what adds coverage, and end")
    parser.add_argument("--run", choices=("ingress", "v2", "v3"), help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.rest)
        return 0
    names = [options.target] if options.target else ["ingress", "v2", "v3"]
    FOUND.mkdir(exist_ok=True)
    return keep(names) if options.keep else fuzz(names, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
