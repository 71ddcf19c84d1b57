"""The routes of priors, over HTTP, on a real store."""

import asyncio
import contextlib

import httpx
import numpy as np
import pytest

from service.api.edge.access import Access
from service.api.edge.keys import make_key
from service.api.priors.router import router
from service.api.priors.shift import ShiftView
from service.api.priors.views import PriorView
from service.api.web import application
from service.contract.adjustment import softmax
from service.contract.members.body import parse_prior
from service.priors.recent import LogitReservoir
from service.priors.shift.watch import ShiftWatch
from service.repository.on_demand import UnknownModel
from tests.support.eventually import eventually_async
from tests.support.priors import following, make_bundle

pytestmark = pytest.mark.usefixtures("patient")

PRIOR = {"target": {"cat": 1, "dog": 2, "lynx": 3}}
ROUTE = "/models/pets/priors"


@contextlib.asynccontextmanager
async def serving(url, *bundles, reservoir=None, watch=None, keys=(), poll_seconds=0.02, **options):
    """A client of an application with the routes of priors; the first bundle is the default."""
    models = {bundle.name: bundle for bundle in bundles}

    def find(name):
        try:
            return models[name or bundles[0].name]
        except KeyError:
            raise UnknownModel(f"no model '{name}'") from None

    async with following(url, poll_seconds=poll_seconds) as priors:
        app = application(
            routers=[
                router(
                    priors=priors,
                    find_model=find,
                    find_reservoir=lambda _: reservoir,
                    shift=watch
                    or ShiftWatch(priors, list, kept=None, every_seconds=60, replica="a"),
                    access=Access(keys),
                    tau_cap=10.0,
                    **options,
                )
            ],
            version="0",
        )
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            client.priors = priors
            yield client


def scenario(url, *bundles, **options):
    """Run an async function with a client."""

    def decorate(function):
        async def main():
            async with serving(url, *(bundles or (make_bundle(),)), **options) as client:
                await function(client)

        asyncio.run(main())

    return decorate


def test_a_prior_is_created_read_replaced_and_deleted(store_url):
    @scenario(store_url)
    async def _(client):
        created = await client.put(f"{ROUTE}/winter", json={**PRIOR, "note": "snow"})
        assert (created.status_code, created.headers["etag"]) == (201, '"1"')
        view = created.json()
        assert view["target"] == pytest.approx({"cat": 1 / 6, "dog": 2 / 6, "lynx": 3 / 6})
        assert view["label_frequencies"] == pytest.approx(
            {"cat": 100 / 155, "dog": 50 / 155, "lynx": 5 / 155}
        )
        assert (view["note"], view["by"], view["revision"], view["fits"]) == (
            "snow",
            "anonymous",
            1,
            True,
        )
        assert (await client.get(f"{ROUTE}/winter")).json() == view
        replaced = await client.put(f"{ROUTE}/winter", json={"target": "training"})
        assert (replaced.status_code, replaced.headers["etag"]) == (200, '"2"')
        assert (await client.get(f"{ROUTE}/winter?revision=1")).json() == view
        assert (await client.delete(f"{ROUTE}/winter")).status_code == 204
        assert (await client.get(f"{ROUTE}/winter")).status_code == 404
        assert (await client.get(f"{ROUTE}/winter?revision=1")).json() == view
        again = await client.put(f"{ROUTE}/winter", json=PRIOR)
        assert (again.status_code, again.headers["etag"]) == (201, '"4"')


def test_the_default_model_has_the_short_routes(store_url):
    @scenario(store_url)
    async def _(client):
        unstored = await client.get("/priors/default")
        assert (unstored.json()["revision"], unstored.headers["etag"]) == (0, '"0"')
        assert (await client.put("/priors", json=PRIOR)).status_code == 201
        assert (await client.get("/priors/default")).json() == (
            await client.get(f"{ROUTE}/default")
        ).json()
        listed = (await client.get("/priors")).json()
        assert [(line["name"], line["revision"]) for line in listed["priors"]] == [("default", 1)]
        assert listed["built_in"] == ["training", "uniform"]


def test_an_identical_put_makes_no_revision(store_url):
    @scenario(store_url)
    async def _(client):
        await client.put("/priors", json=PRIOR)
        again = await client.put("/priors", json=PRIOR)
        assert (again.status_code, again.headers["etag"]) == (200, '"1"')


