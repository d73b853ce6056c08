"""tunneld as it is, and on SIGUSR2 a line of JSON: how many tasks its loop has. `python -m tests.support.counted …`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from tunneld.__main__ import main


def _tell(*_: object) -> None:
    loop = asyncio._get_running_loop()
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()] if loop is not None else []
    os.write(2, json.dumps({"tasks": len(tasks), "names": sorted(task.get_name() for task in tasks)}).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _tell)
    sys.exit(main())
