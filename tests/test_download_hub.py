"""Dataset repositories of a hub: listed, fetched, checked; what closed doors and torn bodies lead to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, hub_server
from test_s3_errors import certificate

from components.download import hub as module
from components.download.fetch import open_tree
from components.download.hub import HubTree, endpoint, split_address
from components.download.hub_records import HubFile, read_record, write_record
from components.errors import PermanentError, TransientError, UsageError
from components.store import StoreDamaged, StoreNotFound, open_store

FILES = {
    "README.md": b"a card\n", "data/big.parquet": bytes(range(256)) * 900, "data/b c.txt": b"two\n",
    "test/0.tar": b"\x01" * 5000, "test/1.tar": b"\x02" * 5000, "test/nshards.txt": b"2", ".gitattributes": b"x",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server({"me/set": dict(FILES), "me/closed": dict(FILES)}) as served:
        served.gated.add("me/closed")
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_files_of_a_commit_over_many_pages(hub: Hub) -> None:
    with_folder = open_tree("hf://datasets/me/set@main/test")
    tree = open_tree("hf://datasets/me/set")
    assert isinstance(tree, HubTree)
    assert tree.names() == sorted(set(FILES) - {".gitattributes"})
    assert with_folder.names() == ["0.tar", "1.tar", "nshards.txt"]
    assert tree.origin == f"me/set@{hub.commit('me/set')}"
    assert hub.requests["tree"] >= 6
    for name in tree.names():
        assert tree.read(name) == FILES[name]
    assert with_folder.read("1.tar") == FILES["test/1.tar"]
    tree.close()
    with_folder.close()


def test_a_commit_stays_what_it_is_while_the_repository_moves_on(hub: Hub, tmp_path: Path) -> None:
    tree = HubTree("me/set")
    hub.repos["me/set"]["test/0.tar"] = b"new"
    assert tree.read("test/0.tar") == FILES["test/0.tar"]
    again = HubTree("me/set", tree.commit)
    assert again.fingerprint(["test/0.tar"]) == tree.fingerprint(["test/0.tar"])
    assert HubTree("me/set").fingerprint(["test/0.tar"]) != tree.fingerprint(["test/0.tar"])
    local = tmp_path / "copy"
    (local / "test").mkdir(parents=True)
    (local / "test/0.tar").write_bytes(FILES["test/0.tar"])
    assert open_tree(str(local)).fingerprint(["test/0.tar"]) == tree.fingerprint(["test/0.tar"]), "by content"
    tree.close()


@pytest.mark.parametrize("kinds", [["torn"], ["torn", "torn", "503"], ["429"], ["wrong"], ["torn", "whole"]])
@pytest.mark.parametrize("name", ["data/big.parquet", "README.md"])
def test_a_body_that_breaks_off_goes_on(hub: Hub, kinds: list[str], name: str) -> None:
    hub.faults[name] = list(kinds)
    tree = HubTree("me/set")
    assert tree.read(name) == FILES[name]
    assert hub.faults[name] == []
    assert bool(hub.ranges) == (kinds[0] == "torn" and kinds[-1] != "whole")
    tree.close()


def test_a_body_that_is_never_right_is_refused(hub: Hub) -> None:
    hub.faults["data/big.parquet"] = ["wrong"] * module.ATTEMPTS
    hub.faults["test/0.tar"] = ["torn"] * module.ATTEMPTS * 8
    tree = HubTree("me/set")
    with pytest.raises(TransientError, match=r"other bytes than its sum says.*5 times"):
        tree.read("data/big.parquet")
    with pytest.raises(TransientError, match="no whole answer"):
        tree.read("test/0.tar")
    tree.close()


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    tree = HubTree("me/closed")
    assert tree.read("data/big.parquet") == FILES["data/big.parquet"]
    assert tree.tail("test/1.tar", 7) == b"\x02" * 7
    assert hub.tokens == {f"Bearer {hub.token}"}
    assert hub.leaked == []
    tree.close()


@pytest.mark.parametrize(
    ("repo", "revision", "token", "said"),
    [
        ("me/none", "main", "", "there is no dataset 'me/none'.*or it is private.*set HF_TOKEN"),
        ("me/none", "main", "hf_other", "there is no dataset 'me/none'.*whether HF_TOKEN is still valid"),
        ("me/closed", "main", "", "'me/closed' is gated: ask for access at .*/datasets/me/closed, then set HF_TOKEN"),
        ("me/closed", "main", "hf_other", "gated.*of the account that has it"),
        ("me/set", "v9", "", "no revision as in hf://datasets/me/set@v9"),
    ],
)
def test_closed_doors(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, revision: str, token: str, said: str
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermanentError, match=said) as error:
        HubTree(repo, revision)
    assert "hf_other" not in str(error.value)


def test_a_hub_that_is_busy_is_asked_again(hub: Hub) -> None:
    hub.faults["revision"], hub.faults["tree"] = ["429", "503"], ["500"]
    HubTree("me/set").close()
    hub.faults["revision"] = ["429"] * 50
    with pytest.raises(TransientError, match="HTTP 429; a token in HF_TOKEN is allowed more"):
        HubTree("me/set")


@pytest.mark.timeout(30)
def test_a_certificate_that_is_not_trusted_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was asked again for ever. What was fetched before does without the hub, as where it is away."""
    file, tls = certificate(tmp_path)
    handshakes: list[object] = []
    tls.sni_callback = lambda *given: handshakes.append(given)
    kept = open_store(str(tmp_path / "kept"))
    with hub_server({"me/set": dict(FILES)}, tls) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(PermanentError, match=r"not trusted \(self-signed.*SSL_CERT_FILE, or correct HF_ENDPOINT"):
            HubTree("me/set")
        assert len(handshakes) == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        tree = HubTree("me/set", kept=kept)
        assert tree.read("test/0.tar") == FILES["test/0.tar"], "from the host that it redirects to, too"
        tree.close()
        monkeypatch.delenv("SSL_CERT_FILE")
        again = HubTree("me/set", kept=kept)
        assert f"going on with commit {tree.commit}" in capsys.readouterr().err
        assert again.read("test/0.tar") == FILES["test/0.tar"]
        with pytest.raises(PermanentError, match="not trusted"):
            again.read("test/1.tar")
        again.close()
        before = len(handshakes)
        elsewhere = open_tree(f"{served.url}/x/0.tar")
        with pytest.raises(PermanentError, match=r"x/0\.tar: the certificate is not trusted .*correct download\.path"):
            elsewhere.read("0.tar")
        elsewhere.close()
        assert len(handshakes) == before + 1