def test_if_match_compares_and_sets(store_url):
    @scenario(store_url)
    async def _(client):
        assert (
            await client.put("/priors", json=PRIOR, headers={"If-Match": '"3"'})
        ).status_code == 412
        assert (
            await client.put("/priors", json=PRIOR, headers={"If-Match": "*"})
        ).status_code == 412
        assert (
            await client.put("/priors", json=PRIOR, headers={"If-None-Match": "*"})
        ).status_code == 201
        assert (
            await client.put("/priors", json=PRIOR, headers={"If-None-Match": "*"})
        ).status_code == 412
        other = {"target": [1, 1, 2]}
        stale = await client.put("/priors", json=other, headers={"If-Match": '"7"'})
        assert stale.json()["type"] == "/problems/stale"
        assert "revision 1" in stale.json()["detail"]
        assert (
            await client.put("/priors", json=other, headers={"If-Match": 'W/"1"'})
        ).status_code == 412
        assert (
            await client.put("/priors", json=other, headers={"If-Match": '"x"'})
        ).status_code == 412
        assert (
            await client.put("/priors", json=other, headers={"If-Match": "x"})
        ).status_code == 400
        assert (await client.put("/priors", json=other, headers={"If-Match": '"1", "5"'})).headers[
            "etag"
        ] == '"2"'
        assert (
            await client.delete("/priors/default", headers={"If-Match": '"1"'})
        ).status_code == 412
        back = await client.post(
            "/priors/default/rollback", json={"revision": 1}, headers={"If-Match": '"1"'}
        )
        assert back.status_code == 412


def test_a_setting_demands_a_condition(sqlite_url):
    @scenario(sqlite_url, require_if_match=True)
    async def _(client):
        assert (await client.put("/priors", json=PRIOR)).status_code == 428
        assert (
            await client.put("/priors", json=PRIOR, headers={"If-None-Match": "*"})
        ).status_code == 201
        assert (
            await client.post("/priors/default/rollback", json={"revision": 1})
        ).status_code == 428
        assert (await client.delete("/priors/default")).status_code == 428
        added = await client.patch("/priors/default", json={"add": {"target": {"lynx": 1}}})
        assert added.status_code == 200, "adding counts cannot lose anybody's write"


def test_what_the_caller_has_already_is_not_sent_again(store_url):
    @scenario(store_url)
    async def _(client):
        await client.put("/priors", json=PRIOR)
        for known in ('"1"', 'W/"1"', '"9", "1"', "*"):
            answer = await client.get("/priors/default", headers={"If-None-Match": known})
            assert (answer.status_code, answer.headers["etag"], answer.content) == (304, '"1"', b"")
        assert (
            await client.get("/priors/default", headers={"If-None-Match": '"2"'})
        ).status_code == 200


