"""The stored states of the workers' traffic trackers: the newest state of each worker, by model.

States are not part of the history of priors. They are overwritten, and a lost one is rebuilt from
traffic. Their table is created when the first state is stored, so a store of an earlier version
needs no migration.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Column,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import delete as sql_delete

from service.priors.store.engine import Database
from service.priors.store.rows import microseconds, moment
from service.priors.store.trouble import typed_trouble

FORGET_DAYS = 7
"""States that were not renewed for this long are removed."""
_LOCK = 0x7368696674  # any number: the same in every replica, and not that of the history

_metadata = MetaData()
_states = Table(
    "priordial_tracking",
    _metadata,
    Column("model", String(64), primary_key=True),
    Column("keeper", String(300), primary_key=True),
    Column("class_digest", String(64), nullable=False),
    Column("kept_us", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("judged", Text, nullable=False),
)


@dataclass(frozen=True)
class KeptState:
    """The state of one worker: `keeper` is its replica and slot, `judged` a JSON document."""

    model: str
    keeper: str
    class_digest: str
    state: bytes
    judged: str = "{}"
    kept_at: datetime | None = None


class KeptStates:
    """The states in a store. Calls block, may be made from any thread, and raise
    StoreUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._made = False

    def keep(self, kept: KeptState) -> None:
        """Replace the last state of the same keeper."""
        now = microseconds(datetime.now(UTC))
        mine = (_states.c.model == kept.model) & (_states.c.keeper == kept.keeper)
        values = {
            "class_digest": kept.class_digest,
            "kept_us": now,
            "state": kept.state,
            "judged": kept.judged,
        }
        with typed_trouble(), self._database.transaction() as connection:
            if not self._made and self._database.is_postgres:
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
            if not self._made:
                _metadata.create_all(connection)
            if connection.execute(update(_states).where(mine).values(values)).rowcount == 0:
                named = {"model": kept.model, "keeper": kept.keeper}
                connection.execute(insert(_states).values(**named, **values))
            old = microseconds(datetime.now(UTC) - timedelta(days=FORGET_DAYS))
            connection.execute(sql_delete(_states).where(_states.c.kept_us < old))
        self._made = True

    def of(self, model: str) -> list[KeptState]:
        """The states of a model, the newest first."""
        with typed_trouble(), self._database.engine.connect() as connection:
            if not self._made and not inspect(connection).has_table(_states.name):
                return []
            wanted = select(_states).where(_states.c.model == model)
            rows = connection.execute(wanted.order_by(_states.c.kept_us.desc())).all()
        return [
            KeptState(
                row.model, row.keeper, row.class_digest, row.state, row.judged, moment(row.kept_us)
            )
            for row in rows
        ]

    def take_over(self, kept: KeptState, keeper: str) -> bool:
        """Give a state to another keeper, in place of that keeper's own.

        Returns False if the state has changed since it was read, as when another keeper was first.
        """
        if kept.kept_at is None:
            return False
        named = _states.c.model == kept.model
        unchanged = (_states.c.keeper == kept.keeper) & (
            _states.c.kept_us == microseconds(kept.kept_at)
        )
        with typed_trouble(), self._database.transaction() as connection:
            if not connection.execute(sql_delete(_states).where(named & unchanged)).rowcount:
                return False
            connection.execute(sql_delete(_states).where(named & (_states.c.keeper == keeper)))
            connection.execute(
                insert(_states).values(
                    model=kept.model,
                    keeper=keeper,
                    class_digest=kept.class_digest,
                    kept_us=microseconds(datetime.now(UTC)),
                    state=kept.state,
                    judged=kept.judged,
                )
            )
        return True
