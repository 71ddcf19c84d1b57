"""The checksum of a row, which stores written by earlier versions hold too."""

import hashlib
import json
from datetime import UTC, datetime

import pytest

from service.contract.members.body import parse_prior
from service.priors.revisions import StoredRevision
from service.priors.store.rows import row_of


@pytest.mark.parametrize("classes", [1, 60_000])
def test_the_checksum_is_that_of_the_whole_row_as_json(classes):
    body = parse_prior({"target": {f'é "{n}" \N{GRINNING FACE}': n + 0.5 for n in range(classes)}})
    entry = StoredRevision(
        model="pets",
        name="a",
        revision=1,
        body=body,
        class_digest="x",
        updated_at=datetime(2026, 1, 2, tzinfo=UTC),
        by="Zoë",
        note='a "note"\n',
    )
    row = row_of(entry)
    checksum = row.pop("checksum")
    text = json.dumps(row, sort_keys=True)
    assert checksum == hashlib.sha256(text.encode()).hexdigest()
