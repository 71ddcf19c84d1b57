"""A scrape counts exactly the requests answered, in both formats, through any worker."""

import math
from datetime import datetime

import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from service.observe.families import COUNTERS, GAUGES, HISTOGRAMS, VECTOR_GAUGES
from service.observe.metrics import Arrived, Metrics
from service.observe.model_metrics import OTHER
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally
from tests.support.server import running
from tests.support.small_models import COUNTS, inputs, publish_model

WIDE_ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


def parsed(body, kind):
    body = b"".join(body) if isinstance(body, list) else body
    parser = open_metrics if "openmetrics" in kind else prometheus_text
    return {
        (s.name, tuple(sorted(s.labels.items()))): s
        for family in parser(body.decode())
        for s in family.samples
    }


def value(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))].value


@pytest.fixture
def made():
    """Metrics of a worker of a run folder, closed at the end."""
    all_made = []

    def make(root, slot=0, *, max_class_series=1000):
        folder = RunFolder(root, slot)
        tally = Tally(folder.own)
        all_made.append(
            Metrics(
                tally, folder, max_class_series=max_class_series, max_batch_rows=2048, version="1"
            )
        )
        return all_made[-1]

    yield make
    for metrics in all_made:
        metrics.stop()


@pytest.fixture
def metrics(tmp_path, made):
    return made(tmp_path / "run")


@pytest.fixture(params=["text/plain", WIDE_ACCEPT])
def scrape(request, metrics):
    return lambda: parsed(*metrics.exposition(request.param))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("metrics") / "models"
    publish_model(models)
    return models


def test_both_formats_are_what_their_parsers_take_and_hold_the_same_numbers(metrics):
    metrics.requests("/predict", 200, [Arrived(0.0, "first")])
    text, wide = (parsed(*metrics.exposition(a)) for a in ("text/plain", WIDE_ACCEPT))
    own, same = (
        {k: s.value for k, s in found.items() if k[0].startswith("priordial_")}
        for found in (text, wide)
    )
    assert own == same
    assert text.keys() == wide.keys()
    assert value(text, "priordial_requests_total", route="/predict", status="200") == 1
    assert metrics.exposition(WIDE_ACCEPT)[0][-1].endswith(b"# EOF\n")


def test_every_family_says_what_it_is_even_before_it_has_a_number(metrics):
    body = b"".join(metrics.exposition("text/plain")[0]).decode()
    for name in (*(f"{c}_total" for c in COUNTERS), *HISTOGRAMS, *GAUGES, *VECTOR_GAUGES):
        assert f"# HELP {name} " in body
        assert f"# TYPE {name} " in body


def test_an_exemplar_leads_from_a_bucket_to_a_request(metrics):
    import time

    metrics.requests("/predict", 200, [Arrived(time.perf_counter() - 0.03, "slow-one")])
    metrics.requests("/predict", 200, [Arrived(time.perf_counter() - 0.03, "x" * 119)])
    samples = parsed(*metrics.exposition(WIDE_ACCEPT))
    exemplars = [s.exemplar for s in samples.values() if s.exemplar]
    assert [e.labels for e in exemplars] == [{"request_id": "slow-one"}]
    bucket = next(s for s in samples.values() if s.exemplar)
    assert exemplars[0].value <= float(bucket.labels["le"])


def test_a_scrape_counts_each_class_group_and_change_once(scrape, metrics, tmp_path):
    from service.contract.bundle import load_bundle

    bundle = load_bundle(publish_model(tmp_path / "m", class_names=list('ab"\\\n')))
    recorder = metrics.model(bundle)
    rng = np.random.default_rng(0)
    totals = np.zeros((2, 5))
    changed = 0
    for _ in range(3):
        decided = rng.integers(0, 5, (2, 50))
        recorder.batch(_facts(*decided))
        totals += [np.bincount(row, minlength=5) for row in decided]
        changed += (decided[0] != decided[1]).sum()
        samples = scrape()
        for row, decision in enumerate(("adjusted", "unadjusted")):
            labels = {"model": "linear", "version": "1", "decision": decision}
            for i, name in enumerate('ab"\\\n'):
                found = value(samples, "priordial_predictions_total", **labels, **{"class": name})
                assert found == totals[row, i]
            groups = {
                "many": totals[row, :2].sum(),
                "medium": totals[row, 2:4].sum(),
                "few": totals[row, 4],
            }
            for group, wanted in groups.items():
                assert (
                    value(samples, "priordial_group_predictions_total", **labels, group=group)
                    == wanted
                )
        assert (
            value(samples, "priordial_decisions_changed_total", model="linear", version="1")
            == changed
        )


