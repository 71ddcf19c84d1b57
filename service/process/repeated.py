"""A call that is made again and again in a thread of its own."""

import logging
import threading
from collections.abc import Callable

STOP_SECONDS = 1.0
"""`Repeated.stop` waits no longer than this for a call that is being made."""

logger = logging.getLogger(__name__)


class Repeated:
    """Makes a call every few seconds in a daemon thread, until it is stopped.

    A call that raises is logged, and the next one is made as usual.
    """

    def __init__(
        self,
        call: Callable[[], object],
        *,
        name: str,
        every_seconds: float,
        failure: str,
        at_once: bool = False,
    ) -> None:
        """`name` is the thread's. every_seconds: the pause between two calls.

        failure: the log's words where a call raises, such as "drift could not be measured".
        at_once: make the first call at the start, not after a pause.
        """
        self._call, self._every, self._failure = call, every_seconds, failure
        self._at_once = at_once
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system allows no more."""
        self._thread.start()

    def stop(self) -> None:
        """Make no more calls. Blocks until the one in progress returns, STOP_SECONDS at most.

        A thread that is still in compiled code when Python ends can end the process by SIGABRT.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        if self._at_once:
            self._make_call()
        while not self._stopped.wait(self._every):
            self._make_call()

    def _make_call(self) -> None:
        try:
            self._call()
        except Exception:
            logger.exception(
                "%s; next attempt in %g s; report this with the traceback",
                self._failure,
                self._every,
            )
