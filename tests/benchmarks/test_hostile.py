"""A short run of the hostile client against a real service finds no fault."""

from benchmarks.endurance import hostile


def test_a_short_hostile_run_finds_no_fault():
    found = hostile.run(requests=500, seconds=120, seed=20, connections=4)
    assert found.faults() == []
    assert found.inputs > 500
    assert found.statuses[200] > 5
    assert found.memory_peak_mib < 1000


def test_answers_that_were_cut_are_faults():
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    assert [each.status for each in hostile._answers(whole * 2)] == [200, 200]
    for at in range(1, len(whole)):
        assert hostile._answers(whole + whole[:at])[-1].status == 0
    assert hostile._answers(b"HTTP/1.1 102 Processing\r\n\r\n" + whole) == hostile._answers(whole)


def test_a_stream_must_get_the_same_answers_in_every_cut():
    fine, gone, wrong = (hostile.Answer(status, b"", b"") for status in (200, 404, 400))
    get = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    assert hostile.ends_whole(get * 2)
    assert not hostile.ends_whole(get + get[:-1])
    assert not hostile.ends_whole(get + b"x y z\r\n\r\n")
    assert hostile.alike([[fine, gone], [fine, gone]], ends_whole=True)
    assert not hostile.alike([[fine, gone], [fine]], ends_whole=True)
    assert hostile.alike([[fine, gone], [fine], [fine, wrong]], ends_whole=False)
    assert not hostile.alike([[fine, gone], [gone]], ends_whole=False)
    assert not hostile.alike([[fine, gone, wrong], [fine]], ends_whole=False)
    assert not hostile.alike([[fine, fine], [fine]], ends_whole=False)
    early = get[:-2] + b"Content-Length: 3\r\n\r\n"
    assert hostile.ends_in_body(get + early)
    assert hostile.ends_in_body(early + b"ab")
    chunks = (
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n"
    )
    assert hostile.ends_in_body(chunks)
    assert not hostile.ends_whole(chunks)
    assert not any(map(hostile.ends_in_body, (get, get[:-1], early + b"abc", early + b"abcGE")))
    assert hostile.alike([[fine, fine], [fine]], ends_whole=False, ends_in_body=True)
    assert not hostile.alike([[fine, fine], [gone]], ends_whole=False, ends_in_body=True)
