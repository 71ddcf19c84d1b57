"""The classifier follows the clock that a schedule names."""

from datetime import datetime
from zoneinfo import ZoneInfo

from service.classifier import Classifier
from service.priors.priors import Priors
from tests.support.priors import make_bundle

WEEKEND = {
    "target": "training",
    "schedule": {
        "time_zone": "Asia/Tokyo",
        "rules": [{"weekdays": ["sat", "sun"], "prior": "uniform"}],
    },
}


def test_the_same_prior_leads_elsewhere_when_the_day_changes_at_its_place():
    bundle, priors = make_bundle(), Priors()
    now = [datetime(2026, 11, 28, 0, 0, tzinfo=ZoneInfo("Asia/Tokyo")).timestamp()]  # a Saturday
    classifier = Classifier(priors, tau_cap=10, clock=lambda: now[0])
    revision = priors.inline(bundle, WEEKEND)
    used = classifier.in_context(bundle, revision, None)
    assert used.name == "uniform"
    assert used.key == priors.select(bundle, "uniform").key
    now[0] -= 1  # still Friday in Tokyo
    used = classifier.in_context(bundle, revision, None)
    assert (used.name, used.prior) == (None, revision.prior)
    assert used.chosen_by is not None
    assert used.chosen_by.fallback == "no_rule"
