"""What a worker reads of a store while others write to it."""

from contextlib import closing

import pytest

from service.contract.members.body import PriorBody
from service.priors.changes import Replace
from service.priors.orders import wishes
from service.priors.store import follow, open_store


@pytest.fixture
def stores(store_url):
    """A store that a worker follows, and the same one as another worker has opened it."""
    with closing(open_store(store_url)) as followed, closing(open_store(store_url)) as other:
        followed.open()
        other.open()
        yield followed, other


def put(store, note):
    change = Replace("default", PriorBody(note=note), "digest")
    return store.write("pets", "default", change, by="ana", after=-1).entry


def test_what_is_written_between_two_queries_of_a_reading_is_read_by_the_next(stores, monkeypatch):
    followed, other = stores
    known, late = put(other, "first"), []
    begin = followed.newest().number
    put(other, "second")
    queried = follow.orders_since

    def after_other_writes(*arguments):
        if not late:  # once the entries were read
            late.append(put(other, "third"))
            other.order("pets", wishes.unload, by="ana", after=-1)
        return queried(*arguments)

    monkeypatch.setattr(follow, "orders_since", after_other_writes)
    first = followed.since(begin)
    again = followed.since(first.number)
    read = [*first.entries, *again.entries]
    assert known.revision + 2 in [entry.revision for entry in read], "the third is never lost"
    assert [order.wish.loaded for order in (*first.orders, *again.orders)] == [False]


def test_what_is_written_in_the_middle_of_a_check_does_not_make_the_store_behind(stores):
    """A standby has not received it yet; the writing thread notes it at any moment."""
    followed, other = stores
    put(other, "first")
    begin = followed.newest().number
    put(other, "second")
    follower = followed._follower

    class Interrupted(tuple):
        """What was noted last; whoever looks at it, is stopped there, while more is noted."""

        __slots__ = ()

        def __getitem__(self, place):
            follower._mark = (begin + 9, "not received yet")
            return super().__getitem__(place)

    follower._mark = Interrupted(follower._mark)
    assert [entry.note for entry in followed.since(begin).entries] == ["second"]
