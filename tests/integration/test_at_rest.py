"""What a daemon that nobody asks holds: no code of what its file does not ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, clean_environment
from tests.support.running import written
from tests.support.sockets import LOOPBACK, free_port

_PROGRAM = """
import asyncio, json, sys
from tunneld.__main__ import main
from tunneld import lifecycle

async def serve(daemon):
    await daemon.start()
    reader, writer = await asyncio.open_unix_connection(sys.argv[2]) if sys.argv[2] else (None, None)
    await asyncio.sleep(0.2)  # whoever would load something has begun to
    loaded = sorted(sys.modules)
    if writer is not None:
        writer.close()
    await daemon.stop()
    print(json.dumps(loaded))
    return 0

lifecycle.serve = serve
sys.exit(main([sys.argv[1], "--config", sys.argv[3]]))
"""
_APIS = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
_ALERTS = {"httpx", "smtplib", "tunneld.alerts.watch", "tunneld.alerts.sending", "tunneld.alerts.mail"}
_SIGN_IN = {"jwt", "cryptography", "tunneld.server.visitors.login", "tunneld.server.visitors.issuer"}
_PAGES = {"tunneld.dashboard.feed", "tunneld.dashboard.routes"}


@pytest.mark.parametrize("role", ["agent", "server"])
def test_it_holds_what_its_file_asks_for(role: str, folder: Path) -> None:
    settings: dict[str, object]
    if role == "agent":
        service = f"http://{LOOPBACK}:9"
        socket = str(folder / "c.sock")
        settings = {
            "server": {"url": f"ws://{LOOPBACK}:{free_port()}"},
            "tunnels": [{"name": "app", "service": service}],
            "control": {"socket": socket},
        }
        others = {"tunneld.server", "tunneld.config.login", "tunneld.config.server", "sqlalchemy", "alembic"}
    else:
        socket = ""
        settings = {"listen": {"host": LOOPBACK, "port": 0}, "auth": {"mode": "open"}, "store": "memory:"}
        settings["admin"] = False
        others = {"tunneld.agent", *_SIGN_IN}
    file = written(folder / f"{role}.yaml", settings)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, role, socket, file],
        capture_output=True,
        text=True,
        timeout=18,
        cwd=ROOT,
        env=clean_environment({}),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & (_APIS | _ALERTS | _PAGES | others) == set()