@pytest.mark.timeout(30)
def test_tls_that_breaks_off_is_tried_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    accepted = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            nonlocal accepted
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                accepted += 1
                connection.recv(4096)
                connection.sendall(b"\x15\x03\x01\x00\x02\x02\x50")  # a fatal alert: internal error
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"https://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(TransientError, match=r"no whole answer \(MaxRetryError\)"):
            HubTree("me/set")
        assert accepted == 3 * module.ATTEMPTS
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_http_where_https_was_expected_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http:", "https:"))
    with pytest.raises(PermanentError, match="speaks http, not https; correct HF_ENDPOINT"):
        HubTree("me/set")


@pytest.mark.parametrize("said", [{"sha": "../.."}, {}, [], {"sha": "0" * 40}])
def test_answers_of_something_else(hub: Hub, monkeypatch: pytest.MonkeyPatch, said: object) -> None:
    pages = iter([said, [{"type": "file", "path": "a", "size": 1, "oid": "../../x"}]])
    monkeypatch.setattr(HubTree, "_json", lambda self, url: (next(pages), None))
    with pytest.raises(PermanentError, match="does not answer as a hub does"):
        HubTree("me/set")


def test_what_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = HubTree("me/set")
    with pytest.raises(StoreNotFound, match="no file 'x' at commit"):
        tree.read("x")
    tree.close()
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere/datasets")
    with pytest.raises(PermanentError, match="there is no dataset"):
        HubTree("me/set")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "two words")
    with pytest.raises(UsageError, match="HF_TOKEN holds a blank") as error:
        HubTree("me/set")
    assert "two words" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host", "host", "https://user:pw@host", "http://[::1", "https://host:abc", "https://host:99999",
        "https://host:0", "https://", "https://:80", "http://[::1]x/", "https://a b",
    ],
)  # fmt: skip
def test_an_address_that_is_no_hubs(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UsageError, match="HF_ENDPOINT is no address") as error:
        endpoint()
    assert "pw" not in str(error.value)


