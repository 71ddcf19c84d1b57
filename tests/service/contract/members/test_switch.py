"""Contexts and schedules: which prior applies, and documents that are wrong."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.members.switch import MAX_KEYS, MAX_RULES, MAX_VALUES, Choice
from service.contract.prior import resolve_prior

SITES = {"site": {"north": "winter", "south": "summer"}, "else": "default"}
BERLIN = "Europe/Berlin"


def switch_of(**members):
    body = parse_prior(members)
    switch = resolve_prior(body, class_names=["a", "b"], class_counts=[1, 1], loss_tau=0.0).switch
    assert switch is not None
    return switch


def faults_of(**members):
    with pytest.raises(InvalidPrior) as caught:
        switch_of(**members)
    return {error["field"]: error["message"] for error in caught.value.errors}


def at(*moment, zone=BERLIN):
    return datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("context", "choice"),
    [
        ({"site": "north"}, Choice(("winter", "default"), "site", "north")),
        ({"site": "west"}, Choice(("default",), "site", "west", "unknown_value")),
        ({"camera": "7"}, Choice(("default",), None, None, "no_context")),
        ({}, Choice(("default",), None, None, "no_context")),
        (None, Choice(("default",), None, None, "no_context")),
    ],
)
def test_the_value_of_a_key_chooses_and_else_stands_behind_it(context, choice):
    assert switch_of(context=SITES).choose(context, 0.0) == choice


def test_the_first_key_whose_value_is_mapped_decides():
    switch = switch_of(context={"camera": {"7": "night"}, "site": {"north": "winter"}})
    assert switch.choose({"site": "north", "camera": "7"}, 0.0).names == ("night",)
    assert switch.choose({"site": "north", "camera": "8"}, 0.0).names == ("winter",)
    assert switch.choose({"site": "x", "camera": "8"}, 0.0) == Choice(
        (), "camera", "8", "unknown_value"
    )
    assert switch.names == ["night", "winter"]


RULES = {
    "time_zone": BERLIN,
    "rules": [
        {"months": [12], "prior": "advent"},
        {"weekdays": ["sat", "sun"], "prior": "weekend"},
        {"hours": [22, 6.5], "prior": "night"},
        {"hours": [9, 18], "weekdays": ["mon"], "prior": "monday"},
    ],
    "else": "default",
}


@pytest.mark.parametrize(
    ("moment", "value", "name"),
    [
        ((2026, 12, 5, 12), "0", "advent"),  # a Saturday too: the first rule counts
        ((2026, 11, 28, 12), "1", "weekend"),
        ((2026, 11, 26, 22, 0), "2", "night"),
        ((2026, 11, 26, 6, 29), "2", "night"),
        ((2026, 11, 26, 6, 30), None, "default"),
        ((2026, 11, 23, 9), "3", "monday"),
        ((2026, 11, 23, 18), None, "default"),
    ],
)
def test_the_first_rule_that_holds_at_the_local_time_applies(moment, value, name):
    choice = switch_of(schedule=RULES).choose(None, at(*moment))
    assert (choice.key, choice.value, choice.names[0]) == ("schedule", value, name)
    assert choice.fallback == (None if value is not None else "no_rule")


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ((2026, 11, 27, 21, 59), False),
        ((2026, 11, 27, 22, 0), True),  # a Friday
        ((2026, 11, 28, 5, 59), True),
        ((2026, 11, 28, 6, 0), False),
        ((2026, 11, 28, 22, 0), False),
        ((2026, 11, 27, 5, 59), False),  # the night of a Thursday
        ((2027, 1, 1, 22, 0), False),  # a Friday of another month
    ],
)
def test_hours_past_midnight_belong_to_the_day_on_which_they_began(moment, holds):
    rule = {"weekdays": ["fri"], "months": [11, 12], "hours": [22, 6], "prior": "night"}
    switch = switch_of(schedule={"time_zone": BERLIN, "rules": [rule]})
    assert (switch.choose(None, at(*moment)).value is not None) == holds


def test_hours_past_midnight_belong_to_the_month_in_which_they_began():
    rule = {"months": [12], "hours": [22, 6], "prior": "advent"}
    switch = switch_of(schedule={"time_zone": BERLIN, "rules": [rule]})
    nights = [at(2026, 12, 1, 3), at(2027, 1, 1, 3)]
    assert [switch.choose(None, night).value for night in nights] == [None, "0"]


def test_hours_follow_the_clock_of_the_zone_through_the_change_to_summer_time():
    rules = {"time_zone": BERLIN, "rules": [{"hours": [3, 24], "prior": "late"}]}
    switch = switch_of(schedule=rules)
    utc = [at(2026, 3, 29, hour, 30, zone="UTC") for hour in (0, 1)]
    assert [switch.choose(None, moment).value for moment in utc] == [None, "0"]


def test_the_cases_are_what_answers_may_name():
    assert switch_of(context=SITES).cases() == [("site", "north"), ("site", "south")]
    assert [case for _, case in switch_of(schedule=RULES).cases()] == ["0", "1", "2", "3"]


def test_without_else_nothing_else_is_named():
    rules = {"time_zone": "UTC", "rules": [{"months": [1], "prior": "january"}]}
    assert switch_of(schedule=rules).choose(None, at(2026, 5, 1)).names == ()
    assert switch_of(schedule=rules).names == ["january"]


RULE = {"prior": "x"}


@pytest.mark.parametrize(
    ("members", "field", "message"),
    [
        ({"context": 3}, "context", "an object of keys"),
        ({"context": {"else": "x"}}, "context", "has 0 keys"),
        ({"context": {"site": "x"}}, "context.site", "from values to priors"),
        ({"context": {"site": {}}}, "context.site", "from values to priors"),
        ({"context": {"site": {"n": "Not A Name"}}}, "context.site.n", "name of a prior"),
        ({"context": {"site": {"n": "x"}, "else": 3}}, "context.else", "name of a prior"),
        ({"context": {"s" * 129: {"n": "x"}}}, "context." + "s" * 60, "has 129 characters"),
        ({"context": {"site": {"n" * 129: "x"}}}, "context.site", "has 129 characters"),
        ({"context": SITES, "schedule": RULES}, "schedule", "only one of them"),
        ({"schedule": []}, "schedule", "time_zone and rules"),
        ({"schedule": {"rules": [RULE]}}, "schedule.time_zone", "such as Europe/Berlin"),
        (
            {"schedule": {"time_zone": "Mars/Base", "rules": [RULE]}},
            "schedule.time_zone",
            "unknown time zone",
        ),
        (
            {"schedule": {"time_zone": "../etc/passwd", "rules": [RULE]}},
            "schedule.time_zone",
            "unknown time zone",
        ),
        (
            {"schedule": {"time_zone": "Europe", "rules": [RULE]}},
            "schedule.time_zone",
            "unknown time zone",
        ),
        (
            {"schedule": {"time_zone": "localtime", "rules": [RULE]}},
            "schedule.time_zone",
            "not the same time zone on every machine",
        ),
        ({"schedule": {"time_zone": "UTC", "rules": []}}, "schedule.rules", "1 to 100 rules"),
        (
            {"schedule": {"time_zone": "UTC", "rules": [RULE], "zone": 1}},
            "schedule.zone",
            "unknown member",
        ),
        (
            {"schedule": {"time_zone": "UTC", "rules": [RULE], "else": ""}},
            "schedule.else",
            "name of a prior",
        ),
    ],
)
def test_what_is_wrong_is_named(members, field, message):
    assert message in faults_of(**members)[field]


@pytest.mark.parametrize(
    ("rule", "member", "message"),
    [
        (3, "", "expected an object"),
        ({}, ".prior", "name of a prior"),
        ({"prior": "x", "day": 1}, ".day", "unknown member"),
        ({"prior": "x", "weekdays": ["monday"]}, ".weekdays", "mon, tue"),
        ({"prior": "x", "weekdays": [["mon"]]}, ".weekdays", "mon, tue"),
        ({"prior": "x", "months": [0]}, ".months", "from 1 to 12"),
        ({"prior": "x", "months": [True]}, ".months", "from 1 to 12"),
        ({"prior": "x", "hours": [8]}, ".hours", "[from, to]"),
        ({"prior": "x", "hours": [8, 8]}, ".hours", "[from, to]"),
        ({"prior": "x", "hours": [8, 25]}, ".hours", "[from, to]"),
        ({"prior": "x", "hours": list(range(9))}, ".hours", "a list of 9"),
        ({"prior": "x", "hours": [24, 0]}, ".hours", "write [0, 24] for the whole day"),
        ({"prior": "x", "hours": [24.0, 0.0]}, ".hours", "never applies"),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(rule, member, message):
    schedule = {"time_zone": "UTC", "rules": [RULE, rule]}
    assert message in faults_of(schedule=schedule)["schedule.rules.1" + member]


def test_documents_of_hostile_size_are_refused_in_a_few_words():
    many = {f"k{i}": {"v": "x"} for i in range(MAX_KEYS + 1)}
    assert "expected 1 to 8" in faults_of(context=many)["context"]
    wide = {"site": {str(i): "x" for i in range(MAX_VALUES + 1)}}
    assert "at most" in faults_of(context=wide)["context"]
    wrong = {"site": {str(i): "" for i in range(MAX_VALUES)}}
    assert len(faults_of(context=wrong)) <= 51
    rules = {"time_zone": "UTC", "rules": [RULE] * (MAX_RULES + 1)}
    assert "1 to 100" in faults_of(schedule=rules)["schedule.rules"]


def test_a_stored_body_that_another_program_wrote_wrong_is_an_invalid_prior():
    body = PriorBody(schedule={"time_zone": 3, "rules": []})
    with pytest.raises(InvalidPrior):
        resolve_prior(body, class_names=["a"], class_counts=[1], loss_tau=0.0)
