"""Each numeric field of a prior and of model.json, with each odd number: refused, or of a meaning.

Refused means: with an error of the contract that names the field. A number that is taken must give
finite vectors, decisions that differ by cost, and a prior that is read back from what is stored.
"""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import InvalidBundle, parse_bundle
from service.contract.inputs.familiarity import Familiarity
from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.prior import resolve_prior
from service.wire.faults import Malformed
from service.wire.json_text import parse_json

SHIPPED = Path(__file__).resolve().parents[3] / "models"
LONG = "1" + "0" * 4999
NUMBERS = ("0", "-0.0", "-1", "1e-320", "1e-300", "1e300", "1e308", str(10**18), "1" + "0" * 400)
NO_NUMBERS = ("NaN", "Infinity", "1e309", LONG, "true", "false", '"1"', "[]", "{}")

ALLOWED = {
    '{"label_frequencies": [@, 3]}': ("1e300", str(10**18)),
    '{"label_frequencies": {"a": @, "b": 3}}': ("1e300", str(10**18)),
    '{"target": [@, 3]}': ("0", "-0.0", "1e300", str(10**18)),
    '{"target": [@, @]}': ("1e-320", "1e-300", "1e300", "1e308", str(10**18)),
    '{"target": {"a": 1}, "others": @}': ("0", "-0.0", "1e-300", "1e300", str(10**18)),
    '{"smoothing": @}': ("0", "-0.0", "1e-320", "1e-300", "1e300", "1e308", str(10**18)),
    '{"auto_adopt": {"every_minutes": @}}': (),
    '{"auto_adopt": {"largest_step": @}}': (),
    '{"auto_adopt": {"floor": @}}': ("0", "-0.0", "1e-320", "1e-300"),
    '{"auto_adopt": {"quiet_hours": [@, "04:00"]}}': (),
    '{"costs": {"miss": [@, @]}}': (),
    '{"costs": {"miss": {"a": @}}}': ("0", "-0.0", "1e-320", "1e-300"),
    '{"costs": {"pairs": [["a", "b", @]]}}': ("0", "-0.0", "1e-320", "1e-300"),
    '{"costs": {"matrix": [[0, @], [@, 0]]}}': (),
    '{"costs": {"reject": @}}': ("0", "-0.0", "1e-320", "1e-300"),
    '{"schedule": {"time_zone": "UTC", "rules": [{"prior": "p", "hours": [@, 4]}]}}': (
        "0", "-0.0", "1e-320", "1e-300",
    ),
    '{"schedule": {"time_zone": "UTC", "rules": [{"prior": "p", "months": [@]}]}}': (),
}  # fmt: skip
"""Bodies of a prior with a place for a number, and the numbers that have a meaning there."""


def resolved(text):
    body = parse_prior(parse_json(text.encode()))
    again = parse_prior(json.loads(body.model_dump_json()))
    assert again == body == PriorBody.model_validate_json(body.model_dump_json())
    return resolve_prior(body, class_names=["a", "b"], class_counts=[5, 9], loss_tau=0.0)


def outcome(function, text):
    """What the function makes of a text, or the message with which it refuses the text."""
    try:
        return function(text), None
    except (InvalidPrior, InvalidBundle, Malformed) as error:
        return None, str(error)


@pytest.mark.parametrize("form", ALLOWED)
def test_an_odd_number_in_a_prior_is_refused_by_name_or_has_a_meaning(form):
    taken = []
    for number in (*NUMBERS, *NO_NUMBERS):
        found, refusal = outcome(resolved, form.replace("@", number))
        if refusal is not None:
            assert any(name in refusal for name in (*form.split('"')[1::2], "not JSON"))
            assert len(refusal) < 1000
            continue
        taken.append(number)
        assert np.isfinite(found.offset).all()
        assert "-0." not in str(found.target.tolist())
        # what is shown as 0 is 0, and nothing else is
        assert ((found.target > 0) == (found.log_target > -1e30)).all()
        assert (found.label_frequencies > 0).all()
        if found.costs is not None:
            assert np.ptp(found.costs.expected(np.array([[0.3, 0.7]]))) > 0
    assert tuple(taken) == ALLOWED[form]


def manifest():
    """The shipped model with the most members, and statistics beside them."""
    found = json.loads((SHIPPED / "fashion/2/model.json").read_text())
    spread = {"mean": 0.0, "sd": 1.0, "low": -1.0, "high": 1.0}
    found["input"]["statistics"] = {
        "mean": [0.5], "sd": [1.0], "rows": 9, "row_level": spread, "row_spread": dict(spread),
    }  # fmt: skip
    return found | {"max_batch_rows": 4, "default_tau": 1.0}


def places(value, path=()):
    """The path of the first number of each list, and of each member."""
    if isinstance(value, dict):
        for name in value.keys() - {"provenance", "files"}:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("path", sorted(places(manifest()), key=str), ids=str)
def test_an_odd_number_in_a_manifest_is_refused_or_has_a_meaning(path):
    for number in (*NUMBERS, *NO_NUMBERS):
        found = deepcopy(manifest())
        within = found
        for part in path[:-1]:
            within = within[part]
        within[path[-1]] = "@"
        if path == ("temperature",):
            found["estimation"]["temperature"] = "@"
        bundle, refusal = outcome(parse_bundle, json.dumps(found).replace('"@"', number))
        if refusal is not None:
            assert path[0] in refusal or "JSON" in refusal, (number, refusal[:200])
            continue
        assert number not in NO_NUMBERS, number
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            assert np.isfinite(bundle.estimation.log_source).all()
            assert np.isfinite(np.float32([1.0]) / np.float32(bundle.temperature)).all()
            for values in (bundle.input.mean, bundle.input.std):
                assert np.isfinite(np.float32(values or [])).all()
        Familiarity(bundle.input.statistics)


def test_the_shipped_models_are_valid():
    for path in SHIPPED.glob("*/*/model.json"):
        parse_bundle(path.read_bytes())
