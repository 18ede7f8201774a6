"""Download from webdataset tars behind http and on S3."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from downloads import classified, download, flat, samples
from s3 import moto_server, new_bucket

from components.errors import PermanentError
from components.store import open_store


@pytest.mark.parametrize("layout", ["base", "pattern", "one"])
def test_webdataset_behind_http(tmp_path: Path, layout: str) -> None:
    if layout == "base":
        source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
        remote, local = "", source
    else:
        source = flat(tmp_path / "data", [8, 8] if layout == "pattern" else [12])
        remote, local = ("/{00000..00001}.tar", source) if layout == "pattern" else ("/00000.tar", source)
    here = download(tmp_path / "a", source="webdataset", path=str(local))
    with served(source) as url:
        there = download(tmp_path / "b", source="webdataset", path=url + remote)
    assert there.manifest_sha256 == here.manifest_sha256


def served(folder: Path, missing: int = 404, busy: str = "") -> Any:
    """The folder behind an http server of the standard library; what is not there is answered with `missing`.

    busy: the first answer to each request is a 503 with this Retry-After.
    """
    import threading
    from contextlib import contextmanager
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            super().send_error(missing if code == 404 else code, message, explain)

        def send_head(self) -> Any:
            if not busy or (self.command, self.path) in heard:
                return super().send_head()
            heard.add((self.command, self.path))
            self.send_response(503)
            self.send_header("Retry-After", busy)
            self.end_headers()
            return None

    heard: set[tuple[str, str]] = set()

    @contextmanager
    def run() -> Any:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return run()


@pytest.mark.parametrize(("busy", "longest"), [("86400", 60), ("9" * 5000, 1), ("soon", 1)])
def test_a_server_that_says_come_back_tomorrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: str, longest: float
) -> None:
    source = flat(tmp_path / "data", [12])
    slept: list[float] = []
    with served(source, busy=busy) as url, monkeypatch.context() as patched:
        patched.setattr(time, "sleep", slept.append)
        report = download(tmp_path / "store", source="webdataset", path=f"{url}/00000.tar")
    assert report.manifest.counts["ok"] == 12
    if longest == 60:
        assert slept
        assert set(slept) == {60}, "a minute is waited, no day"
    assert all(seconds <= longest for seconds in slept)


def test_what_is_not_behind_http(tmp_path: Path) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    with served(tmp_path / "data") as url:
        with pytest.raises(PermanentError, match=r"no \.tar files"):
            download(tmp_path / "store", source="webdataset", path=url)
        with pytest.raises(PermanentError, match=r"00000\.tar.*HTTP 404"):
            download(tmp_path / "store", source="webdataset", path=f"{url}/00000.tar")
        for number in ("many", "9" * 5000, "100001", "-1", ""):
            (tmp_path / "data/train/nshards.txt").write_text(number)
            with pytest.raises(PermanentError, match=r"nshards\.txt holds .*number of tars, 100000 at most"):
                download(tmp_path / "store", source="webdataset", path=url)


def test_a_bucket_that_answers_403_for_what_is_not_there(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
    (source / "zeroshot_classification_templates.txt").unlink()
    here = download(tmp_path / "a", source="webdataset", path=str(source))
    with served(source, missing=403) as url:
        there = download(tmp_path / "b", source="webdataset", path=url)
        assert there.manifest_sha256 == here.manifest_sha256
        (source / "train/1.tar").unlink()
        with pytest.raises(PermanentError, match=r"train/1\.tar: the server answered HTTP 403; check"):
            download(tmp_path / "c", source="webdataset", path=url)
        with pytest.raises(PermanentError, match=r"elsewhere: the server answers HTTP 403 to all; check the address"):
            download(tmp_path / "c", source="webdataset", path=f"{url}/elsewhere")


def test_webdataset_on_s3(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
    here = download(tmp_path / "a", source="webdataset", path=str(source))
    with moto_server():
        bucket = new_bucket()
        place = open_store(f"{bucket}/data")
        for path in source.rglob("*.*"):
            place.put_file(path.relative_to(source).as_posix(), path)
        there = download(tmp_path / "b", source="webdataset", path=f"{bucket}/data")
        assert download(tmp_path / "b", source="webdataset", path=f"{bucket}/data/").cached
        plain = flat(tmp_path / "flat", [6, 6, 6])
        for path in plain.iterdir():
            place.put_file(f"flat/{path.name}", path)
        some = download(tmp_path / "c", source="webdataset", path=f"{bucket}/data/flat/{{00001..00002}}.tar")
    assert some.manifest.counts["ok"] == 12
    assert {json.loads(s.fields["json"])["source"].split("/")[0] for s in samples(some)} == {"00001.tar", "00002.tar"}
    assert [s.sha256 for s in there.manifest.shards] == [s.sha256 for s in here.manifest.shards]
