"""pip-audit where its data can be had: ``python -m tests.support.audit``.

A known vulnerability of an installed package fails; a package index that has no such data, or no network, does not, and
is said.
"""

from __future__ import annotations

import json
import subprocess
import sys

__all__ = ["main", "verdict"]

_PATIENCE = 120.0  # seconds


def verdict(text: str) -> tuple[int, str]:
    """(exit status, one line or more) for what ``pip-audit --format json`` printed."""
    try:
        found = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 0, "pip-audit: its data cannot be had here; nothing was audited"
    audited = [one for one in found if "vulns" in one]
    lines = [
        f"pip-audit: {one['name']} {one['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or '-'}"
        for one in audited
        for each in one["vulns"]
    ]
    if lines:
        return 1, "\n".join(lines)
    if not audited:
        return 0, f"pip-audit: the package index has no such data; none of {len(found)} packages was audited"
    return 0, f"pip-audit: no known vulnerability in {len(audited)} of {len(found)} packages"


def main() -> int:
    """Run it; returns the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        status, words = verdict(done.stdout)
    except subprocess.TimeoutExpired:
        status, words = verdict("")
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
