"""Memory goes back to the system without a call that keeps the interpreter."""

import gc

from service.process.machine import return_memory_of


class Entry:
    """One of many entries; notes whether the garbage collector frees it."""

    def __init__(self, collecting, freed):
        self.collecting, self.freed = collecting, freed

    def __del__(self):
        self.freed.append(bool(self.collecting))


class Holder:
    """Holds a sequence in a cycle, as an unloaded model does."""

    def __init__(self, entries):
        self.entries, self.me = entries, self


def test_the_entries_of_an_unloaded_model_are_freed_in_portions_and_not_by_the_collector():
    collecting, freed = set(), []

    def note(phase, _facts):
        (collecting.add if phase == "start" else collecting.discard)("now")

    holder = Holder(tuple(Entry(collecting, freed) for _ in range(25_000)))
    vast = [holder.entries, None]
    del holder
    gc.callbacks.append(note)
    try:
        return_memory_of(vast)
    finally:
        gc.callbacks.remove(note)
    assert vast == []
    assert freed == [False] * 25_000
