"""The connection between a worker and its supervisor: one bad message affects no other message."""

import asyncio
import socket

import pytest

from service.server.link import (
    MAX_FRAME_BYTES,
    Place,
    cut,
    encoded,
    next_message,
)


def messages_of(*parts):
    """Everything that is read of these bytes, in parts."""

    async def go():
        reader = asyncio.StreamReader()
        for part in parts:
            reader.feed_data(part)
        reader.feed_eof()
        found = []
        while (message := await next_message(reader)) is not None:
            found.append(message)
        return found

    return asyncio.run(go())


def test_messages_come_as_they_were_sent_however_they_are_cut():
    sent = [{"ready": True}, {"refused": "line\nbreak \u2028 ü"}, {"done": 1, "error": None}]
    data = b"".join(encoded(message) for message in sent)
    assert messages_of(data) == sent
    assert messages_of(*(data[i : i + 1] for i in range(len(data)))) == sent


def test_a_message_that_is_too_long_is_dropped_and_the_next_is_read(caplog):
    long = encoded({"refused": "x" * MAX_FRAME_BYTES})
    assert messages_of(long, encoded({"ready": True})) == [{"ready": True}]
    assert "was dropped: it is longer than" in caplog.text


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_message_that_is_no_object_is_dropped_and_the_next_is_read(body, caplog):
    framed = len(body).to_bytes(4, "big") + body
    assert messages_of(framed, encoded({"ready": True})) == [{"ready": True}]
    assert "not a JSON object" in caplog.text


def test_a_line_that_ends_in_the_middle_of_a_message_has_ended():
    assert messages_of(encoded({"ready": True}), encoded({"done": 1})[:-1]) == [{"ready": True}]


def test_a_long_reason_is_cut_and_says_how_much_is_missing():
    assert cut("short") == "short"
    short = cut("x" * 2_000_000)
    assert len(encoded({"refused": short})) < MAX_FRAME_BYTES
    assert short.endswith("(and 1996000 more characters)")


def test_a_place_is_whole_however_long_its_settings_are():
    place = Place(1, "/run", 3, {"api_keys": "x" * 500_000}, "hung")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = asyncio.run(_sent_and_read(ours, theirs, place))
    assert sending == place


async def _sent_and_read(ours, theirs, place):
    sent = asyncio.create_task(asyncio.to_thread(ours.sendall, place.encoded()))
    found = await asyncio.to_thread(Place.read, theirs)
    await sent
    return found


def test_a_worker_whose_supervisor_has_ended_before_its_place_came_is_told():
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b"\x00\x00")
        ours.close()
        with pytest.raises(EOFError):
            Place.read(theirs)