def test_files_stay_where_they_are_kept_and_do_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_store(str(tmp_path / "kept"))
    tree = HubTree("me/set", kept=kept)
    assert tree.read("test/0.tar") == FILES["test/0.tar"]
    assert tree.read("test/nshards.txt") == b"2"
    tree.close()
    hub.requests.clear()
    again = HubTree("me/set", kept=kept)
    assert again.read("test/0.tar") == FILES["test/0.tar"]
    assert hub.requests["test/0.tar"] == 0
    again.close()
    damaged = next(name for name in kept.list() if name.startswith("sha256-"))
    kept.put_bytes(damaged, b"other")
    mended = HubTree("me/set", kept=kept)
    assert mended.read("test/0.tar") == FILES["test/0.tar"], "what was damaged is fetched again"
    assert kept.get_bytes(damaged) == FILES["test/0.tar"]
    mended.close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = HubTree("me/set", kept=kept)
    assert away.commit == tree.commit
    assert away.read("test/0.tar") == FILES["test/0.tar"]
    with pytest.raises(TransientError, match="no whole answer"):
        away.read("test/1.tar")
    with pytest.raises(TransientError):
        HubTree("me/set", "other", kept=kept)
    away.close()


def test_a_byte_that_changed_in_a_record_is_seen_wherever_it_is() -> None:
    files = [HubFile("a/0.tar", 512, f"sha256:{'0a' * 32}"), HubFile("b", 7, f"git:{'1' * 40}")]
    record = write_record("c" * 40, files)
    assert read_record(record) == ("c" * 40, files)
    for place in range(len(record)):
        assert read_record(record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :]) is None, place
    for other in (b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, record[:-2]):
        assert read_record(other) is None


@pytest.mark.parametrize("kind", ["a record that changed", "one that the store refuses"])
def test_a_damaged_record_is_asked_for_again_and_put_anew(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    kept = open_store(str(tmp_path / "kept"))
    tree = HubTree("me/set", kept=kept)
    assert tree.read("test/0.tar") == FILES["test/0.tar"]
    tree.close()
    records = {name: kept.get_bytes(name) for name in kept.list() if name.endswith(".json")}
    assert len(records) == 2

    def refused(name: str) -> bytes:
        raise StoreDamaged(f"{name}: another MD5 than the service's")

    with monkeypatch.context() as patched:
        if kind == "a record that changed":
            for name, data in records.items():
                kept.put_bytes(name, data.replace(b'"size":5000', b'"size":5001'))
        else:
            patched.setattr(kept, "get_bytes", refused)
            patched.setattr(kept, "local", refused)
        hub.requests.clear()
        again = HubTree("me/set", tree.commit, kept=kept)
        assert hub.requests["tree"] > 0
        assert again.read("test/0.tar") == FILES["test/0.tar"]
        again.close()
        HubTree("me/set", kept=kept).close()
    assert {name: kept.get_bytes(name) for name in records} == records
    for name in records:
        kept.put_bytes(name, b"{}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for revision in ("main", tree.commit):
        with pytest.raises(TransientError, match="no whole answer"):
            HubTree("me/set", revision, kept=kept)


def test_the_stand_in_is_one_for_the_hubs_own_client(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub reads it as it reads the hub: listing over pages, downloads by redirect, kinds of errors."""
    from huggingface_hub import HfApi, close_session
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(endpoint=hub.url, token=False)
    assert api.dataset_info("me/set", revision="main").sha == hub.commit("me/set")
    listed = {one.path: one for one in api.list_repo_tree("me/set", recursive=True, repo_type="dataset")}
    assert set(FILES) < set(listed)
    with_sum = listed["data/big.parquet"]
    assert (with_sum.size, len(with_sum.lfs.sha256)) == (len(FILES["data/big.parquet"]), 64)
    for repo, revision, expected in (
        ("me/none", "main", RepositoryNotFoundError), ("me/closed", "main", GatedRepoError),
        ("me/set", "v9", RevisionNotFoundError),
    ):  # fmt: skip
        with pytest.raises(expected):
            api.dataset_info(repo, revision=revision)
    close_session()


def test_addresses_of_repositories() -> None:
    assert split_address("hf://datasets/a/b") == ("a/b", "main", "")
    assert split_address("hf://datasets/a/b@abc/c/d") == ("a/b", "abc", "c/d")
    assert split_address("hf://datasets/a/b@refs%2Fpr%2F1") == ("a/b", "refs/pr/1", "")
    for bad in ("hf://datasets/", "hf://datasets/../b", "hf://models/a/b", "hf://datasets/a b/c"):
        with pytest.raises(UsageError, match=r"hf://"):
            split_address(bad)
