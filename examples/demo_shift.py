"""A shop whose class mix changes: three days in two minutes, with real Fashion-MNIST images.

    python examples/demo_shift.py [--port 8000] [--seconds 120] [--then-stop]

It starts the service with the shipped model `fashion` and a prior that estimates may move
(`auto_adopt`), then simulates customers. On the first evening a sale of winter clothes begins. On
the second afternoon a camera breaks. On the third morning everything is as before. Meanwhile, watch
the page Shift of the console. The images come from Debian's package dataset-fashion-mnist.
"""

import argparse
import gzip
import http.client
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGES = Path("/usr/share/datasets/fashion-mnist")
ROOT = Path(__file__).resolve().parents[1]
HOURS = 72
TICKS_A_SECOND = 2
ROWS = 100
SALE, CAMERA, REPAIR, NORMAL = 18, 38, 46, 54
"""Hours of the play at which something happens."""
REPORT_HOURS = 6
BROKEN = 0.6
"""Share of the images that the broken camera turns into noise."""


def main() -> int:
    """Play the three days; 0 when the estimate followed and the broken camera was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="of the service; 0: any free one")
    parser.add_argument("--seconds", type=float, default=120, help="that the three days last")
    parser.add_argument(
        "--then-stop", action="store_true", help="end the service after the third day"
    )
    options = parser.parse_args()
    if not IMAGES.is_dir():
        print(f"{IMAGES} does not exist; install it with: apt install dataset-fashion-mnist")
        return 1
    images, labels = idx("t10k-images-idx3-ubyte", 16), idx("t10k-labels-idx1-ubyte", 8)
    images = images.reshape(-1, 28, 28)
    with service(options.port) as url:
        print(f"Watch {url}/#/shift?model=fashion\n")
        well = play(url, images, labels, seconds=options.seconds)
        if not options.then_stop:
            print("\nThe service keeps running; Ctrl-C ends it.")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                pass
    return 0 if well else 1


def play(url: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], *, seconds: float) -> bool:
    """Send the customers of three days and print what happens every six hours."""
    model = call(url, "/models/fashion")["bundle"]
    names = model["class_names"]
    usual = np.array(model["class_counts"], float)
    usual /= usual.sum()
    body = {
        "target": "training",
        "expected": True,
        "note": "the usual mix of the shop",
        "auto_adopt": {"mode": "on", "every_minutes": seconds / 60 * 3 / HOURS, "largest_step": 2},
    }
    call(url, "/priors", body, method="PUT")
    members = [np.flatnonzero(labels == y) for y in range(len(names))]
    rng = np.random.default_rng(0)
    begun, ticks = time.monotonic(), int(seconds * TICKS_A_SECOND)
    wrong: list[list[int]] = [[], []]
    refused, errors = False, {}
    print(f"{'time':12}{'what happens':22}{'verdict':16}{'prior':>6}   error as trained → now")
    for tick in range(ticks):
        hour = HOURS * tick / ticks
        mix = mix_at(hour, usual)
        truth = rng.choice(len(names), ROWS, p=mix)
        rows = images[[rng.choice(members[y]) for y in truth]].astype(np.float32) / 255
        broken = np.zeros(ROWS, bool)
        if CAMERA <= hour < REPAIR:
            broken = rng.random(ROWS) < BROKEN
            rows[broken] = rng.random((int(broken.sum()), 28, 28), np.float32)
        answers = predict(url, model, rows)
        for row in np.flatnonzero(~broken):
            right = names[truth[row]]
            wrong[0].append(answers[row]["unadjusted"]["label"] != right)
            wrong[1].append(answers[row]["label"] != right)
        seen = call(url, "/priors/default/shift?points=0")
        verdict = (seen["judged"] or {}).get("verdict", "")
        refused |= verdict == "not_explained" and CAMERA <= hour < REPAIR + 2
        if int(HOURS * (tick + 1) / ticks) // REPORT_HOURS > int(hour) // REPORT_HOURS:
            trained, now = (100 * float(np.mean(each)) for each in wrong)
            errors[int(hour)] = (trained, now)
            clock = f"day {int(hour) // 24 + 1} {int(hour) % 24 + 1:02}:00"
            print(
                f"{clock:12}{what_happens(hour):22}{verdict:16}{seen['revision']:>6}"
                f"   {trained:5.1f} % → {now:4.1f} %",
                flush=True,
            )
            wrong = [[], []]
        time.sleep(max(0.0, begun + (tick + 1) / TICKS_A_SECOND - time.monotonic()))
    before, after = errors[max(h for h in errors if h < CAMERA)]
    print(
        f"\nDuring the sale the error fell from {before:.1f} % to {after:.1f} %. "
        f"The broken camera was {'refused' if refused else 'NOT refused'}."
    )
    return refused and after < before


def mix_at(hour: float, usual: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mix of the customers: usual, and reversed during the sale; changes take two hours."""
    share = np.clip((hour - SALE) / 2, 0, 1) - np.clip((hour - NORMAL) / 2, 0, 1)
    mixed: NDArray[np.float64] = (1 - share) * usual + share * usual[::-1]
    return mixed


def what_happens(hour: float) -> str:
    """The event of the day at this hour, as text."""
    if CAMERA <= hour < REPAIR:
        return "a camera is broken"
    return "a sale" if SALE <= hour < NORMAL else "the usual"


def predict(url: str, model: Any, rows: NDArray[np.float32]) -> Any:
    """The answers to images [n, 28, 28] of values 0 to 1."""
    spec = model["input"]
    file = io.BytesIO()
    np.save(file, ((rows - spec["mean"][0]) / spec["std"][0])[:, None].astype(np.float32))
    return send(url, "POST", "/predict?top_k=1", file.getvalue(), "application/x-npy")[
        "predictions"
    ]


def call(url: str, path: str, body: Any = None, *, method: str = "GET") -> Any:
    """The JSON answer to a call."""
    data = None if body is None else json.dumps(body).encode()
    return send(url, method, path, data, "application/json")


def send(url: str, method: str, path: str, body: bytes | None, kind: str) -> Any:
    """The decoded answer to a request; an error ends the demo."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request(method, path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400:
        sys.exit(f"{method} {path}: {answer.status} {content.decode()}")
    return json.loads(content)


def idx(name: str, header: int) -> NDArray[np.uint8]:
    """The bytes of an idx file."""
    with gzip.open(IMAGES / f"{name}.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


@contextmanager
def service(port: int) -> Iterator[str]:
    """The service with a store of its own, which is removed at the end; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "service", "serve", "--models", str(ROOT / "models"),
            "--default-model", "fashion", "--port", str(port), "--shift-seconds", "1",
            "--store", f"sqlite:///{folder}/priors.db", "--log-format", "text",
        ]  # fmt: skip
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"ready on (http://[^\s\"]+)", line):
                    break
            else:
                sys.exit("the service did not start:\n" + "".join(lines))
            rest = threading.Thread(target=process.stderr.read, daemon=True)
            rest.start()  # so that the pipe never fills
            yield found[1]
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
