"""A short run of the hostile client against a real service finds nothing that must not be."""

from benchmarks.endurance import hostile


def test_a_short_hostile_run_finds_no_fault():
    found = hostile.run(requests=300, seconds=120, seed=20, connections=4)
    assert found.faults() == []
    assert found.inputs > 300
    assert found.statuses[200] > 5
    assert found.memory_peak_mib < 1000


def test_answers_that_were_cut_are_faults():
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    assert [each.status for each in hostile._answers(whole * 2)] == [200, 200]
    for at in range(1, len(whole)):
        assert hostile._answers(whole + whole[:at])[-1].status == 0
    assert hostile._answers(b"HTTP/1.1 102 Processing\r\n\r\n" + whole) == hostile._answers(whole)
