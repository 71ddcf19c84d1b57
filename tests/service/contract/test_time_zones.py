"""A name of a time zone means the same on every machine, or is refused with the right one."""

import os
import zoneinfo

import pytest

from service.contract import time_zones
from service.contract.time_zones import UnknownZone, time_zone


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "Etc/GMT+5", "GB-Eire", "EST5EDT"])
def test_an_iana_name_is_taken(name):
    assert time_zone(name) == zoneinfo.ZoneInfo(name)


@pytest.mark.parametrize("name", ["posixrules", "Factory"])
def test_a_zone_that_the_machine_chooses_is_refused(name):
    with pytest.raises(
        UnknownZone,
        match=f"'{name}' is not the same time zone on every machine; expected an IANA name such",
    ):
        time_zone(name)


@pytest.mark.parametrize("folder", ["posix", "right"])
def test_a_copy_of_a_zone_is_refused_with_the_name_of_the_zone(folder):
    with pytest.raises(UnknownZone, match=r"on every machine.*did you mean 'Asia/Tokyo'\?"):
        time_zone(f"{folder}/Asia/Tokyo")


def test_the_zone_of_this_machine_is_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(os.path, "realpath", lambda path: "/usr/share/zoneinfo/Asia/Tokyo")
    with pytest.raises(UnknownZone, match=r"'localtime' is not.*did you mean 'Asia/Tokyo'\?"):
        time_zone("localtime")


@pytest.mark.parametrize(
    ("name", "near"),
    [("europe/berlin", "Europe/Berlin"), ("Europe/Berln", "Europe/Berlin"), ("utc", "UTC")],
)
def test_a_misspelt_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(UnknownZone, match=rf"unknown time zone.*did you mean '{near}'\?"):
        time_zone(name)


def test_a_machine_without_a_folder_of_zones_still_refuses_in_words(monkeypatch):
    monkeypatch.setattr(zoneinfo, "TZPATH", ("/nowhere",))
    time_zones._names.cache_clear()
    try:
        for name in ("localtime", "Mars/Base", "posix/Asia/Tokyo", "../etc/passwd", "x" * 9999):
            with pytest.raises(UnknownZone, match=r"such as Europe/Berlin$"):
                time_zone(name)
    finally:
        time_zones._names.cache_clear()