def test_every_wrong_field_is_named(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        answer = await client.put(
            "/priors", json={"target": {"cat": -0.1, "wolf": 1}, "label_frequencies": [1, 2]}
        )
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        fields = {error["field"] for error in answer.json()["errors"]}
        assert {"target.cat", "target.wolf", "label_frequencies"} <= fields


def deep(depth):
    return b'{"target": ' + b"[" * depth + b"1" + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"target": {"cat": NaN}}', 400),
        (b'{"target": [1, 2, 1e999]}', 400),
        (b'{"target": {"cat": 1, "cat": 2}}', 400),
        (b'{"note": "\\ud800"}', 400),
        (b'{"note": "\xff"}', 400),
        (deep(40), 400),
        (deep(900), 400),
        (deep(100_000), 400),
        (b'{"target": [' + b"9" * 5000 + b",1,1]}", 400),
        (b'{"note": "\\u0000"}', 422),
        (b"[]", 422),
        (b"3", 422),
        (b"null", 422),
        (b'{"target": [1, true, 1]}', 422),
        (b'{"target": [0, 0, 0]}', 422),
        (b'{"target": ["1", 1, 1]}', 422),
        (b'{"typo": 1}', 422),
        (b'{"smoothing": -1}', 422),
        (b'{"label_frequencies": [1, 0, 1]}', 422),
        (b'{"note": "' + b"a" * 2001 + b'"}', 422),
    ],
)
def test_rubbish_is_refused(sqlite_url, body, status):
    @scenario(sqlite_url)
    async def _(client):
        answer = await client.put(
            "/priors", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status
        assert answer.json()["status"] == status
        assert (await client.get("/priors")).json()["priors"] == []


def test_bodies_are_bounded_and_typed(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        large = b'{"note": "' + b"a" * (17 * 2**20) + b'"}'
        assert (await client.put("/priors", content=large)).status_code == 413
        answer = await client.put(
            "/priors", content=b"x=1", headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert answer.status_code == 415


def test_names_that_cannot_be_are_refused_and_built_ins_stay(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        for name in ("Winter", "-a", "a" * 65, "a%20b", "%C3%A9", "a@1"):
            assert (await client.put(f"/priors/{name}", json=PRIOR)).status_code == 422
            assert (await client.get(f"/priors/{name}")).status_code == 404
        for name in ("uniform", "training"):
            assert (await client.put(f"/priors/{name}", json=PRIOR)).status_code == 409
            assert (await client.delete(f"/priors/{name}")).status_code == 409
            assert (await client.get(f"/priors/{name}")).json()["revision"] == 0
        assert (await client.get("/priors/uniform?revision=1")).status_code == 404
        assert (await client.get("/models/cars/priors")).status_code == 404


@pytest.mark.parametrize("name", ["a%00b", "A", "x" * 65, "%F0%9F%98%80", "a%20b"])
def test_a_name_that_no_prior_can_have_is_unknown_wherever_it_is_read(store_url, name):
    @scenario(store_url)
    async def _(client):
        for path in ("", "?revision=3", "/revisions", "/replicas"):
            answer = await client.get(f"{ROUTE}/{name}{path}")
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-prior")
        assert (await client.delete(f"{ROUTE}/{name}")).status_code == 422


def test_counts_are_added(store_url):
    @scenario(store_url)
    async def _(client):
        await client.put("/priors", json=PRIOR)
        answer = await client.patch(
            "/priors/default", json={"add": {"target": {"lynx": 3}}, "note": "seen"}
        )
        assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
        assert answer.json()["as_written"]["target"] == {"cat": 1, "dog": 2, "lynx": 6}
        assert answer.json()["note"] == "seen"
        from_model = await client.patch(
            "/priors/default", json={"add": {"label_frequencies": {"lynx": 5}}}
        )
        assert from_model.json()["as_written"]["label_frequencies"] == {
            "cat": 100,
            "dog": 50,
            "lynx": 10,
        }
        many = await client.patch("/priors/default", json={"add": {"target": {"lynx": 1e301}}})
        assert "from 0 to 1e+300; got 1e+301" in many.json()["detail"]
        nothing = await client.patch("/priors/default", json={"add": {"target": {"lynx": 0}}})
        assert nothing.headers["etag"] == '"3"'
        await client.put("/priors", json={"target": [0.2, 0.3, 0.5]})
        assert (
            await client.patch("/priors/default", json={"add": {"target": {"lynx": 3}}})
        ).status_code == 409
        assert (
            await client.patch("/priors/winter", json={"add": {"target": {"lynx": 3}}})
        ).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"add": {}},
        {"add": {"target": {}}},
        {"add": {"smoothing": 1}},
        {"add": {"target": {"lynx": -1}}},
        {"add": {"target": {"lynx": True}}},
        {"add": {"target": {"wolf": 1}}},
        {"add": {"target": [1, 2]}},
        {"add": {"target": 3}},
        {"add": {"target": {"lynx": 10**400}}},
        {"add": {"target": {"lynx": 1}}, "more": 1},
        {"add": {"target": {"lynx": 1}}, "note": 3},
        [],
    ],
)
def test_wrong_additions_are_refused(sqlite_url, body):
    @scenario(sqlite_url)
    async def _(client):
        await client.put("/priors", json=PRIOR)
        answer = await client.patch("/priors/default", json=body)
        assert answer.status_code in (400, 422)
        assert (await client.get("/priors/default")).headers["etag"] == '"1"'


def test_a_prior_of_many_classes_is_answered_as_one_of_few(sqlite_url):
    names = tuple(f"class {n}" for n in range(5000))
    many = make_bundle(class_names=names, class_counts=[1.0] * 5000)

    @scenario(sqlite_url, many)
    async def _(client):
        target = {name: n % 7 + 1 for n, name in enumerate(names)}
        written = await client.put("/priors", json={"target": target, "note": "é"})
        assert written.status_code == 201, written.text
        added = await client.patch("/priors/default", json={"add": {"target": [1] * 5000}})
        read = await client.get("/priors/default")
        view = PriorView.model_validate_json(read.content)
        assert view == PriorView.model_validate_json(added.content)
        assert list(view.target) == list(names)
        assert view.as_written["target"]["class 8"] == 3.0
        assert view.updated_at.tzinfo is not None
        assert (await client.put("/priors", json=view.as_written)).json()["revision"] == 2
        back = await client.post("/priors/default/rollback", json={"revision": 1})
        assert back.json()["as_written"]["target"] == target
        shift = await client.get("/priors/default/shift")
        assert ShiftView.model_validate_json(shift.content).class_names == list(names)


def test_sums_that_overflow_are_refused(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        await client.put("/priors", json={"target": [1.7e308, 1e10, 1e10]})
        for _ in range(2):
            answer = await client.patch("/priors/default", json={"add": {"target": {"cat": 1e300}}})
            assert answer.status_code in (200, 422)
        assert (
            await client.patch("/priors/default", json={"add": {"target": {"cat": 1.7e308}}})
        ).status_code == 422


def test_history_is_paged_newest_first(store_url):
    @scenario(store_url)
    async def _(client):
        for i in range(1, 8):
            await client.put("/priors", json={"target": [i, 1, 2], "note": str(i)})
        seen, before = [], ""
        while True:
            page = (await client.get(f"/priors/default/revisions?limit=3{before}")).json()
            seen += [line["revision"] for line in page["revisions"]]
            if page["next"] is None:
                break
            before = f"&before={page['next']}"
        assert seen == [7, 6, 5, 4, 3, 2, 1]
        assert (await client.get("/priors/default/revisions?limit=7")).json()["next"] is None
        for wrong in ("limit=0", "limit=1001", "limit=x", "before=0"):
            assert (await client.get(f"/priors/default/revisions?{wrong}")).status_code == 422
        assert (await client.get("/priors/summer/revisions")).status_code == 404


def test_rollback_makes_a_revision_equal_to_an_old_one(store_url):
    @scenario(store_url)
    async def _(client):
        first = (await client.put("/priors", json=PRIOR)).json()
        await client.put("/priors", json={"target": [5, 5, 1]})
        back = await client.post("/priors/default/rollback", json={"revision": 1})
        assert (back.status_code, back.headers["etag"]) == (200, '"3"')
        assert back.json()["target"] == first["target"]
        assert (
            await client.post("/priors/default/rollback", json={"revision": 9})
        ).status_code == 404
        for wrong in (
            {},
            {"revision": -1},
            {"revision": "1"},
            {"revision": 1.5},
            {"revision": True},
            {"revision": 2**60},
        ):
            assert (await client.post("/priors/default/rollback", json=wrong)).status_code == 422


def test_rollback_to_revision_0_leaves_nothing_stored_and_can_be_taken_back(store_url):
    back_to_0 = {"revision": 0}

    @scenario(store_url)
    async def _(client):
        unstored = (await client.get("/priors/default")).json()
        assert (await client.post("/priors/default/rollback", json=back_to_0)).json() == unstored
        for name in ("default", "winter"):
            await client.put(f"{ROUTE}/{name}", json=PRIOR)
            url = f"{ROUTE}/{name}/rollback"
            stale = {"If-Match": '"9"'}
            assert (await client.post(url, json=back_to_0, headers=stale)).status_code == 412
            for _ in range(2):  # the second time there is nothing left to do
                back = await client.post(url, json=back_to_0, headers={})
                assert (back.status_code, back.headers["etag"]) == (200, '"0"')
            newest = (await client.get(f"{ROUTE}/{name}/revisions")).json()["revisions"]
            assert [(line["revision"], line["deleted"]) for line in newest] == [
                (2, True),
                (1, False),
            ]
            assert newest[0]["note"] == "back to revision 0"
        assert (await client.get("/priors/default")).json() == unstored
        assert (await client.get("/priors/winter")).status_code == 404
        assert "404" in back.json()["warnings"][0]
        again = await client.post(f"{ROUTE}/winter/rollback", json={"revision": 1})
        assert (again.status_code, again.json()["revision"]) == (200, 3)
        assert (await client.post(f"{ROUTE}/never/rollback", json=back_to_0)).status_code == 404


def test_equal_revisions_are_told_in_the_history(store_url):
    @scenario(store_url)
    async def _(client):
        for target in ([1, 2, 3], [3, 2, 1], [1, 2, 3], [1, 1, 1], [3, 2, 1]):
            await client.put("/priors", json={"target": target})
        lines = (await client.get("/priors/default/revisions")).json()["revisions"]
        assert {line["revision"]: line["equals"] for line in lines} == {
            5: 2, 4: None, 3: 1, 2: None, 1: None,
        }  # fmt: skip
        page = (await client.get("/priors/default/revisions?limit=2")).json()["revisions"]
        assert [line["equals"] for line in page] == [None, None]


def test_a_prior_of_another_class_list_is_listed_as_not_fitting(store_url):
    wider = make_bundle(version=2, class_names=("cat", "dog", "lynx", "wolf"), class_counts=None)

    @scenario(store_url)
    async def _(client):
        await client.put("/priors/winter", json=PRIOR)

    @scenario(store_url, wider)
    async def _(client):
        (line,) = (await client.get("/priors")).json()["priors"]
        assert (line["name"], line["fits"]) == ("winter", False)
        view = (await client.get("/priors/winter")).json()
        assert (view["fits"], view["target"], view["as_written"]["target"]["cat"]) == (
            False,
            None,
            1,
        )
        assert view["warnings"]
        assert (
            await client.patch("/priors/winter", json={"add": {"target": {"cat": 1}}})
        ).status_code == 409


def test_unknown_label_frequencies_are_told(sqlite_url):
    @scenario(sqlite_url, make_bundle(class_counts=None))
    async def _(client):
        assert (await client.put("/priors", json={"target": "training"})).status_code == 409
        assert (await client.get("/priors/training")).status_code == 409
        assert (
            await client.patch("/priors/default", json={"add": {"label_frequencies": {"cat": 1}}})
        ).status_code == 409
        stored = await client.put("/priors", json={"label_frequencies": [3, 2, 1]})
        assert stored.json()["source_prior"] == pytest.approx(
            {"cat": 3 / 6, "dog": 2 / 6, "lynx": 1 / 6}
        )


def test_frequencies_without_effect_are_warned_of(sqlite_url):
    @scenario(sqlite_url, make_bundle(loss_tau=1.0))
    async def _(client):
        assert (await client.put("/priors", json={"label_frequencies": [3, 2, 1]})).json()[
            "warnings"
        ]


def test_each_worker_is_listed_with_what_it_serves(store_url):
    async def served(client, name, revision):
        """Wait until the one worker has reported the revision, which may be a deletion."""
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            answer = (await client.get(f"/priors/{name}/replicas")).json()
            assert answer["revision"] == revision
            if answer["agree"] and len(answer["replicas"]) == 1:
                return
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)

    @scenario(store_url)
    async def _(client):
        await served(client, "default", 0)
        for name in ("default", "winter"):
            await client.put(f"/priors/{name}", json=PRIOR)
            await served(client, name, 1)
            await client.post(f"/priors/{name}/rollback", json={"revision": 0})
            await served(client, name, 2)
        assert (await client.get("/priors/never/replicas")).status_code == 404


def reservoir_of(logits, *, kind=LogitReservoir):
    reservoir = kind(3, max_rows=len(logits))
    reservoir.add(np.asarray(logits, np.float32))
    return reservoir


def test_a_write_tells_how_many_recent_answers_it_changes_and_what_is_drastic(sqlite_url):
    logits = np.random.default_rng(0).normal(size=(500, 3)) * 2

    @scenario(sqlite_url, reservoir=reservoir_of(logits))
    async def _(client):
        drastic = {"target": {"cat": 200_000, "dog": 1, "lynx": 1}}
        previewed = (await client.post("/priors/default/preview", json=drastic)).json()
        written = (await client.put("/priors", json=drastic)).json()
        assert written["decisions_changed"] == pytest.approx(previewed["decisions_changed"])
        assert written["warnings"][:2] == previewed["warnings"][:2]
        words = " ".join(written["warnings"])
        for part in ("1.00 of 3 classes", "200,000 times", "of the last 500 answers"):
            assert part in words
        same = (await client.put("/priors", json=drastic)).json()
        assert (same["revision"], same["decisions_changed"]) == (1, 0)
        assert (await client.get("/priors/default")).json()["decisions_changed"] is None
        added = await client.patch("/priors/default", json={"add": {"target": {"dog": 10**9}}})
        assert added.json()["decisions_changed"] > 0.3


def test_a_write_that_changes_too_many_answers_is_refused_unless_forced(sqlite_url, caplog):
    logits = np.random.default_rng(0).normal(size=(500, 3)) * 2
    drastic = {"target": {"cat": 200_000, "dog": 1, "lynx": 1}}

    @scenario(sqlite_url, reservoir=reservoir_of(logits), max_flip_share=0.2)
    async def _(client):
        refused = await client.put("/priors", json=drastic)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/too-many-flips")
        assert "?force=1" in refused.json()["detail"]
        assert (await client.get("/priors/default")).json()["revision"] == 0
        with caplog.at_level("INFO"):
            forced = await client.put("/priors?force=1", json=drastic)
        assert (forced.status_code, forced.json()["revision"]) == (201, 1)
        assert "force=True" in caplog.text
        add = {"add": {"target": {"dog": 10**12}}}
        assert (await client.patch("/priors/default", json=add)).status_code == 409
        assert (await client.patch("/priors/default?force=1", json=add)).status_code == 200
        # the way back is never refused
        back = await client.post("/priors/default/rollback", json={"revision": 0})
        assert back.status_code == 200


def test_a_prior_of_another_class_list_can_be_replaced_while_recent_answers_are_kept(sqlite_url):
    wider = make_bundle(name="zoo", class_names=("cat", "dog", "lynx"))
    older = make_bundle(name="zoo", class_names=("cat", "dog"), class_counts=(2.0, 1.0))

    async def main():
        async with following(sqlite_url) as priors:
            await priors.put(older, "winter", parse_prior({"target": [1, 2]}), by="me")
        logits = np.random.default_rng(0).normal(size=(200, 3))
        async with serving(sqlite_url, wider, reservoir=reservoir_of(logits)) as client:
            await eventually_async(lambda: client.priors.names("zoo") == ["winter"])
            assert (await client.get("/models/zoo/priors/winter")).json()["fits"] is False
            answer = await client.put("/models/zoo/priors/winter", json={"target": [1, 2, 3]})
            assert (answer.status_code, answer.json()["fits"]) == (200, True)
            assert answer.json()["decisions_changed"] is not None

    asyncio.run(main())


def test_every_stored_change_is_announced(sqlite_url):
    announced = []

    @scenario(sqlite_url, announce=announced.append)
    async def _(client):
        await client.put("/priors", json=PRIOR)
        await client.put("/priors", json=PRIOR)  # nothing new
        await client.put("/priors", json={**PRIOR, "target": [1]})  # refused
        await client.patch("/priors/default", json={"add": {"target": {"cat": 1}}})
        await client.post("/priors/default/rollback", json={"revision": 1})
        await client.delete("/priors/default")

    reported = [(each.action, each.entry.revision, each.entry.deleted) for each in announced]
    assert reported == [
        ("put", 1, False), ("add", 2, False), ("rollback", 3, False), ("delete", 4, True),
    ]  # fmt: skip


def test_a_preview_tells_what_would_change_and_stores_nothing(sqlite_url):
    logits = np.random.default_rng(0).normal(size=(500, 3)) * 2
    source = np.array([100, 50, 5]) / 155

    @scenario(sqlite_url, reservoir=reservoir_of(logits))
    async def _(client):
        answer = await client.post("/priors/default/preview", json={"target": [8, 1, 1]})
        view = answer.json()
        before = (logits.astype(np.float32) - np.log(source)).argmax(axis=1)
        after = (logits.astype(np.float32) - np.log(source) + np.log([0.8, 0.1, 0.1])).argmax(
            axis=1
        )
        assert view["rows"] == 500
        assert view["decisions_changed"] == pytest.approx((before != after).mean())
        assert [c["before"] for c in view["classes"]] == pytest.approx(
            np.bincount(before, minlength=3) / 500
        )
        assert [c["after"] for c in view["classes"]] == pytest.approx(
            np.bincount(after, minlength=3) / 500
        )
        assert view["before"] == {"name": "default", "revision": 0, "tau": 1.0}
        assert (await client.get("/priors")).json()["priors"] == []


def test_a_preview_takes_a_tau_a_name_or_a_prior(sqlite_url):
    logits = np.random.default_rng(1).normal(size=(200, 3))

    @scenario(sqlite_url, reservoir=reservoir_of(logits))
    async def _(client):
        async def changed(body, query=""):
            answer = await client.post(f"/priors/default/preview{query}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["decisions_changed"]

        assert await changed({}) == 0
        assert await changed({"tau": 1.0}) == 0
        assert await changed({"tau": 0}) > 0
        assert await changed({}, "?tau=0") == await changed({"tau": 0})
        assert await changed({"prior": "training"}) == await changed({"target": "training"}) > 0
        assert await changed({"prior": {"target": "training"}, "tau": 1}) == await changed(
            {"prior": "training"}
        )
        await client.put("/priors", json=PRIOR)
        assert await changed({"prior": "default@1"}) == 0
        for wrong in (
            {"tau": -1},
            {"tau": 11},
            {"tau": "1"},
            {"tau": True},
            {"prior": 3},
            {"prior": "uniform", "target": [1, 1, 1]},
        ):
            assert (await client.post("/priors/default/preview", json=wrong)).status_code == 422
        assert (
            await client.post("/priors/default/preview?tau=1", json={"tau": 2})
        ).status_code == 400
        assert (
            await client.post("/priors/default/preview", json={"prior": "summer"})
        ).status_code == 404
        new_name = await client.post("/priors/winter/preview", json={"target": "training"})
        assert new_name.json()["before"]["name"] == "default"


def test_a_preview_without_traffic_is_empty_and_without_reservoir_refused(sqlite_url):
    @scenario(sqlite_url, reservoir=LogitReservoir(3))
    async def _(client):
        view = (await client.post("/priors/default/preview", json={"tau": 0})).json()
        assert (view["rows"], view["decisions_changed"], view["classes"]) == (0, None, [])
        assert (await client.get("/priors/default/estimate")).status_code == 409

    @scenario(sqlite_url)
    async def _(client):
        assert (await client.post("/priors/default/preview", json={"tau": 0})).status_code == 409
        assert (await client.get("/priors/default/estimate")).status_code == 409


def test_an_estimate_finds_the_prior_of_the_traffic_and_can_be_put(sqlite_url):
    rng = np.random.default_rng(2)
    truth = np.array([0.2, 0.2, 0.6])
    source = np.array([100, 50, 5]) / 155
    labels = rng.choice(3, size=3000, p=truth)
    x = rng.normal(size=(3000, 3)) + 2 * np.eye(3)[labels]
    logits = 2 * x + np.log(source)  # Bayes' rule for unit normals at 2 e_y, under the source prior

    @scenario(sqlite_url, reservoir=reservoir_of(logits))
    async def _(client):
        view = (await client.get("/priors/default/estimate")).json()
        found = np.array(list(view["target"].values()))
        assert np.abs(found - truth).max() < 0.05
        for name in ("cat", "dog", "lynx"):
            assert view["low"][name] <= view["target"][name] <= view["high"][name]
        assert 0 < view["effective_rows"] <= view["rows"] <= 3000
        assert (await client.get("/priors")).json()["priors"] == []
        assert (view["verdict"], view["calibrated"]) == ("uncalibrated", False)
        assert "training calibrate" in view["reason"]
        stored = await client.put("/priors", json=view["candidate"])
        assert (stored.status_code, stored.json()["expected"]) == (201, True)
        few = (await client.get("/priors/default/estimate?window=29")).json()
        assert (few["rows"], few["verdict"]) == (29, "too_little_traffic")
        assert (await client.get("/priors/default/estimate?window=600s")).json()["rows"] == 3000
        wrong = await client.get("/priors/default/estimate?window=soon")
        assert (wrong.status_code, wrong.json()["type"]) == (400, "/problems/malformed")


def test_an_estimate_is_adopted_only_where_the_rule_allows_it_and_with_its_evidence(sqlite_url):
    rng = np.random.default_rng(2)
    source = np.array([100, 50, 5]) / 155
    block = {
        "calibration": "none",
        "temperature": 1.0,
        "bias": [0.0] * 3,
        "source_prior": source.tolist(),
        "validation": {"rows": 1500, "class_counts": [500] * 3},
    }

    def rows(truth):
        labels = rng.choice(3, size=3000, p=truth)
        return 2 * (rng.normal(size=(3000, 3)) + 2 * np.eye(3)[labels]) + np.log(source)

    shifted, same = reservoir_of(rows([0.05, 0.15, 0.8])), reservoir_of(rows(source))
    bundle = make_bundle(estimation=block)

    @scenario(sqlite_url, bundle, reservoir=shifted)
    async def _(client):
        await client.put("/priors", json={"target": "training"})
        adopted = await client.post("/priors/default/estimate/adopt")
        assert adopted.status_code == 200
        view = adopted.json()
        assert view["revision"] == 2
        assert view["target"]["lynx"] == pytest.approx(0.8, abs=0.05)
        assert "verdict usable" in view["note"]

    @scenario(sqlite_url, bundle, reservoir=same)
    async def _(client):
        await client.put("/priors", json={"target": "training"})
        refused = await client.post("/priors/default/estimate/adopt")
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/not-adoptable")
        forced = await client.post("/priors/default/estimate/adopt?force=1")
        assert forced.status_code == 200
        assert "forced although" in forced.json()["note"]


def test_label_frequencies_that_replace_the_measured_source_are_warned_of(sqlite_url):
    block = {
        "calibration": "none",
        "temperature": 1.0,
        "bias": [0.0] * 3,
        "source_prior": [0.6, 0.3, 0.1],
        "validation": {"rows": 1500, "class_counts": [500] * 3},
    }
    counts = {"cat": 90, "dog": 9, "lynx": 1}

    @scenario(sqlite_url, make_bundle(estimation=block), reservoir=LogitReservoir(3))
    async def _(client):
        untouched = await client.put("/priors", json={"target": counts})
        assert untouched.json()["warnings"] == []
        stored = await client.put("/priors", json={"label_frequencies": counts})
        (told,) = stored.json()["warnings"]
        assert "'uncalibrated'; to use the measured one, PUT the prior without label_freq" in told
        shown = await client.post("/priors/default/preview", json={"label_frequencies": counts})
        assert told in shown.json()["warnings"]
        more = {"add": {"label_frequencies": {"lynx": 1}}}
        added = await client.patch("/priors/default", json=more)
        assert added.status_code == 200
        assert told in added.json()["warnings"]


def test_an_estimate_is_adopted_onto_what_another_worker_has_just_stored(store_url):
    reservoir = reservoir_of(np.random.default_rng(3).normal(size=(300, 3)))
    costs = {"costs": {"reject": 0.2}}

    @scenario(store_url, reservoir=reservoir, poll_seconds=60)
    async def _(client):
        await client.put("/priors", json={"target": "training"})
        async with following(store_url) as other:
            await other.put(make_bundle(), "default", parse_prior({**PRIOR, **costs}), by="b")
            adopted = await client.post("/priors/default/estimate/adopt?force=1")
            assert adopted.headers["etag"] == '"3"'
            assert adopted.json()["as_written"]["costs"]["reject"] == 0.2
            await other.remove(make_bundle(), "default", by="b")
            stale = await client.post(
                "/priors/default/estimate/adopt?force=1", headers={"If-Match": '"3"'}
            )
            assert stale.status_code == 412


def test_an_estimate_that_was_made_for_an_older_revision_is_not_adopted(store_url):
    class Changing(LogitReservoir):
        """The prior is changed while its rows are read."""

        def sample(self, **limits):
            change = other.put(make_bundle(), "default", parse_prior(PRIOR), by="b")
            asyncio.run_coroutine_threadsafe(change, loop).result(10)
            return super().sample(**limits)

    reservoir = reservoir_of(np.random.default_rng(3).normal(size=(300, 3)), kind=Changing)
    other = loop = None

    @scenario(store_url, reservoir=reservoir)
    async def _(client):
        nonlocal other, loop
        loop = asyncio.get_running_loop()
        async with following(store_url) as other:
            answer = await client.post("/priors/default/estimate/adopt?force=1")
            newest = await other.refreshed(make_bundle(), "default")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
        assert "changed while the estimate was made; adopt again" in answer.json()["detail"]
        assert newest.by == "b"


def test_a_key_must_have_the_role(sqlite_url):
    made = {role: make_key(role, [role]) for role in ("predict", "operate", "observe")}

    @scenario(sqlite_url, keys=[key for _, key in made.values()], reservoir=LogitReservoir(3))
    async def _(client):
        def bearer(role):
            return {"Authorization": f"Bearer {made[role][0]}"}

        assert (await client.get("/priors")).status_code == 401
        assert (
            await client.get("/priors", headers={"Authorization": "Bearer wrong"})
        ).status_code == 401
        assert (await client.get("/priors", headers=bearer("predict"))).status_code == 403
        assert (await client.get("/priors", headers=bearer("observe"))).status_code == 200
        assert (
            await client.put("/priors", json=PRIOR, headers=bearer("observe"))
        ).status_code == 403
        stored = await client.put("/priors", json=PRIOR, headers=bearer("operate"))
        assert (stored.status_code, stored.json()["by"]) == (201, "operate")
        assert (await client.get("/priors", headers=bearer("operate"))).status_code == 200
        assert (
            await client.get("/priors", headers={"X-API-Key": made["operate"][0]})
        ).status_code == 200


def test_each_write_is_audited_with_the_name_of_the_key_and_never_the_key(sqlite_url, caplog):
    secret, key = make_key("ops", ["operate"])
    caplog.set_level("INFO")

    @scenario(sqlite_url, keys=[key])
    async def _(client):
        headers = {"Authorization": f"Bearer {secret}"}
        await client.put("/priors", json=PRIOR, headers=headers)
        await client.patch("/priors/default", json={"add": {"target": {"cat": 1}}}, headers=headers)
        await client.post("/priors/default/rollback", json={"revision": 1}, headers=headers)
        await client.delete("/priors/default", headers=headers)

    reported = [record.audit for record in caplog.records if record.name == "service.audit"]
    assert [(line["action"], line["by"], line.get("revision")) for line in reported] == [
        ("put", "ops", 1), ("add", "ops", 2), ("rollback", "ops", 3), ("delete", "ops", None),
    ]  # fmt: skip
    assert secret not in caplog.text


def test_the_probabilities_of_a_preview_are_means_of_the_adjusted_ones(sqlite_url):
    logits = np.random.default_rng(3).normal(size=(64, 3)).astype(np.float32)

    @scenario(sqlite_url, make_bundle(temperature=2.0), reservoir=reservoir_of(logits))
    async def _(client):
        view = (await client.post("/priors/default/preview", json={"tau": 0})).json()
        expected = softmax(logits / 2.0).mean(axis=0)
        assert [c["probability_after"] for c in view["classes"]] == pytest.approx(expected)


def test_a_method_that_is_not_there_is_refused_with_those_that_are(sqlite_url):
    @scenario(sqlite_url)
    async def _(client):
        for path, allowed in (
            ("/priors", "GET, HEAD, PUT"),
            ("/priors/winter", "DELETE, GET, HEAD, PATCH, PUT"),
            ("/models/pets/priors/winter/rollback", "POST"),
        ):
            answer = await client.request("TRACE", path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