def test_many_classes_are_told_exactly_whatever_changed_since_the_last_scrape(tmp_path, made):
    from service.contract.bundle import load_bundle

    many = 1300  # more than two slices, and names that a formatting could take for its own
    names = [f"%{i}%d %b %%s" for i in range(many)]
    bundle = load_bundle(publish_model(tmp_path / "m", class_names=names, class_counts=[1] * many))
    metrics = made(tmp_path / "run", max_class_series=many)
    recorder = metrics.model(bundle)
    target = np.arange(many, dtype=float)  # whole numbers first, then fractions
    metrics.show_vectors(lambda: recorder.target("default", target))
    rng = np.random.default_rng(0)
    truth = np.zeros(many)
    for changed in (many, 3, 0, 40):
        decided = rng.integers(0, many, changed)
        recorder.batch(_facts(decided, decided))
        truth += np.bincount(decided, minlength=many)
        samples = parsed(*metrics.exposition("text/plain"))
        for family, wanted, labels in (
            ("priordial_predictions_total", truth, {"version": "1", "decision": "adjusted"}),
            ("priordial_target_prior", target, {"prior": "default"}),
        ):
            labels["model"] = "linear"
            found = [value(samples, family, **labels, **{"class": name}) for name in names]
            assert found == wanted.tolist()
        target = target / 3


def test_classes_beyond_the_limit_are_counted_together(tmp_path, made):
    from service.contract.bundle import load_bundle

    metrics = made(tmp_path / "run", max_class_series=2)
    recorder = metrics.model(load_bundle(publish_model(tmp_path / "m", class_counts=COUNTS[::-1])))
    recorder.batch(_facts(np.arange(5), np.arange(5)))
    samples = parsed(*metrics.exposition("text/plain"))
    found = {
        dict(labels)["class"]: s.value
        for (name, labels), s in samples.items()
        if name == "priordial_predictions_total" and ("decision", "adjusted") in labels
    }
    assert found == {"class-4": 1, "class-3": 1, OTHER: 3}


def test_rows_that_come_one_by_one_count_as_those_that_come_together(tmp_path, made):
    from service.contract.bundle import load_bundle

    bundle = load_bundle(publish_model(tmp_path / "m", class_counts=COUNTS))
    adjusted, unadjusted = np.random.default_rng(1).integers(0, 5, (2, 30))
    found = []
    for name, batches in (("one", np.split(np.arange(30), 30)), ("all", [np.arange(30)])):
        metrics = made(tmp_path / name, max_class_series=3)
        recorder = metrics.model(bundle)
        for rows in batches:
            recorder.batch(_facts(adjusted[rows], unadjusted[rows]))
        samples = parsed(*metrics.exposition("text/plain"))
        found.append(
            {
                key: sample.value
                for key, sample in samples.items()
                if "predictions" in key[0] or "decisions" in key[0]
            }
        )
    assert found[0] == found[1]
    assert (
        sum(v for (name, _), v in found[0].items() if name == "priordial_predictions_total") == 60
    )


def _facts(adjusted, unadjusted):
    from service.batching.facts import BatchFacts
    from service.graph.session import GraphOutputs

    ones = np.ones(len(adjusted), np.float32)
    outputs = GraphOutputs(
        top_probability=ones[:, None],
        top_index=np.asarray(adjusted)[:, None],
        unadjusted_probability=ones,
        unadjusted_index=np.asarray(unadjusted),
    )
    return BatchFacts(outputs, len(adjusted), 0.001)


