"""`basic`: the file that Debian's htpasswd makes, and that nothing tells an unknown user from a wrong password."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import subprocess
import sys
import threading
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.integration.test_access import basic, protect, said
from tests.support.front import front
from tests.support.running import settled
from tunneld.agent.access import access_wish
from tunneld.config.access import AccessConfig, resolve
from tunneld.server.visitors import passwords as module
from tunneld.server.visitors.passwords import Passwords
from tunneld.server.visitors.rules import Claim, Rules


@pytest.fixture
def htpasswd() -> str:
    found = shutil.which("htpasswd")
    if found is None:
        words = "htpasswd is missing: `make apt-deps` gets it on Debian (apache2-utils)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(words)
    return str(found)


def made(htpasswd: str, file: Path, *users: tuple[str, str, str]) -> None:
    """A file with (option, user, password) of each."""
    file.touch()
    for option, user, password in users:
        subprocess.run([htpasswd, "-b", *option.split(), str(file), user, password], check=True, capture_output=True)


async def test_the_file_that_htpasswd_makes_lets_its_users_in(htpasswd: str, tmp_path: Path) -> None:
    file = tmp_path / "users"
    made(htpasswd, file, ("-B", "ann", "pä ss:word"), ("-B -C 4", "bob", "x" * 80), ("-B", "carl", "old"))
    made(htpasswd, file, ("-B", "carl", "new"))
    subprocess.run([htpasswd, "-D", str(file), "nobody"], check=False, capture_output=True)
    loaded, faults = resolve(AccessConfig(mode="basic", users_file=str(file)))
    assert not faults
    async with front() as it:
        it.ingress.desk.one_owner = lambda: True
        protect(it, access_wish(loaded, b"l" * 32))
        client = await it.client()
        for user, password in (("ann", "pä ss:word"), ("bob", "x" * 80), ("carl", "new")):
            client.get("/t/demo/x", basic(user, password))
            served = await it.served()
            assert served.headers["x-tunnel-user"] == user
            served.answer()
            assert (await client.answer()).status == 200
        await client.leave()
        for user, password in (("ann", "pä ss"), ("carl", "old"), ("dora", "new"), ("", ""), ("ann", "")):
            assert (await it.get("/t/demo/x", basic(user, password))).status == 401
        assert it.requests.empty()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("-m", "MD5 (apr1), not bcrypt"),
        ("-s", "SHA-1 without salt, not bcrypt"),
        ("-d", "DES (crypt), or no hash at all, not bcrypt"),
        ("-p", "DES (crypt), or no hash at all, not bcrypt"),
        ("-2", "SHA-256 (crypt), not bcrypt"),
        ("-5", "SHA-512 (crypt), not bcrypt"),
        ("-B -C 13", "costs more than 12"),
    ],
)
def test_every_other_scheme_of_htpasswd_is_refused_by_its_name(
    htpasswd: str, tmp_path: Path, option: str, words: str
) -> None:
    file = tmp_path / "users"
    made(htpasswd, file, ("-B -C 4", "ann", "x"), (option, "bob", "secret-word"))
    _, [(_, fault)] = resolve(AccessConfig(mode="basic", users_file=str(file)))
    assert fault.startswith(f"{file}:2: the hash of bob ")
    assert words in fault
    assert "htpasswd -B" in fault
    assert "secret-word" not in fault
    assert file.read_text().splitlines()[1].partition(":")[2] not in fault


COSTS = {f"user{number}": 4 + number % 3 for number in range(12)}


def rules() -> Rules:
    users = {user: bcrypt.hashpw(user.encode(), bcrypt.gensalt(cost)).decode() for user, cost in COSTS.items()}
    return Rules("demo", said("basic", users=users))


def claimed(it: Rules, user: str, password: str = "wrong") -> Claim:
    header = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    claim, _ = it.judge("/", [("Authorization", header)], 0.0)
    assert isinstance(claim, Claim)
    return claim


def test_a_wrong_user_is_the_same_work_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: calls of any kind, of bcrypt, and rounds of bcrypt, for many names of either sort."""
    rounds: list[int] = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda _, hashed: rounds.append(int(hashed[4:6])))
    it, remembered = rules(), Passwords(remembered=10, waiting=10)
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def work(user: str) -> tuple[int, int]:
        """(calls, how often bcrypt was asked) of one try."""
        nonlocal calls
        calls, before = 0, len(rounds)
        gc.disable()  # finalizers of what other tests left are not this work's calls
        sys.setprofile(count)
        try:
            claim = claimed(it, user)
            assert not remembered.known(claim)
            good = module._fits(claim)
        finally:
            sys.setprofile(None)
            gc.enable()
        assert not good
        return calls, len(rounds) - before

    chance = random.Random(8)
    known = [work(user) for user in COSTS]
    rounds.clear()
    names = [f"user{chance.randrange(10**6, 10**7)}" for _ in range(1200)]
    unknown = [work(name) for name in names]
    # The stand-in is looked for, which is a few calls of a microsecond beside bcrypt's milliseconds.
    assert {asked for _, asked in known + unknown} == {1}
    assert max(calls for calls, _ in unknown) - min(calls for calls, _ in known) < 40
    # Rounds of bcrypt: as many unknown names at each cost as there are users of it, and always the same for one name.
    shares = Counter(rounds)
    for cost, share in Counter(COSTS.values()).items():
        expected = 1200 * share / len(COSTS)
        assert abs(shares[cost] - expected) < 5 * (expected * (1 - share / len(COSTS))) ** 0.5
    before = list(rounds)
    rounds.clear()
    for name in names[:50]:
        work(name)
    assert rounds == before[:50]


async def test_a_flood_of_wrong_passwords_is_bounded_and_holds_nobody_else_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(*_: Any) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert gate.wait(20)
        with lock:
            running -= 1
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    async with front(limits={"password_checks": 20}, auth={"max_failures": 1000}) as it:
        it.ingress.desk.one_owner = lambda: True
        protect(it, said("basic"))
        flood = [await it.client() for _ in range(30)]
        for number, client in enumerate(flood):
            client.get("/t/demo/x", basic("ann", f"wrong-{number}"))
        refused = flood[20:]
        for client in refused:
            answer = await client.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "too_many_checks")
            assert answer.headers["retry-after"]
        await settled(lambda: running == 2)
        good = await it.client()
        good.get("/healthz")  # all the checks stand still, and others are answered
        assert (await good.answer()).status == 200
        gate.set()
        assert [(await client.answer()).status for client in flood[:20]] == [401] * 20
        assert most == 2
        await asyncio.gather(*(client.leave() for client in [good, *flood]))
        assert len(it.ingress.desk.passwords) == 0
