"""An executor that goes on with the threads that it has where the system allows no more."""

from concurrent.futures import ThreadPoolExecutor


class Executor(ThreadPoolExecutor):
    """Runs calls in at most `max_workers` threads. The first starts at once, others when needed.

    Where no further thread can be started, a call waits for one that there is. The standard
    executor raises RuntimeError from `submit` then, although it has queued the call.
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