def test_workers_that_come_late_and_series_that_grow_are_seen(tmp_path, made):
    metrics = made(tmp_path)

    def counted(route):
        samples = parsed(*metrics.exposition(""))
        return value(samples, "priordial_requests_total", route=route, status="200")

    metrics.requests("/a", 200, [Arrived(0.0, "")])
    assert counted("/a") == 1
    other = made(tmp_path, 1)
    for number in range(700):  # more than the first extent of the file holds
        other.requests(f"/{number}", 200, [Arrived(0.0, "")])
    other.requests("/a", 200, [Arrived(0.0, "")])
    assert counted("/a") == 2
    assert counted("/699") == 1


def test_the_revision_in_force_is_a_gauge(models):
    with running(models) as server:
        path = f"{server.url}/models/linear/priors/default"
        for revision in (1, 2):
            httpx.put(path, json={"target": [revision, 1, 1, 1, 1]}).raise_for_status()
            samples = parsed(httpx.get(f"{server.url}/metrics").content, "text")
            assert (
                value(samples, "priordial_prior_revision", model="linear", prior="default")
                == revision
            )
            (stored,) = (
                s for s in samples.values() if s.name == "priordial_prior_stored_timestamp_seconds"
            )
            assert stored.labels["revision"] == str(revision)
            assert stored.labels["by"] == "anonymous"
            moment = httpx.get(path).json()["updated_at"]
            assert stored.value == pytest.approx(datetime.fromisoformat(moment).timestamp(), abs=1)


def test_readiness_is_a_gauge_for_those_who_see_metrics_alone(models):
    with running(models, default_model="linear") as server:

        def states():
            samples = parsed(httpx.get(f"{server.url}/metrics").content, "text")
            return [value(samples, f"priordial_{name}") for name in ("ready", "degraded")]

        assert states() == [1, 0]
        unload = f"{server.url}/v2/repository/models/linear/unload"
        httpx.post(unload).raise_for_status()
        ready = httpx.get(f"{server.url}/health/ready").json()["ready"]
        assert ready is False
        assert states() == [0, 0]  # the default model is missing, too: that is no second fault


def test_metrics_can_have_a_port_of_their_own_and_need_the_role_to_observe(models):
    import socket

    from service.api.edge.keys import make_key

    look, looking = make_key("prometheus", ["observe"])
    score, scoring = make_key("shop", ["predict"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = f"{looking.line()};{scoring.line()}"
    with running(models, metrics_port=port, api_keys=keys, workers=2) as server:
        body = {"instances": inputs(3).tolist()}
        headers = {"Authorization": f"Bearer {score}"}
        httpx.post(f"{server.url}/predict", json=body, headers=headers).raise_for_status()
        for base in (server.url, f"http://127.0.0.1:{port}"):
            assert httpx.get(f"{base}/metrics").status_code == 401
            assert httpx.get(f"{base}/metrics", headers=headers).status_code == 403
            answer = httpx.get(f"{base}/metrics", headers={"Authorization": f"Bearer {look}"})
            samples = parsed(answer.content, "text")
            counted = [
                s.value for (n, _), s in samples.items() if n == "priordial_predictions_total"
            ]
            assert sum(counted) == 6
        assert httpx.get(f"http://127.0.0.1:{port}/predict").status_code == 404


def test_divergence_is_measured_from_the_target_only_where_that_is_expected():
    from service.contract.adjustment import log_source_prior, log_target_prior, softmax
    from service.contract.prior import Prior, Vectors
    from service.priors.drift import divergence
    from service.priors.rule import Rule, mean_probability

    rng = np.random.default_rng(0)
    log_source = log_source_prior([900, 90, 10], loss_tau=0)
    first = rng.normal(0, 2, (500, 3)).astype(np.float32)
    moved = first + np.array([3, 0, 0], np.float32)

    def prior(target, *, expected):
        vectors = Vectors(None, np.asarray(target), log_source, log_target_prior(target))
        return Prior(vectors, expected)

    uniform = prior([1 / 3] * 3, expected=False)
    given = {"tau": 1.0, "temperature": 1.5}
    assert divergence(first, first, prior=uniform, **given) == 0
    assert divergence(moved, first, prior=uniform, **given) > 0.01
    mean = mean_probability(first, Rule(uniform, 1.0), temperature=1.5)
    tilted = softmax(first / 1.5 + (np.log([1 / 3] * 3) - log_source)).mean(axis=0)
    assert mean == pytest.approx(tilted)
    expecting = prior(mean, expected=True)
    shifted = mean_probability(moved, Rule(expecting, 1.0), temperature=1.5)
    assert divergence(moved, first, prior=expecting, **given) == pytest.approx(
        _jensen_shannon(shifted, mean)
    )


def _jensen_shannon(p, q):
    return sum(
        (a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b))) / 2
        for a, b in zip(p, q, strict=True)
    )


