"""How a worker ended, as its supervisor tells it."""

import signal

from service.server.child import MemoryKills


def test_each_process_that_the_kernel_killed_for_want_of_memory_explains_one_worker():
    killed = [7]  # before this process began
    kills = MemoryKills(lambda: killed[0])
    assert kills.reason(-signal.SIGKILL) is None
    killed[0] = 8
    assert kills.reason(-signal.SIGTERM) is None
    assert kills.reason(1) is None
    reason = kills.reason(-signal.SIGKILL)
    assert "killed by the kernel, because memory ran out" in reason
    assert "give it more, or set fewer --workers" in reason
    assert kills.reason(-signal.SIGKILL) is None, "somebody killed this one"
