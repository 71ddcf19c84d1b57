"""Models of an object store are served like a folder's: complete, verified, bounded, current."""

import functools
import hashlib
import http.server
import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from service.contract.bundle import InvalidBundle, load_bundle
from service.stores.mirror import Mirror, NoRoom, open_mirror
from service.stores.remote import (
    ChangedUnderway,
    InvalidModelsUrl,
    LocalCopyFailed,
    RemoteFolder,
    RemoteUnavailable,
)
from tests.support.eventually import eventually
from tests.support.s3 import Bucket, s3_server
from tests.support.server import running
from tests.support.small_models import inputs, linear_model, publish_model

MIB = 2**20
_names = itertools.count()


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket that this process may read too."""
    found = Bucket(server, f"bucket-{next(_names)}")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def published(folder, *, seed=1, name="linear"):
    return publish_model(folder / "models", name, model=linear_model(seed=seed))


def mirror_of(url, tmp_path, *, max_bytes=100 * MIB):
    return Mirror(RemoteFolder(url), tmp_path / "cache", max_bytes=max_bytes)


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_version_is_copied_when_it_is_fetched_and_is_then_whole(bucket, tmp_path):
    bucket.publish(published(tmp_path))
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    folder = mirror.folder / "linear" / "1"
    assert files_of(folder) == ["model.json"]
    mirror.fetch(folder)
    assert load_bundle(folder).name == "linear"
    assert files_of(folder) == ["model.json", "model.onnx"]


def test_a_version_without_its_model_json_is_still_being_written(bucket, tmp_path):
    folder = published(tmp_path)
    bucket.put("linear/1/model.onnx", (folder / "model.onnx").read_bytes())
    bucket.put("notes/readme.txt", b"no model")
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    assert not (mirror.folder / "linear").exists()
    bucket.put("linear/1/model.json", (folder / "model.json").read_bytes())
    mirror.refresh()
    assert (mirror.folder / "linear" / "1").is_dir()


def test_a_file_that_is_not_the_one_of_model_json_is_refused_and_leaves_nothing(bucket, tmp_path):
    bucket.publish(published(tmp_path))
    bucket.put("linear/1/model.onnx", b"another file")
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    with pytest.raises(ChangedUnderway, match="sha256"):
        mirror.fetch(mirror.folder / "linear" / "1")
    assert files_of(mirror.folder / "linear" / "1") == ["model.json"]


def test_a_file_that_is_missing_is_named(bucket, tmp_path):
    bucket.publish(published(tmp_path))
    bucket.delete("linear/1/model.onnx")
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    with pytest.raises(ChangedUnderway, match=r"'model\.onnx' is not in"):
        mirror.fetch(mirror.folder / "linear" / "1")


def test_a_model_json_that_names_a_file_outside_its_folder_is_refused(bucket, tmp_path):
    folder = published(tmp_path)
    fields = json.loads((folder / "model.json").read_text())
    fields["files"]["../../escaped"] = hashlib.sha256(b"x").hexdigest()
    bucket.publish(folder)
    bucket.put("linear/1/model.json", json.dumps(fields).encode())
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    with pytest.raises((ChangedUnderway, InvalidBundle)):
        mirror.fetch(mirror.folder / "linear" / "1")
    assert not (tmp_path / "cache" / "escaped").exists()


def test_only_what_has_another_etag_is_read_again(bucket, tmp_path, monkeypatch):
    bucket.publish(published(tmp_path))
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    read = []
    own = RemoteFolder.read
    monkeypatch.setattr(
        RemoteFolder,
        "read",
        lambda self, file, **more: read.append(file.path) or own(self, file, **more),
    )
    mirror.refresh()
    assert read == []
    bucket.publish(published(tmp_path, seed=2))
    mirror.refresh()
    assert [path.split("/")[-2:] for path in read] == [["2", "model.json"]]


def test_a_version_that_is_gone_from_the_store_is_gone_here(bucket, tmp_path):
    bucket.publish(published(tmp_path))
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    bucket.delete("linear/1/model.json")
    mirror.refresh()
    assert not (mirror.folder / "linear").exists()


def test_the_copy_is_bounded_and_what_serves_is_never_evicted(bucket, tmp_path):
    sizes = []
    for seed in (1, 2, 3):
        folder = published(tmp_path, seed=seed)
        bucket.publish(folder)
        sizes.append((folder / "model.onnx").stat().st_size)
    manifests = 3 * (tmp_path / "models/linear/1/model.json").stat().st_size
    mirror = mirror_of(bucket.url, tmp_path, max_bytes=manifests + 2 * max(sizes) + min(sizes) // 2)
    mirror.refresh()
    one, two, three = (mirror.folder / "linear" / each for each in "123")
    mirror.fetch(one)
    mirror.fetch(two)
    with pytest.raises(NoRoom, match="--models-cache-mib"):
        mirror.fetch(three)
    mirror.release(("linear", 1))
    mirror.fetch(three)
    assert files_of(one) == ["model.json"]
    assert files_of(two) == files_of(three) == ["model.json", "model.onnx"]


def test_what_another_process_serves_is_not_evicted_and_its_death_frees_it(bucket, tmp_path):
    folder = published(tmp_path)
    bucket.publish(folder)
    bucket.publish(published(tmp_path, seed=2))
    size = (folder / "model.onnx").stat().st_size + 2 * (folder / "model.json").stat().st_size
    mirror = mirror_of(bucket.url, tmp_path, max_bytes=size + 200)
    mirror.refresh()
    hold = (
        "import sys; from pathlib import Path; from service.stores.mirror import Mirror; "
        "from service.stores.remote import RemoteFolder; "
        f"m = Mirror(RemoteFolder({bucket.url!r}), Path({str(mirror.folder)!r}), max_bytes=9**9); "
        f"m.refresh(); m.fetch(Path({str(mirror.folder / 'linear' / '1')!r})); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(NoRoom):
            mirror.fetch(mirror.folder / "linear" / "2")
        other.kill()
    mirror.fetch(mirror.folder / "linear" / "2")
    assert files_of(mirror.folder / "linear" / "1") == ["model.json"]


def test_a_fetch_that_was_killed_leaves_nothing_that_could_be_served(bucket, tmp_path):
    folder = published(tmp_path)
    bucket.publish(folder)
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    here = mirror.folder / "linear" / "1"
    (here / "model.onnx.part").write_bytes((folder / "model.onnx").read_bytes()[:100])
    (here / "model.onnx").write_bytes(b"half")  # as a crash of the machine may leave a file
    mirror.fetch(here)
    assert load_bundle(here)
    assert files_of(here) == ["model.json", "model.onnx"]


def test_what_was_copied_serves_while_the_store_is_away(tmp_path, monkeypatch):
    with s3_server() as address:
        bucket = Bucket(address, "away")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        bucket.publish(published(tmp_path))
        mirror = mirror_of(bucket.url, tmp_path)
        mirror.refresh()
        mirror.fetch(mirror.folder / "linear" / "1")
    with pytest.raises(RemoteUnavailable):
        mirror.refresh()
    assert mirror.fault
    again = mirror_of(bucket.url, tmp_path)
    again.fetch(again.folder / "linear" / "1")
    assert load_bundle(again.folder / "linear" / "1")


def test_a_web_folder_serves_as_well(tmp_path):
    published(tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        mirror = mirror_of(f"http://127.0.0.1:{web.server_port}/models", tmp_path)
        mirror.refresh()
        mirror.fetch(mirror.folder / "linear" / "1")
        web.shutdown()
    assert load_bundle(mirror.folder / "linear" / "1")


class Web(http.server.SimpleHTTPRequestHandler):
    """A web folder in which some paths fail."""

    broken: ClassVar[dict[str, int]] = {}

    def do_GET(self):
        status = self.broken.get(self.path)
        if status is None:
            super().do_GET()
        else:
            self.send_error(status)

    def log_message(self, *_):
        pass


def test_a_web_folder_that_is_away_or_fails_in_part_takes_no_model_away(tmp_path, monkeypatch):
    published(tmp_path)
    (tmp_path / "models" / "gone").mkdir()
    handler = functools.partial(Web, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setattr(Web, "broken", {"/models/gone/": 404})
        mirror = mirror_of(f"http://127.0.0.1:{web.server_port}/models", tmp_path)
        mirror.refresh()
        mirror.fetch(mirror.folder / "linear" / "1")
        for page in ("/models/", "/models/linear/", "/models/linear/1/"):
            monkeypatch.setattr(Web, "broken", {page: 503})
            with pytest.raises(RemoteUnavailable, match="503"):
                mirror.refresh()
        monkeypatch.setattr(Web, "broken", {"/models": 404, "/models/": 404})
        with pytest.raises(RemoteUnavailable):
            mirror.refresh()
        web.shutdown()
    with pytest.raises(RemoteUnavailable, match="cannot be read"):
        mirror.refresh()
    assert mirror.fault
    assert load_bundle(mirror.folder / "linear" / "1")


class OddWeb(Web):
    """A web folder whose server answers in odd ways."""

    mode: ClassVar[str] = ""

    def do_GET(self):
        if self.mode == "page for people":
            self.answer(200, b'<html><a href="news">We are back soon</a></html>', "text/html")
        elif self.mode == "Caddy" and self.path.endswith("/"):
            names = sorted(Path(self.translate_path(self.path)).iterdir())
            links = (f'<a href="./{n.name}{"/" * n.is_dir()}">' for n in names)
            self.answer(200, "".join(links).encode(), "text/html")
        elif self.mode == "no bytes" and "Range" in self.headers:
            self.send_response(304)
            self.end_headers()
        else:
            super().do_GET()

    def end_headers(self):
        if self.mode == "no sizes":
            kept = [line for line in self._headers_buffer if b"ength" not in line]
            self._headers_buffer = kept
        elif self.mode == "no bytes":
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        super().end_headers()
        self.wfile.write(body)


@pytest.fixture
def odd_web(tmp_path, monkeypatch):
    """The URL of a published model on an OddWeb, and a function that sets its mode."""
    published(tmp_path)
    handler = functools.partial(OddWeb, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield (
            f"http://127.0.0.1:{web.server_port}/models",
            functools.partial(monkeypatch.setattr, OddWeb, "mode"),
        )
        web.shutdown()


def test_a_page_for_people_in_place_of_the_list_takes_no_model_away(odd_web, tmp_path):
    url, set_mode = odd_web
    mirror = mirror_of(url, tmp_path)
    mirror.refresh()
    mirror.fetch(mirror.folder / "linear" / "1")
    set_mode("page for people")
    for each in (mirror, mirror_of(url, tmp_path)):  # the second: after a restart
        with pytest.raises(RemoteUnavailable, match="lists no model version"):
            each.refresh()
        assert "keeps serving" in each.fault
    assert load_bundle(mirror.folder / "linear" / "1")
    set_mode("")
    mirror.refresh()
    assert mirror.fault is None


def test_a_bucket_in_which_nothing_is_left_takes_no_model_away(bucket, tmp_path):
    bucket.publish(published(tmp_path))
    mirror = mirror_of(bucket.url, tmp_path)
    mirror.refresh()
    bucket.delete("linear/1/model.json")
    bucket.delete("linear/1/model.onnx")
    with pytest.raises(RemoteUnavailable, match="lists no model version"):
        mirror.refresh()
    assert (mirror.folder / "linear" / "1" / "model.json").exists()


def test_links_as_caddy_writes_them_lead_to_the_models(odd_web, tmp_path):
    url, set_mode = odd_web
    set_mode("Caddy")
    mirror = mirror_of(url, tmp_path)
    mirror.refresh()
    mirror.fetch(mirror.folder / "linear" / "1")
    assert load_bundle(mirror.folder / "linear" / "1")


def test_an_answer_without_the_bytes_of_model_json_is_not_kept(odd_web, tmp_path):
    url, set_mode = odd_web
    mirror = mirror_of(url, tmp_path)
    set_mode("no bytes")
    mirror.refresh()
    assert not (mirror.folder / "linear").exists()
    set_mode("")
    mirror.refresh()
    mirror.fetch(mirror.folder / "linear" / "1")
    assert load_bundle(mirror.folder / "linear" / "1")


def test_files_whose_sizes_no_server_tells_are_bounded_too(odd_web, tmp_path):
    url, set_mode = odd_web
    set_mode("no sizes")
    manifest = (tmp_path / "models/linear/1/model.json").stat().st_size
    mirror = mirror_of(url, tmp_path, max_bytes=manifest + 50)
    mirror.refresh()
    with pytest.raises(NoRoom, match="--models-cache-mib"):
        mirror.fetch(mirror.folder / "linear" / "1")
    assert files_of(mirror.folder / "linear" / "1") == ["model.json"]
    larger = mirror_of(url, tmp_path)
    larger.refresh()
    larger.fetch(larger.folder / "linear" / "1")
    assert load_bundle(larger.folder / "linear" / "1")


def test_a_web_server_that_falls_silent_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("service.stores.remote.SILENT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # the system takes what nobody reads
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/models"
        with pytest.raises(RemoteUnavailable, match="models cannot be read: nothing came in time"):
            mirror_of(url, tmp_path).refresh()


def test_a_copy_that_cannot_be_written_names_the_folder_and_not_the_store(odd_web, tmp_path):
    url, _ = odd_web
    mirror = mirror_of(url, tmp_path)
    mirror.refresh()
    (mirror.folder / "linear" / "1" / "model.onnx.part").symlink_to("/dev/full")
    with pytest.raises(LocalCopyFailed, match=r"model\.onnx\.part: No space.*--models-cache"):
        mirror.fetch(mirror.folder / "linear" / "1")


def test_a_version_that_cannot_be_written_leaves_no_folder_behind(odd_web, tmp_path):
    url, _ = odd_web
    mirror = mirror_of(url, tmp_path)
    (mirror.folder / "linear").touch()  # in the place of the model's folder
    for _ in range(3):
        with pytest.raises(RemoteUnavailable, match="File exists"):
            mirror.refresh()
    assert not list(mirror.folder.glob(".new-*"))


def test_a_copy_that_was_deleted_is_made_again(odd_web, tmp_path):
    url, _ = odd_web
    mirror = mirror_of(url, tmp_path)
    for _ in range(2):
        mirror.refresh()
        mirror.fetch(mirror.folder / "linear" / "1")
        assert mirror.fault is None
        assert load_bundle(mirror.folder / "linear" / "1")
        assert (mirror.folder / "linear" / "1" / ".in-use").exists(), "it is not evicted"
        shutil.rmtree(mirror.folder)


def test_a_folder_for_the_copy_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "copy"):
        with pytest.raises(InvalidModelsUrl, match=r"--models-cache is .*expected a folder"):
            open_mirror("file:///nowhere", folder, max_bytes=MIB)


@pytest.mark.parametrize("planted", ["link", "writable", "foreign"])
def test_a_copy_in_the_temporary_folder_that_others_could_write_is_refused(
    planted, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = f"file://{published(tmp_path).parents[1]}"
    mirror = Mirror(RemoteFolder(url), None, max_bytes=100 * MIB)
    mirror.refresh()
    assert mirror.folder.parent == tmp_path
    if planted == "link":
        mirror.folder.rename(tmp_path / "elsewhere")
        mirror.folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "writable":
        mirror.folder.chmod(0o777)
    else:
        monkeypatch.setattr("os.geteuid", lambda: mirror.folder.stat().st_uid + 1)
    with pytest.raises(InvalidModelsUrl, match=r"cannot be trusted; remove it, .*--models-cache"):
        Mirror(RemoteFolder(url), None, max_bytes=100 * MIB)
    with pytest.raises(RemoteUnavailable, match="cannot be trusted"):
        mirror.refresh()


@pytest.mark.parametrize(
    ("url", "words"),
    [("ftp://host/models", "begins with s3://"), ("gs://bucket/models", r"priordial\[gcs\]")],
)
def test_a_url_that_cannot_be_opened_says_what_to_do(url, words, tmp_path):
    with pytest.raises(InvalidModelsUrl, match=words):
        open_mirror(url, tmp_path, max_bytes=MIB)


def test_a_folder_needs_no_copy(tmp_path):
    assert open_mirror(Path("models"), tmp_path, max_bytes=MIB) is None


def test_the_service_serves_from_a_bucket_and_takes_up_what_comes_into_it(server, tmp_path):
    bucket = Bucket(server, "served")
    bucket.publish(published(tmp_path))
    body = {"instances": inputs(1).tolist()}

    def version(url):
        return httpx.post(f"{url}/predict", json=body, timeout=30).json()["version"]

    with running(
        bucket.url,
        environment=bucket.environment,
        models_cache=tmp_path / "cache",
        models_poll_seconds=0.2,
        workers=2,
    ) as service:
        assert version(service.url) == 1
        bucket.publish(published(tmp_path, seed=2))
        eventually(lambda: {version(service.url) for _ in range(6)} == {2})
        bucket.put("linear/3/model.json", b"{}")
        eventually(lambda: "linear/3" in service.log)
        assert version(service.url) == 2
        assert service.terminate() == 0
    assert (tmp_path / "cache" / "linear" / "2" / "model.onnx").exists()


def test_readiness_names_the_fault_of_a_url_that_cannot_be_read(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as web:
        port = web.server_port  # nothing listens on it from here on
    with running(f"http://127.0.0.1:{port}/models", models_cache=tmp_path / "copy") as server:
        ready = httpx.get(f"{server.url}/health/ready", timeout=30)
        assert ready.status_code == 503
        assert f"127.0.0.1:{port}/models cannot be read" in ready.text
        assert "publish one there" not in ready.text
