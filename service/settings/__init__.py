"""Settings of the service, from flags and PRIORDIAL_* environment variables."""

from service.settings.fields import Settings
from service.settings.machine import check_extras, check_paths, check_threads
from service.settings.names import InvalidSetting, flag_of, variable_of
from service.settings.reading import add_flags, describe, read_settings, read_store

__all__ = [
    "InvalidSetting",
    "Settings",
    "add_flags",
    "check_extras",
    "check_paths",
    "check_threads",
    "describe",
    "flag_of",
    "read_settings",
    "read_store",
    "variable_of",
]
