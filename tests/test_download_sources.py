"""Sources on the hub killed in the middle and started again; evaluation sets by name; img2dataset as the engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from downloads import classified, numbers
from hub import Hub, hub_server
from repositories import CLASSES, labels
from repositories import table as rows
from test_download_datacomp import metadata
from test_download_datacomp import params as datacomp
from url_lists import HERE, PICTURES, outcomes, table
from url_lists import params as listed
from web import web_server

from components.config import DownloadParams
from components.download import img2dataset, stage
from components.download.img2dataset import outcome_of
from components.errors import Interrupted, TransientError, UsageError
from components.evalsets import DEFAULT_ROOT, find_sets
from components.evaluate import download_params
from components.gc import collect
from components.hub_params import HubParams
from components.params import params_from_dict
from components.store import open_store
from components.url_params import UrlParams
from components.verify import verify


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    cifar = files_of(classified(tmp_path_factory.mktemp("set"), {"train": [6], "test": [6, 6]}))
    with hub_server({"me/classes": dict(CLASSES), "clip-benchmark/wds_vtab-cifar10": cifar}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def killed(params: DownloadParams, folder: Path, when: Callable[[], bool] = lambda: True) -> None:
    """Start the command on `folder`/store and kill it with SIGKILL once a shard is committed and `when` holds."""
    (folder / "params.yaml").write_text(
        yaml.safe_dump({"download": yaml.safe_load(yaml.safe_dump(plain(asdict(params))))})
    )
    command = [sys.executable, "-m", "components", "download", "--params", str(folder / "params.yaml")]
    with subprocess.Popen(
        [*command, "--store", str(folder / "store")], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        while not (list(folder.glob("store/download/*/_done/*.json")) and when()) and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        process.kill()
    assert not list(folder.glob("store/download/*/manifest.json"))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_datacomp_killed_in_the_middle_goes_on(hub: Hub, tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        hub.repos["mlfoundations/datacomp_small"] = {"a.parquet": metadata(web.url, 0, 40, "wait")}
        params = datacomp({"concurrency": 1})
        whole = stage.run(replace(params, urls=replace(params.urls, concurrency=64)), store=str(tmp_path / "whole"))
        web.requests.clear()
        killed(params, tmp_path)
        begun = sum(count for path, count in web.requests.items() if path.startswith("/wait"))
        again = stage.run(params, store=str(tmp_path / "store"))
        asked = sum(count for path, count in web.requests.items() if path.startswith("/wait"))
    assert again.manifest_sha256 == whole.manifest_sha256
    assert asked < 40 + begun, "the first shard was not fetched again"


def test_a_repository_killed_in_the_middle_goes_on(hub: Hub, tmp_path: Path) -> None:
    params = DownloadParams(
        source="huggingface", path="me/classes", dataset="c", image_size=16, shard_size=6, num_train=0, num_val=0,
        num_test=9,
    )  # fmt: skip
    pad = [bytes(np.random.default_rng(row).integers(0, 256, 20000, np.uint8)) for row in range(9)]
    last = "data/test-00000-of-00001.parquet"  # longer than what is fetched for its footer
    hub.repos["me/classes"] = CLASSES | {last: rows(24, 9, label=labels(24, 9), pad=pad)}
    whole = stage.run(params, store=str(tmp_path / "whole"))
    hub.faults[last] = ["", "hang"]  # the footer comes, and the file does not
    killed(params, tmp_path, lambda: not hub.faults[last])
    assert len(list(tmp_path.glob("store/download/*/_done/*.json"))) == 4, "those of the other files"
    again = stage.run(params, store=str(tmp_path / "store"))
    assert again.manifest_sha256 == whole.manifest_sha256


def cifar(limit: int = 0) -> DownloadParams:
    params = params_from_dict({"download": {"image_size": 16, "shard_size": 4}})
    return download_params(find_sets(["cifar10"])[0], DEFAULT_ROOT, params, limit)


def test_an_evaluation_set_by_name_is_fetched_once(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    monkeypatch.setattr("components.download.hub.PAUSE_S", 0.01)
    assert (cifar().source, cifar().path, cifar().dataset) == ("clip_benchmark", "vtab/cifar10", "vtab/cifar10")
    hub.faults["test/1.tar"] = ["wrong"] * 5
    with pytest.raises(TransientError, match=r"test/1.tar came with other bytes"):
        stage.run(cifar(), store=str(store))
    assert hub.requests["test/0.tar"] == 1
    report = stage.run(cifar(), store=str(store))
    assert numbers(report) == {"test": 12}
    assert hub.requests["test/0.tar"] == 1, "what had come stayed"
    assert hub.requests["train/0.tar"] == 0
    commit = hub.commit("clip-benchmark/wds_vtab-cifar10")
    assert report.manifest.metrics["origin"] == f"clip-benchmark/wds_vtab-cifar10@{commit}"
    assert not verify(str(store)).damaged
    told: list[str] = []
    collect(str(store), dry_run=True, older_than_s=0, tell=told.append, now=time.time() + 1e6)
    assert not any("would delete" in line and "/hub/" in line for line in told)
    hub.requests.clear()
    other = stage.run(replace(cifar(), image_size=8), store=str(store))
    assert numbers(other) == {"test": 12}
    assert not [path for path in hub.requests if path.endswith((".tar", ".txt"))], "from the store alone"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert stage.run(cifar(), store=str(store)).cached, "without the hub, too"
    assert numbers(stage.run(replace(cifar(), image_size=10), store=str(store))) == {"test": 12}
    pinned = replace(cifar(), hub=HubParams(revision=commit))
    monkeypatch.setattr("components.download.hub.HubTree._json", None)
    assert stage.run(pinned, store=str(store)).url == report.url, "a commit is not even asked for"


def test_an_evaluation_set_that_was_trained_on_is_dealt_as_then(hub: Hub) -> None:
    section = {"source": "clip_benchmark", "path": "cifar10", "dataset": "cifar10", "num_train": 5, "num_test": 6}
    params = params_from_dict({"download": section})
    (one,) = find_sets(["cifar10"])
    assert download_params(one, DEFAULT_ROOT, params, 0) == params.download_eval
    limited = download_params(one, DEFAULT_ROOT, params, 4)
    assert (limited.num_train, limited.num_test) == (-1, 4), "it has a test split of its own"
    pinned = params_from_dict({"download": {"source": "huggingface", "path": "a/b", "hub": {"revision": "c0ffee"}}})
    assert download_params(one, DEFAULT_ROOT, pinned, 0).hub.revision == "main"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "http_404"), ("HTTP Error 503: Service Unavailable", "http_503"),
        ("<urlopen error timed out>", "timeout"), ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", "no_such_host"),
        ("<urlopen error [Errno 111] Connection refused>", "no_connection"),
        ("Remote end closed connection without response", "no_connection"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "truncated"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would lead to ...\nFound", "redirects"),
        ("<urlopen error unknown url type: ftps>", "bad_url"), ("something new", "img2dataset"),
        ("Use of image disallowed by X-Robots-Tag directive", "noai"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "no_name_server"),
        ("<urlopen error [Errno 101] Network is unreachable>", "no_network"),
        ("<urlopen error [Errno 99] Cannot assign requested address>", "no_network"),
        ("<urlopen error [Errno 24] Too many open files>", "too_many_files"),
        ("[Errno 23] Too many open files in system", "too_many_files"),
        ("<urlopen error [Errno 113] No route to host>", "no_connection"),
        ("<urlopen error [Errno -5] No address associated with hostname>", "no_such_host"),
    ],
)  # fmt: skip
def test_what_img2datasets_messages_mean(message: str, reason: str) -> None:
    assert outcome_of(message).reason == reason


def test_img2dataset_that_is_not_there_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "list.csv", ["http://127.0.0.1:9/x"] * 5)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    monkeypatch.setattr(img2dataset.sys, "executable", str(bin_ / "python"))
    params = listed(path, engine="img2dataset")
    with pytest.raises(UsageError, match=r"no such program on PATH; install it.*pip install img2dataset"):
        stage.run(params, store=str(tmp_path / "store"))
    script = bin_ / "img2dataset"
    script.write_text('#!/bin/sh\necho "token=$HF_TOKEN."\necho no module named cv2 >&2\nexit 3\n')
    script.chmod(0o755)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(TransientError, match=r"ended with exit code 3: token=\. \| no module named cv2"):
        stage.run(params, store=str(tmp_path / "store"))
    script.write_text("#!/bin/sh\necho worker was killed\nexit 0\n")
    said = r"says nothing of 5 of 5 addresses, the first http://127.0.0.1:9/x: worker was killed; run the same command"
    with pytest.raises(TransientError, match=said):
        stage.run(params, store=str(tmp_path / "store"))


FAKE = """#!{python}
import sys, tarfile, io
import pyarrow as pa
from pathlib import Path
from pyarrow import parquet
given = dict(one.removeprefix("--").split("=", 1) for one in sys.argv[1:])
rows = parquet.read_table(given["url_list"])["row"].to_pylist()
out = Path(given["output_folder"])
out.mkdir()
good, message, lost, torn = {how!r}
keys = [str(row) for row in rows]
status = ["success" if row in good else "failed_to_download" for row in rows]
table = pa.table({{"row": rows, "key": keys, "status": status, "error_message": [message] * len(rows)}})
parquet.write_table(table.slice(0, len(rows) - lost), out / "0.parquet")
with tarfile.open(out / "0.tar", "w") as tar:
    for row in good:
        info = tarfile.TarInfo(f"{{row}}.jpg")
        info.size = 2000
        tar.addfile(info, io.BytesIO(bytes(2000)))
