"""An event for a thread that waits for it and for a file descriptor at the same time."""

import os
import select
import threading


class Waker:
    """Works like `threading.Event`, but the waiting thread can also wait for a file descriptor.

    One thread waits and clears; any thread sets.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._reading, self._writing = os.pipe()
        self._closed = False
        os.set_blocking(self._writing, False)

    def set(self) -> None:
        """Wake the waiter now, or when it waits next."""
        with self._lock:
            if not self._closed and not self._event.is_set():
                os.write(self._writing, b"\0")
            self._event.set()

    def clear(self) -> None:
        """Forget that the waiter was woken."""
        with self._lock:
            if not self._closed and self._event.is_set():
                os.read(self._reading, 1)
            self._event.clear()

    def is_set(self) -> bool:
        """Whether `set` was called since the last `clear`."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until woken, for at most `seconds`. Returns whether it was woken."""
        return self._event.wait(seconds)

    def wait_for(self, descriptor: int, seconds: float) -> None:
        """Wait until woken or until the descriptor can be read, for at most `seconds`."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)

    def close(self) -> None:
        """Release the descriptors. `set` and `wait` work on."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reading)
                os.close(self._writing)
