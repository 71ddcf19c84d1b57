"""Many writers compare-and-set one prior while processes are killed: no acknowledged write may be
lost. Run by hand:

    python -m benchmarks.endurance.killed_writers [--engine sqlite|postgresql|both]
        [--writers 8] [--updates 500] [--kill-seconds 3]

With SQLite, one service runs two workers, and one of them is killed (SIGKILL) every few seconds.
With PostgreSQL, two services share one database; they are killed likewise and started again. Each
reader keeps one connection and requests predictions. At the end, the history in the store is
compared with the acknowledged writes and with the reads. The exit status is 1 when a promise was
broken.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.contract.adjustment import softmax
from service.priors.store import open_store
from tests.support.postgres import servers
from tests.support.server import running
from tests.support.small_models import CLASSES, COUNTS, inputs, publish_model, weights

ROW = inputs(1)[0]
SOURCE = np.array(COUNTS) / sum(COUNTS)
W, B = weights()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument(
        "--updates", type=int, default=500, help="acknowledged updates of each writer"
    )
    parser.add_argument("--kill-seconds", type=float, default=3.0)
    given = parser.parse_args()
    engines = ("sqlite", "postgresql") if given.engine == "both" else (given.engine,)
    broken = 0
    for engine in engines:
        with (
            tempfile.TemporaryDirectory(prefix="priordial-faults-") as name,
            contextlib.ExitStack() as stack,
        ):
            run = Run(given, Path(name))
            publish_model(run.folder / "models")
            if engine == "sqlite":
                run.with_workers(stack, f"sqlite:///{run.folder}/priors.db")
            else:
                run.with_replicas(stack, stack.enter_context(servers())().new_database())
            run.go()
            broken += run.report(engine)
    return 1 if broken else 0


class Run:
    """One engine's run: the acknowledged writes, the reads, and the verdict."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.acknowledged: list[tuple[int, str]] = []
        self.reads: list[list[tuple[int, np.ndarray]]] = []
        self.kills = self.retries = self.unknown = 0
        self.finished = threading.Event()
        self.random = random.Random(0)

    def with_workers(self, stack: contextlib.ExitStack, store: str) -> None:
        """One service with two workers; its supervisor replaces a killed worker."""
        self.store = store
        server = stack.enter_context(running(self.folder / "models", store=store, workers=2))
        self.urls = [server.url]
        self.processes = lambda: psutil.Process(server.process.pid).children()
        self.restart = lambda: None

    def with_replicas(self, stack: contextlib.ExitStack, store: str) -> None:
        """Two services; a killed one is started again on its port."""
        self.store = store
        ports, held = [], []
        for _ in range(2):
            inner = stack.enter_context(contextlib.ExitStack())
            server = inner.enter_context(running(self.folder / "models", store=store))
            held.append([inner, server])
            ports.append(int(server.url.rsplit(":", 1)[1]))
        self.urls = [server.url for _, server in held]
        self.processes = lambda: [
            psutil.Process(s.process.pid) for _, s in held if s.process.poll() is None
        ]

        def restart() -> None:
            for place, (inner, server) in enumerate(held):
                if server.process.poll() is not None:
                    inner.close()
                    fresh = running(self.folder / "models", store=store, port=ports[place])
                    held[place][1] = inner.enter_context(fresh)

        self.restart = restart

    def go(self) -> None:
        """Run until every writer has its acknowledged updates."""
        self.begun = time.perf_counter()
        helpers = [threading.Thread(target=self.kill)]
        helpers += [threading.Thread(target=self.read, args=(i,)) for i in range(4)]
        writers = [
            threading.Thread(target=self.write, args=(i,)) for i in range(self.given.writers)
        ]
        for thread in [*helpers, *writers]:
            thread.start()
        for thread in writers:
            thread.join()
        self.seconds = time.perf_counter() - self.begun
        self.finished.set()
        for thread in helpers:
            thread.join()

    def write(self, writer: int) -> None:
        """Compare and set, one update after another; requests without an answer do not count."""
        done = 0
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(httpx.Client(base_url=url, timeout=10)) for url in self.urls
            ]
            while done < self.given.updates:
                client = clients[(writer + done + self.retries) % len(clients)]
                note = f"{writer}/{done}"
                try:
                    tag = client.get("/priors/default").headers["etag"]
                    answer = client.put(
                        "/priors",
                        json={"target": target_of(note), "note": note},
                        headers={"If-Match": tag},
                    )
                except (httpx.HTTPError, KeyError):
                    self.unknown += 1
                    time.sleep(0.05)
                    continue
                if answer.is_success:
                    self.acknowledged.append((answer.json()["revision"], note))
                    done += 1
                else:
                    assert answer.status_code in (412, 503), answer.text
                    self.retries += 1

    def read(self, reader: int) -> None:
        """Request predictions on one connection until it breaks, then on a new one."""
        url = self.urls[reader % len(self.urls)]
        while not self.finished.is_set():
            seen: list[tuple[int, np.ndarray]] = []
            self.reads.append(seen)
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
            connection.auto_open = (
                0  # the client must not silently reconnect: each list belongs to one connection
            )
            body = json.dumps({"instances": [ROW.tolist()]})
            try:
                connection.connect()
                while not self.finished.is_set():
                    connection.request(
                        "POST",
                        f"/predict?top_k={CLASSES}",
                        body,
                        {"Content-Type": "application/json"},
                    )
                    answer = json.loads(connection.getresponse().read())
                    found = np.zeros(CLASSES)
                    for entry in answer["predictions"][0]["top"]:
                        found[entry["index"]] = entry["probability"]
                    seen.append((answer["prior"]["revision"], found))
                    time.sleep(0.002)
            except (http.client.HTTPException, OSError, KeyError, ValueError):
                time.sleep(0.05)
            finally:
                connection.close()

    def kill(self) -> None:
        """Send SIGKILL to a random serving process every few seconds."""
        while not self.finished.wait(self.given.kill_seconds):
            victims = self.processes()
            if len(victims) > 1:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.random.choice(victims).send_signal(signal.SIGKILL)
                    self.kills += 1
            self.finished.wait(0.2)
            self.restart()

    def report(self, engine: str) -> int:
        """Print the results, and return how many promises were broken."""
        store = open_store(self.store)
        store.open(create=False)
        entries = {entry.revision: entry for entry in store.everything()}
        order = [entry.revision for entry in store.everything()]
        store.close()
        lost = [(r, n) for r, n in self.acknowledged if r not in entries or entries[r].note != n]
        wanted = {r: probabilities_of(e.note) for r, e in entries.items()}
        wanted[0] = probabilities_of(None)
        # Each list is one connection; the next may reach a worker that is slightly behind.
        back = sum(b[0] < a[0] for seen in self.reads for a, b in itertools.pairwise(seen))
        foreign = sum(
            revision not in wanted or np.abs(found - wanted[revision]).max() > 1e-5
            for seen in self.reads
            for revision, found in seen
        )
        gaps = order != list(range(1, len(order) + 1))
        twins = len(self.acknowledged) - len({revision for revision, _ in self.acknowledged})
        damaged = sum(entry.damaged for entry in entries.values())
        broken = {
            "acknowledged and lost": len(lost),
            "revisions with gap or out of order": int(gaps),
            "revisions acknowledged twice": twins,
            "readers that went back": back,
            "answers of no stored revision": foreign,
            "damaged rows": damaged,
        }
        print(
            f"{engine}: {len(self.acknowledged)} acknowledged in {self.seconds:.1f} s, "
            f"{len(order)} stored, "
            f"{self.retries} refused (412, 503), {self.unknown} without an answer, {self.kills} "
            "processes killed, "
            f"{sum(map(len, self.reads))} predictions on {len(self.reads)} connections"
        )
        for what, count in broken.items():
            print(f"  {count:6d}  {what}")
        return sum(broken.values())


def target_of(note: str | None) -> list[float]:
    """Return a target that is different for each note; uniform without a note."""
    if note is None:
        return [1.0] * CLASSES
    rng = random.Random(note)
    return [float(rng.randint(1, 999)) for _ in range(CLASSES)]


def probabilities_of(note: str | None) -> np.ndarray:
    """Return the probabilities that the formula gives at tau 1, for the target of a note."""
    target = np.array(target_of(note))
    return softmax(ROW.astype(np.float64) @ W + B - np.log(SOURCE) + np.log(target / target.sum()))


if __name__ == "__main__":
    sys.exit(main())