def reported(samples, name, label, **labels):
    """A label's values → their numbers, of the samples that have these labels."""
    return {
        s.labels[label]: s.value
        for (found, _), s in samples.items()
        if found == name and labels.items() <= s.labels.items()
    }


def test_the_targets_in_force_are_told_by_class_and_group_and_follow_what_is_stored(models):
    body = {"target": [1, 2, 3, 0, 4], "expected": True}
    with running(models) as server, httpx.Client(base_url=server.url) as http:

        def scrape(accept="text/plain"):
            answer = http.get("/metrics", headers={"Accept": accept})
            return parsed(answer.content, answer.headers["content-type"])

        def by_class(prior, **more):
            return reported(scrape(**more), "priordial_target_prior", "class", prior=prior)

        names = [f"class-{i}" for i in range(5)]
        assert by_class("default") == dict.fromkeys(names, 0.2)
        frequencies = [n / sum(COUNTS) for n in COUNTS]
        assert by_class("training") == pytest.approx(dict(zip(names, frequencies, strict=True)))
        for prior in ("default", "shop"):
            http.put(f"/models/linear/priors/{prior}", json=body).raise_for_status()
            for accept in ("text/plain", WIDE_ACCEPT):
                wanted = dict(zip(names, [0.1, 0.2, 0.3, 0, 0.4], strict=True))
                assert by_class(prior, accept=accept) == pytest.approx(wanted)
        samples = scrape()
        groups = reported(samples, "priordial_group_target_prior", "group", prior="shop")
        assert groups == pytest.approx({"many": 0.3, "medium": 0.3, "few": 0.4})
        expected = reported(samples, "priordial_target_expected", "prior", model="linear")
        assert expected == {"default": 1, "shop": 1}
        http.delete("/models/linear/priors/shop").raise_for_status()
        http.put("/models/linear/priors/default", json={}).raise_for_status()
        assert by_class("shop") == {}
        assert by_class("default") == dict.fromkeys(names, 0.2)
        assert reported(scrape(), "priordial_target_expected", "prior") == {"default": 0}


def test_the_series_of_targets_are_bounded_and_what_is_left_out_is_summed(models):
    with running(models, max_class_series=2) as server, httpx.Client(base_url=server.url) as http:
        for prior in ("a", "b", "default"):
            body = {"target": [1, 2, 3, 0, 4]}
            http.put(f"/models/linear/priors/{prior}", json=body).raise_for_status()
        samples = parsed(http.get("/metrics").content, "text")
        shown = reported(samples, "priordial_target_prior", "class", prior="default")
        assert shown == pytest.approx({"class-0": 0.1, "class-1": 0.2, OTHER: 0.7})
        priors = {
            dict(labels)["prior"] for name, labels in samples if name == "priordial_target_prior"
        }
        assert priors == {"default", "training"}


def test_the_tau_of_every_row_is_counted(models):
    with running(models) as server, httpx.Client(base_url=server.url) as http:
        rows = inputs(3).tolist()
        for tau in (0, 0.5, 0.5, 2):
            given = {"instances": rows, "parameters": {"tau": tau}}
            http.post("/predict", json=given).raise_for_status()
        per_row = {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [3, 6],
                    "data": [x for row in rows for x in row],
                },
                {"name": "tau", "datatype": "FP32", "shape": [3, 1], "data": [0, 2, 2]},
            ]
        }
        http.post("/v2/models/linear/infer", json=per_row).raise_for_status()
        samples = parsed(http.get("/metrics").content, "text")
        buckets = reported(samples, "priordial_tau_bucket", "le", model="linear")
        assert [buckets[le] for le in ("0.0", "0.25", "0.5", "1.5", "2.0", "+Inf")] == [
            4,
            4,
            10,
            10,
            15,
            15,
        ]
        assert value(samples, "priordial_tau_sum", model="linear") == pytest.approx(13)
