"""An executor that makes do with the threads it has when the system allows no more."""

from concurrent.futures import ThreadPoolExecutor


class Executor(ThreadPoolExecutor):
    """Runs calls in at most `max_workers` threads. The first starts at once, others when needed.

    If no further thread can be started, a call waits for an existing one. The standard executor
    would raise RuntimeError from `submit`, although it has queued the call.
    """

    def __init__(self, max_workers: int, name: str) -> None:
        """Raises RuntimeError if not even one thread can be started."""
        super().__init__(max_workers, name)
        self.submit(int)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise
