"""Which of several stored priors applies: by the context of a request, or by the local time.

`context` maps a key that requests give (a site, a camera, a season's name) to priors by its value.
`schedule` holds rules of weekdays, months and hours in a time zone; the first that holds applies.
Where nothing applies, `else` names the prior; without it the prior itself is used.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Literal, TypeAlias

from service.contract.time_zones import UnknownZone, time_zone

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
"""The name of a prior."""
MAX_KEYS = 8
"""The most keys of a context, in a prior and in a request."""
MAX_VALUES = 10_000
"""The most values that one prior's context maps, over all keys."""
MAX_TEXT = 128
"""The most characters of a key or a value."""
MAX_RULES = 100
"""The most rules of a schedule."""
ELSE = "else"
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

ContextBody: TypeAlias = dict[str, dict[str, str] | str]
"""Key → value → name of a prior; `else` → the name of a prior."""
ScheduleBody: TypeAlias = dict[str, Any]
"""time_zone, rules [{prior, weekdays, months, hours}] and else; form_faults checks it."""
Fallback: TypeAlias = Literal["no_context", "unknown_value", "no_rule", "prior_not_available"]
Fault: TypeAlias = tuple[str, str]

_NAME = re.compile(NAME_PATTERN)
_MOST_FAULTS = 50


@dataclass(frozen=True)
class Choice:
    """What a switch chose: the priors to try in order, the key and value that chose them, a reason.

    Without names, the prior that holds the switch applies.
    """

    names: tuple[str, ...]
    key: str | None = None
    value: str | None = None
    fallback: Fallback | None = None


@dataclass(frozen=True)
class _Rule:
    prior: str
    weekdays: frozenset[int]
    months: frozenset[int]
    begin: float
    end: float

    def holds(self, moment: datetime) -> bool:
        """Whether the rule holds at a local time.

        Hours may run past midnight: what follows it belongs to the day on which they began.
        """
        hour = moment.hour + moment.minute / 60 + moment.second / 3600
        day = moment
        if self.begin < self.end:
            within = self.begin <= hour < self.end
        elif hour < self.end:
            within, day = True, moment - timedelta(days=1)
        else:
            within = hour >= self.begin
        return within and day.weekday() in self.weekdays and day.month in self.months


@dataclass(frozen=True)
class Switch:
    """A checked context or schedule."""

    by_key: Mapping[str, Mapping[str, str]]
    rules: tuple[_Rule, ...]
    zone: tzinfo | None
    otherwise: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Every prior that may be chosen, in the order of the document."""
        mapped = [name for values in self.by_key.values() for name in values.values()]
        return list(dict.fromkeys([*mapped, *(r.prior for r in self.rules), *self.otherwise]))

    def cases(self) -> list[tuple[str, str]]:
        """Every (key, value) that leads to a prior; of a schedule, the numbers of its rules."""
        if self.zone is not None:
            return [("schedule", str(number)) for number in range(len(self.rules))]
        return [(key, value) for key, values in self.by_key.items() for value in values]

    def choose(self, context: Mapping[str, str] | None, now: float) -> Choice:
        """The priors for a request with this context, at `now` in seconds since 1970."""
        if self.zone is not None:
            moment = datetime.fromtimestamp(now, self.zone)
            for number, rule in enumerate(self.rules):
                if rule.holds(moment):
                    return Choice((rule.prior, *self.otherwise), "schedule", str(number))
            return Choice(self.otherwise, "schedule", None, "no_rule")
        given = None
        for key, values in self.by_key.items():
            value = None if context is None else context.get(key)
            if value is None:
                continue
            if value in values:
                return Choice((values[value], *self.otherwise), key, value)
            given = given or (key, value)
        if given is None:
            return Choice(self.otherwise, None, None, "no_context")
        return Choice(self.otherwise, *given, "unknown_value")


def form_faults(body: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the `context` and `schedule` of a prior's JSON; empty where nothing is."""
    context, schedule = body.get("context"), body.get("schedule")
    if context is not None and schedule is not None:
        return [("schedule", "is given together with 'context'; expected only one of them")]
    faults = [] if context is None else list(_context_faults(context))
    if schedule is not None:
        faults += _schedule_faults(schedule) or _hours_that_never_apply(schedule)
    return faults[:_MOST_FAULTS]


def _hours_that_never_apply(schedule: Mapping[str, Any]) -> list[Fault]:
    """Rules from 24 to 0. Not among `_schedule_faults`: priors that are stored stay valid."""
    fault = "[24, 0] never applies; write [0, 24] for the whole day, or leave it out"
    return [
        (f"schedule.rules.{number}.hours", fault)
        for number, rule in enumerate(schedule["rules"])
        if rule.get("hours") == [24, 0]
    ]


def resolve_switch(
    context: ContextBody | None, schedule: ScheduleBody | None, faults: list[Fault]
) -> Switch | None:
    """The switch of a prior, if it has one; what is wrong is added to `faults`."""
    if context is not None:
        by_key = {key: values for key, values in context.items() if isinstance(values, dict)}
        last = context.get(ELSE)
        return Switch(by_key, (), None, (last,) if isinstance(last, str) else ())
    if schedule is None:
        return None
    wrong = _schedule_faults(schedule)
    zone = None
    if not wrong:
        try:
            zone = time_zone(schedule["time_zone"])
        except UnknownZone as error:
            wrong = [("schedule.time_zone", str(error))]
    faults += wrong
    last = schedule.get(ELSE)
    rules = () if wrong else tuple(map(_rule, schedule["rules"]))
    return Switch({}, rules, zone, () if last is None else (last,))


def _rule(body: Mapping[str, Any]) -> _Rule:
    begin, end = body.get("hours") or (0.0, 24.0)
    return _Rule(
        body["prior"],
        frozenset(map(WEEKDAYS.index, body.get("weekdays") or WEEKDAYS)),
        frozenset(body.get("months") or range(1, 13)),
        float(begin),
        float(end),
    )


def _context_faults(context: object) -> Iterable[Fault]:
    if not isinstance(context, dict):
        yield "context", f"expected an object of keys; got {_short(context)}"
        return
    keys = [key for key in context if key != ELSE]
    if not 1 <= len(keys) <= MAX_KEYS:
        yield "context", f"has {len(keys)} keys besides 'else'; expected 1 to {MAX_KEYS}"
        return
    total = sum(len(context[key]) for key in keys if isinstance(context[key], dict))
    if total > MAX_VALUES:
        yield "context", f"maps {total} values; at most {MAX_VALUES} are allowed"
        return
    if ELSE in context:
        yield from _name_faults("context.else", context[ELSE])
    for key in keys:
        where, values = f"context.{key[:60]}", context[key]
        if not 1 <= len(key) <= MAX_TEXT:
            yield where, f"a key has {len(key)} characters; expected 1 to {MAX_TEXT}"
        if not isinstance(values, dict) or not values:
            yield where, f"expected an object from values to priors; got {_short(values)}"
            continue
        for value, name in values.items():
            if len(value) > MAX_TEXT:
                yield where, f"a value has {len(value)} characters; expected at most {MAX_TEXT}"
            yield from _name_faults(f"{where}.{value[:60]}", name)


def _schedule_faults(schedule: object) -> list[Fault]:
    if not isinstance(schedule, dict):
        return [
            ("schedule", f"expected an object with time_zone and rules; got {_short(schedule)}")
        ]
    faults: list[Fault] = [
        (f"schedule.{name[:60]}", "unknown member")
        for name in schedule
        if name not in ("time_zone", "rules", ELSE)
    ]
    if not isinstance(schedule.get("time_zone"), str):
        faults.append(
            ("schedule.time_zone", "expected the name of a time zone, such as Europe/Berlin")
        )
    if schedule.get(ELSE) is not None:
        faults += _name_faults("schedule.else", schedule[ELSE])
    rules = schedule.get("rules")
    if not isinstance(rules, list) or not 1 <= len(rules) <= MAX_RULES:
        return [*faults, ("schedule.rules", f"expected a list of 1 to {MAX_RULES} rules")]
    for number, rule in enumerate(rules):
        faults += _rule_faults(f"schedule.rules.{number}", rule)
    return faults


def _rule_faults(where: str, rule: object) -> list[Fault]:
    if not isinstance(rule, dict):
        return [(where, f"expected an object; got {_short(rule)}")]
    faults: list[Fault] = [
        (f"{where}.{name[:60]}", "unknown member")
        for name in rule
        if name not in ("prior", "weekdays", "months", "hours")
    ]
    faults += _name_faults(f"{where}.prior", rule.get("prior"))
    weekdays, months, hours = (rule.get(name, []) for name in ("weekdays", "months", "hours"))
    if not isinstance(weekdays, list) or not all(day in WEEKDAYS for day in weekdays):
        faults.append((f"{where}.weekdays", f"expected a list of {', '.join(WEEKDAYS)}"))
    if not isinstance(months, list) or not all(
        type(month) is int and 1 <= month <= 12 for month in months
    ):
        faults.append((f"{where}.months", "expected a list of numbers from 1 to 12"))
    if hours != [] and not (
        isinstance(hours, list)
        and len(hours) == 2
        and all(type(hour) in (int, float) and 0 <= hour <= 24 for hour in hours)
        and hours[0] != hours[1]
    ):
        faults.append(
            (f"{where}.hours", f"expected [from, to] of different hours, 0 to 24; {_short(hours)}")
        )
    return faults


def _name_faults(where: str, name: object) -> list[Fault]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [(where, f"expected the name of a prior; got {_short(name)}")]


def _short(value: object) -> str:
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
