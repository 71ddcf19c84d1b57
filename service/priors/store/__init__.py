"""The only SQL: the history of priors in SQLite or PostgreSQL, through one code path."""

from service.priors.store.engine import InvalidStoreUrl
from service.priors.store.place import store_url
from service.priors.store.store import SqlPriorStore, open_store

__all__ = ["InvalidStoreUrl", "SqlPriorStore", "open_store", "store_url"]
