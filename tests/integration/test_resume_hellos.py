"""Hellos and resume tokens, rule by rule: what cannot be, what is stale, forged or stolen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.handmade import SMALL, dial, online, serving, still_serves, with_stream
from tunneld.protocol import frames
from tunneld.server import auth
from tunneld.server.principals import Principal

# -- hellos that cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"received": -1},
        {"received": True},
        {"received": "1"},
        {"received": 1.5},
        {"received": None},
        {"resume_token": None},
        {"session_id": None},
        {"session_id": 7},
        {"dial": -1},
        {"dial": 2**63},
        {"dial": 1.5},
        {"instance": ""},
        {"instance": "x" * 129},
        {"wishes": {"resume": {"grace": -1, "buffer": 1}}},
        {"wishes": {"resume": {"grace": 1e300, "buffer": 1}}},
    ],
)
async def test_a_hello_that_cannot_be_harms_only_its_own_connection(more: dict[str, Any]) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        bad = await dial(server)
        hello = {
            "type": "hello",
            "instance": "hand",
            "dial": 2,
            "session_id": said["session_id"],
            "resume_token": said["resume_token"],
            "received": 1,
        }
        bad.say(**{**hello, **more})
        assert await bad.refused() == ("bad_hello", 1008)
        await still_serves(first, visitor, stream)
        last = await dial(server)
        assert (await last.resume(2, said, first.received))["resumed"] is True
        visitor.leave()


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"type":"hello"}', b'{"type":"ping","timestamp":"","seq":1}', b"1" * 9000],
)
async def test_what_is_no_hello_harms_only_its_own_connection(payload: bytes) -> None:
    async with serving(**SMALL) as server:
        first, _, visitor, stream = await with_stream(server)
        bad = await dial(server)
        bad.pipe.send(1, [payload])
        assert await bad.refused() == ("bad_hello", 1008)
        await still_serves(first, visitor, stream)
        visitor.leave()


async def test_a_frame_before_hello_harms_only_its_own_connection() -> None:
    async with serving(**SMALL) as server:
        first, _, visitor, stream = await with_stream(server)
        bad = await dial(server)
        bad.send(frames.frame(frames.DATA, stream, b"forged"))
        assert await bad.refused() == ("bad_hello", 1008)
        await still_serves(first, visitor, stream)
        visitor.leave()


async def test_no_hello_in_time() -> None:
    async with serving(**SMALL, limits={"hello_timeout": "100ms"}) as server:
        mute = await dial(server)
        assert await mute.refused() == ("hello_timeout", 1008)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_dial_that_is_not_the_newest_is_stale_across_resumes(number: int) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        first.cut()
        second = await dial(server)
        again = await second.resume(2, said, first.received)
        late = await dial(server)  # what a relay held back, with the token that is the newest even
        late.say(
            type="hello",
            instance="hand",
            dial=number,
            session_id=again["session_id"],
            resume_token=again["resume_token"],
            received=0,
        )
        assert await late.refused() == ("stale_hello", 1008)
        await still_serves(second, visitor, stream)
        visitor.leave()


# -- tokens --------------------------------------------------------------------------------------------


async def test_an_honest_retry_after_two_lost_answers_succeeds() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        lost = first
        for number in (2, 3, 4):
            lost.cut()
            lost = await dial(server, mute=True)  # its `connected` counts as lost: the next hello has the old token
            again = await lost.resume(number, said, first.received)
            assert again["resumed"] is True
        await still_serves(lost, visitor, stream)
        visitor.leave()


async def test_what_was_never_presented_and_is_not_the_newest_is_worth_nothing() -> None:
    async with serving(**SMALL) as server:
        first, said = await online(server)
        second = await dial(server, mute=True)
        skipped = await second.resume(2, said, 0)
        third = await dial(server, mute=True)
        assert (await third.resume(3, said, 0))["resumed"] is True
        fourth = await dial(server)
        again = await fourth.resume(4, skipped, 0)
        assert (again["resumed"], again["resume_refused"]) == (False, "token")
        assert await first.ended() == (4001, "replaced")


async def test_the_agents_first_message_leaves_only_the_newest_token() -> None:
    async with serving(**SMALL) as server:
        _, said = await online(server)
        second = await dial(server)
        newest = await second.resume(2, said, 0)
        second.say(type="ping", timestamp="2026-01-01T00:00:00Z", seq=1)
        await second.text("pong")
        third = await dial(server)
        assert (await third.resume(3, newest, 0))["resumed"] is True
        third.say(type="ping", timestamp="2026-01-01T00:00:00Z", seq=1)
        await third.text("pong")
        fourth = await dial(server)
        again = await fourth.resume(4, newest, 0)
        assert (again["resumed"], again["resume_refused"]) == (False, "token")


@pytest.mark.parametrize("token", ["", "x", "é" * 20, "\ud800", "0" * 43])
async def test_a_forged_token_opens_nothing(token: str) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, _ = await with_stream(server)
        thief = await dial(server)
        if token == "\ud800":
            thief.pipe.send(
                1, [json.dumps({"type": "hello", "instance": "i", "dial": 1, "resume_token": token}).encode()]
            )
            assert await thief.refused() == ("bad_hello", 1008)
        else:
            again = await thief.resume(1, said, 1, instance="thief", resume_token=token)
            assert (again["resumed"], again["resume_refused"]) == (False, "token")
            assert again["session_id"] != said["session_id"]
            assert again["received"] == 0
            await visitor.broken()  # the newest connection with the right credential wins: a fresh session
            assert await first.ended() == (4001, "replaced")
        visitor.leave()


async def test_a_stolen_token_is_worth_nothing_to_another_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(**SMALL) as server:
        monkeypatch.setattr(auth, "OPEN", Principal("mallory", "mallory"))
        thief = await dial(server)  # the name was free when it dialled
        monkeypatch.setattr(auth, "OPEN", Principal("alice", "alice"))
        first, said, visitor, stream = await with_stream(server)
        thief.say(
            type="hello",
            instance="hand",
            dial=2**62,
            session_id=said["session_id"],
            resume_token=said["resume_token"],
            received=1,
        )
        assert await thief.refused() == ("overloaded", 1013)
        await still_serves(first, visitor, stream)
        monkeypatch.setattr(auth, "OPEN", Principal("mallory", "mallory"))
        with pytest.raises(Exception, match=r"409") as refused:
            await dial(server)
        assert getattr(refused.value, "code", None) == "name_taken"
        monkeypatch.setattr(auth, "OPEN", Principal("alice", "alice"))
        last = await dial(server)
        assert (await last.resume(2, said, first.received))["resumed"] is True
        visitor.leave()


async def test_a_swapped_name_is_refused() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        other = await dial(server, name="u")
        again = await other.resume(2, said, first.received)
        assert (again["resumed"], again["resume_refused"]) == (False, "unknown")
        await still_serves(first, visitor, stream)
        visitor.leave()
