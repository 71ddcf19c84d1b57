"""What the whole suite shares: tests that were left out are named at the end, and CI fails for
them.
"""

import gc
import os
import signal

from hypothesis import settings

from tests.support import server

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

server.start_service = server.fork

# A shell ignores SIGINT in what it runs in the background, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Spare the collector what all tests have imported: the service collects after each load."""
    gc.collect()
    gc.freeze()


OPTIONAL = "optional: "
"""A skip whose reason starts so never fails CI: it needs what no package registry of the project
installs.
"""


def _left_out(reporter):
    return [
        (report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: "))
        for report in reporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]


def pytest_terminal_summary(terminalreporter):
    left_out = _left_out(terminalreporter)
    if left_out:
        terminalreporter.section("left out")
        for name, reason in left_out:
            terminalreporter.line(f"{name}: {reason}")


def pytest_sessionfinish(session):
    if not os.environ.get("PRIORDIAL_LEAVE_NOTHING_OUT"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        any(not reason.startswith(OPTIONAL) for _, reason in _left_out(reporter))
        and session.exitstatus == 0
    ):
        session.exitstatus = 1
