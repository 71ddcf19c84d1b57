"""The only SQL: the history of priors in SQLite or PostgreSQL, through one code path."""

from service.prior_store.store import SqlPriorStore, open_store

__all__ = ["SqlPriorStore", "open_store"]