if torn:
    (out / "0.tar").write_bytes((out / "0.tar").read_bytes()[:torn])
print("the end of its log")
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (((), "<urlopen error [Errno -3] Temporary failure in name resolution>", 0, 0), r"no_name_server .*See to"),
        (((), "<urlopen error [Errno 101] Network is unreachable>", 0, 0), r"no_network .*See to this machine"),
        (((), "<urlopen error [Errno 24] Too many open files>", 0, 0), r"too_many_files .*Raise the limit"),
        (((0, 1), "", 3, 0), r"says nothing of 3 of 12 addresses.*the end of its log; run the same command again"),
        ((range(12), "", 0, 3000), r"left a shard that cannot be read \(.*the end of its log; run the same command"),
        ((range(12), "", 0, 2560), r"left a shard that cannot be read \(.*the end of its log; run the same command"),
    ],
)
def test_what_is_this_machines_fault_is_not_kept_with_img2dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[Any, ...], said: str
) -> None:
    script = tmp_path / "img2dataset"
    script.write_text(FAKE.format(python=sys.executable, how=(list(how[0]), *how[1:])))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = table(tmp_path / "list.csv", [f"http://127.0.0.1:9/{row}" for row in range(12)])
    with pytest.raises(TransientError, match=said):
        stage.run(listed(path, engine="img2dataset"), store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").rglob("_done/*")), "they would never be fetched again"


def test_img2dataset_is_started_wherever_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "list.csv", ["http://127.0.0.1:9/x"] * 5)
    params = listed(path, engine="img2dataset")
    script = tmp_path / "bin" / "img2dataset"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho here it is\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin:/usr/bin:/bin")
    with pytest.raises(TransientError, match="ended with exit code 3: here it is"):
        stage.run(params, store=str(tmp_path / "store"))
    for first in ("#!/of/a/python/that/is/gone\n", ""):
        script.write_text(f"{first}import os\n")
        with pytest.raises(
            UsageError, match=r"bin/img2dataset cannot be started \(.*\).*or set download\.urls\.engine"
        ):
            stage.run(params, store=str(tmp_path / "store"))


def test_img2dataset_is_ended_by_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program and what it started; the command says that it was stopped."""
    path = table(tmp_path / "list.csv", ["http://127.0.0.1:9/x"] * 5)
    script = tmp_path / "img2dataset"
    script.write_text(
        f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child.tmp\nmv {tmp_path}/child.tmp {tmp_path}/child\nwait\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    import signal
    import threading

    def stop() -> None:
        while not (tmp_path / "child").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Interrupted):
        stage.run(listed(path, engine="img2dataset"), store=str(tmp_path / "store"))
    thread.join()
    child = int((tmp_path / "child").read_text())
    for _ in range(500):  # it may be a zombie until its new parent looks
        status = Path(f"/proc/{child}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"process {child} is still there")


@pytest.mark.full
def test_the_same_list_with_img2dataset(tmp_path: Path) -> None:
    """The same pictures with the same bytes come of both engines, and each failure has its reason."""
    if shutil.which("img2dataset") is None:
        pytest.skip("no img2dataset on PATH: pip install img2dataset in an environment of its own")
    wanted = {"/404/6": "http_404", "/403/6": "http_403", "/short/9": "truncated", "/page/1": "not_a_picture",
              "/circle/0": "redirects", "/noai/0": "noai", "/ok/0": "duplicate", "/hang/3": "timeout"}  # fmt: skip
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/ok/{number}" for number in range(30)] + [web.url + path for path in wanted]
        sums = [""] * len(urls)
        sums[3] = "0" * 64
        path = table(tmp_path / "list.csv", [*urls, "ftp://host/x"], sha256=[*sums, ""])
        builtin = stage.run(listed(path), store=str(tmp_path / "a"))
        report = stage.run(listed(path, engine="img2dataset"), store=str(tmp_path / "b"))
        place = open_store(report.url)
        place.delete("manifest.json")
        place.delete(max(place.list("_done/")))
        again = stage.run(listed(path, engine="img2dataset"), store=str(tmp_path / "b"))
    expected = {3: "other_content", **{30 + row: reason for row, reason in enumerate(wanted.values())}, 38: "bad_url"}
    assert {row: reason for row, (_, reason) in outcomes(report.url).items() if reason} == expected
    assert outcomes(builtin.url) == outcomes(report.url)
    assert [shard.sha256 for shard in builtin.manifest.shards] == [shard.sha256 for shard in report.manifest.shards]
    assert again.manifest_sha256 == report.manifest_sha256


def test_the_engine_is_part_of_the_key(hub: Hub) -> None:
    from components.config import semantic

    plain_ = semantic(DownloadParams(urls=UrlParams(allow_networks=HERE)))
    assert semantic(DownloadParams(urls=UrlParams(engine="img2dataset"))) != plain_
