"""Lines for stderr are whole and in order, and nobody but a thread waits for their reader."""

import io
import os
import threading

from service.process import stderr


def test_a_block_that_a_full_pipe_takes_in_parts_is_written_whole():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as a terminal or a host program may have set it
    block = b"".join(b"%07d\n" % number for number in range(40_000))
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb", buffering=0) as stream:
        assert isinstance(stream, io.RawIOBase)
        thread = threading.Thread(target=stderr.write, args=(stream, block))
        thread.start()
        assert reader.read(len(block)) == block
        thread.join()


def test_lines_beyond_the_most_that_wait_are_refused_and_the_others_written(monkeypatch):
    gate, written = threading.Event(), io.BytesIO()

    class Stuck(io.RawIOBase):
        def write(self, block):
            assert gate.wait(30)
            return written.write(block)

    monkeypatch.setattr(stderr, "binary", Stuck)
    taken = [stderr.put(b"%d\n" % number) for number in range(stderr.MAX_WAITING + 50)]
    assert taken.count(False) >= 49, "one line may be with the thread already"
    assert taken[: stderr.MAX_WAITING] == [True] * stderr.MAX_WAITING
    gate.set()
    stderr.flush(30)
    assert written.getvalue().count(b"\n") == taken.count(True)


def test_the_stacks_name_the_function_of_each_thread():
    begun, end = threading.Event(), threading.Event()

    def a_function_that_waits():
        begun.set()
        end.wait(30)

    thread = threading.Thread(target=a_function_that_waits)
    thread.start()
    begun.wait(30)
    try:
        assert b"a_function_that_waits" in stderr.stacks()
    finally:
        end.set()
        thread.join()
