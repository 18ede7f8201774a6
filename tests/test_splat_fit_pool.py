"""A set fitted by groups and by a pool of processes: the same bytes, failures named, none left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import splat2d
from fleets import PARAMS, fitted, fitted_at_once, picture_set, profile, run, start
from picture_sets import commit_images, png_samples

from components.__main__ import main
from components.config import SplatFitParams
from components.errors import PermanentError, TransientError, UsageError
from components.manifest import Artifact
from components.splat_fit import pool, stage
from components.splat_fit.work import JOB_INDEX, Share
from components.store import FolderStore, os_error

SECTION = SplatFitParams(**PARAMS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return picture_set(tmp_path_factory.mktemp("pictures"), shards=4, per_shard=2)


@pytest.fixture(scope="module")
def whole(images: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fitted_at_once(SECTION, images, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "GROUPS_PER_PROCESS", 1)
    monkeypatch.setattr(pool, "FIRST_WAIT_S", 0.05)


@pytest.mark.parametrize("total", [1, 3, 4, 7])
def test_groups_in_any_order_and_a_call_that_finalises(
    images: Artifact, whole: dict[str, bytes], tmp_path: Path, total: int
) -> None:
    store = {"images": images.url, "store": str(tmp_path)}
    fitted_by = [stage.fit_group(SECTION, share=Share(total, (i,)), **store) for i in reversed(range(total))]
    assert sum(one.fitted for one in fitted_by) == 4
    assert not any(name.endswith("/manifest.json") for name in fitted(tmp_path))
    again = stage.fit_group(SECTION, share=Share(total, tuple(range(total))), **store)
    assert (again.fitted, again.found) == (0, 4)
    assert stage.finalise(SECTION, **store).manifest.counts["ok"] == 8
    assert fitted(tmp_path) == whole
    assert stage.finalise(SECTION, **store).cached
    assert stage.run(SECTION, **store).cached


def test_finalising_too_early(images: Artifact, tmp_path: Path) -> None:
    stage.fit_group(SECTION, images=images.url, store=str(tmp_path), share=Share(4, (1,)))
    with pytest.raises(TransientError, match=r"3 of 4 shards are not fitted yet \(0,2-3\)"):
        stage.finalise(SECTION, images=images.url, store=str(tmp_path))


def test_a_group_reads_its_own_entries_alone(images: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 8,000 groups must not list, nor read, what the others have committed."""
    stage.fit_group(SECTION, images=images.url, store=str(tmp_path), share=Share(4, (0, 1, 2)))
    work = stage.open_work(SECTION, images.url, str(tmp_path))
    asked: list[str] = []
    kind = type(work.commit.store)
    for method in ("get_bytes", "size", "list", "entries"):
        real = getattr(kind, method)
        monkeypatch.setattr(
            kind,
            method,
            lambda self, *args, real=real: (
                asked.append(f"{self.url}/{args[0]}" if args else "all") or real(self, *args)
            ),
        )
    stage.fit_group(SECTION, images=images.url, store=str(tmp_path), share=Share(4, (3,)))
    entries = [name for name in asked if "/splat_fit/" in name and name.endswith(".json")]
    assert {name.rpartition("/")[2] for name in entries} == {"00003.json"}
    assert "all" not in asked


def test_another_version_is_refused(images: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs another version; use the same image for both"):
        stage.fit_group(
            SECTION, images=images.url, store=str(tmp_path), share=Share(1, (0,)), output="splat_fit/0123456789abcdef"
        )


def test_a_shard_that_cannot_be_fitted_is_noted_and_the_others_are_fitted(tmp_path: Path) -> None:
    images = picture_set(tmp_path / "in", shards=4, per_shard=2)
    broken = Path(images.url, images.manifest.shards[1].name)
    content = broken.read_bytes()
    broken.write_bytes(content[:900] + b"damaged" + content[907:])
    store = {"images": images.url, "store": str(tmp_path / "store")}
    with pytest.raises(
        PermanentError, match=r"1 shard of \S+ cannot be fitted: \S+: \S+ sha256 .*the other 3 of groups"
    ):
        stage.fit_group(SECTION, share=Share(2, (0, 1)), **store)
    with pytest.raises(PermanentError, match=r"1 shard of \S+ cannot be fitted: .*the 3 fitted ones are kept"):
        stage.finalise(SECTION, **store)
    assert [name for name in fitted(tmp_path / "store") if "_failed" in name]
    broken.write_bytes(content)
    stage.run(SECTION, **store)
    stage.run(SECTION, images=images.url, store=str(tmp_path / "other"))
    assert fitted(tmp_path / "store") == fitted(tmp_path / "other"), "the note is gone"


@pytest.mark.parametrize(("index", "code"), [("", 42), ("0", 75)])
def test_a_store_that_takes_nothing_is_not_the_shards_fault(
    images: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    index: str,
    code: int,
) -> None:
    """The first refusal ends the call and is noted for no shard; a Job's index is left to another pod, and not lost."""
    puts: list[str] = []

    def refuse(self: FolderStore, name: str, path: Path) -> None:
        puts.append(name)
        raise os_error(Path(name), OSError(errno.EROFS, os.strerror(errno.EROFS)))

    monkeypatch.setattr(FolderStore, "put_file", refuse)
    monkeypatch.setenv(JOB_INDEX, index)
    command = ["splat-fit", "--params", profile(), "--images", images.url, "--store", str(tmp_path), "--group", "0/1"]
    assert main(command) == code
    assert len(puts) == 1
    assert fitted(tmp_path) == {}
    assert "Read-only file system; choose a folder that you may read and write" in capsys.readouterr().err


@pytest.mark.parametrize(("index", "code"), [("", 2), ("0", 75)])
def test_a_machine_without_its_gpu_is_not_the_calls_fault(
    images: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str, code: int
) -> None:
    """A driver that broke on one node must not end the Job of all."""
    monkeypatch.setattr(splat2d, "has_cuda", lambda: False)
    monkeypatch.setenv(JOB_INDEX, index)
    given = ["--params", profile(device="cuda"), "--images", images.url, "--store", str(tmp_path), "--group", "0/1"]
    assert main(["splat-fit", *given]) == code


def test_a_pool_leaves_what_one_process_leaves(
    images: Artifact, whole: dict[str, bytes], tmp_path: Path, quick: None
) -> None:
    report = pool.fit(SECTION, images=images.url, store=str(tmp_path), processes=2)
    assert fitted(tmp_path) == whole
    assert report.speeds["images_per_s"] > 0
    assert pool.fit(SECTION, images=images.url, store=str(tmp_path), processes=2).cached


@pytest.mark.parametrize(("threads", "processes", "each"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_threads_are_shared_out(images: Artifact, tmp_path: Path, threads: int, processes: int, each: int) -> None:
    section = replace(SECTION, threads=threads)
    work = stage.open_work(section, images.url, str(tmp_path))
    command = pool._command(section, work, str(tmp_path), processes)
    assert json.loads(command[command.index("--params") + 1])["splat_fit"]["threads"] == each


class Fake(pool._Crew):
    """Workers that end with given codes, having said something."""

    def __init__(self, tmp_path: Path, groups: int, codes: dict[int, list[str]], tries: int = 3) -> None:
        waiting = deque(pool._Group(Share(groups, (i,))) for i in range(groups))
        super().__init__(["sh", "-c"], tmp_path, 2, tries, waiting)
        self.codes = codes

    def _start(self, group: pool._Group) -> None:
        script = self.codes.get(group.share.chosen[0], [])
        self.command = ["sh", "-c", script.pop(0) if script else "exit 0"]
        super()._start(group)

    def work(self) -> None:
        with self.at_work():
            until = time.monotonic() + 20
            while self.go_on():
                assert time.monotonic() < until
                time.sleep(0.01)
        self.raise_failures("kept")


def test_workers_are_tried_again_and_named(tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str]) -> None:
    crew = Fake(tmp_path, 3, {0: ["kill -9 $$", "echo store away >&2; exit 75"], 2: ["exit 143"]})
    crew.work()
    said = capfd.readouterr().err
    assert "group 0/3: its worker was killed by SIGKILL (for want of memory?); try 2 of 3" in said
    assert "group 0/3: store away (exit 75); try 3 of 3" in said
    assert "group 2/3: it said nothing (exit 143); try 2 of 3" in said


def test_a_worker_that_fails_too_often(tmp_path: Path, quick: None) -> None:
    with pytest.raises(TransientError, match=r"1 groups were given up: group 1/4: it said nothing \(exit 75\); kept"):
        Fake(tmp_path, 4, {1: ["exit 75"] * 3}).work()


def test_a_group_that_fails_for_good_does_not_stop_the_others(tmp_path: Path, quick: None) -> None:
    crew = Fake(tmp_path, 4, {0: ["echo 'splatclip splat-fit: bad shard' >&2; exit 42"], 3: ["exit 75"]})
    with pytest.raises(PermanentError, match=r"group 0/4: bad shard \(exit 42\)"):
        crew.work()
    assert not crew.waiting
    assert not crew.codes[3], "it was tried"


def test_wrong_usage_stops_at_once(tmp_path: Path, quick: None) -> None:
    crew = Fake(tmp_path, 8, {0: ["echo no such device >&2; exit 2"], 1: ["sleep 60"]})
    with pytest.raises(UsageError, match="no such device"):
        crew.work()
    assert crew.running == {}, "nobody is left"


def slow_set(tmp_path: Path) -> tuple[Artifact, str]:
    images = commit_images(str(tmp_path / "in"), [("train", png_samples(8 * i, 8, 16, 16)) for i in range(6)])
    return images, profile(num_iters=40000)


def workers(parent: int) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):  # or a zombie
            found += [one] if "--group" in one.cmdline() else []
    return found


def wait_for_workers(parent: int, number: int) -> list[psutil.Process]:
    until = time.monotonic() + 60
    while len(found := workers(parent)) < number:
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def wait_for_a_shard(store: Path) -> None:
    """The first of six is finished: all the others are yet to come, or at work."""
    until = time.monotonic() + 60
    while not list(store.glob("splat_fit/*/*/*.tar")):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_stops_all_workers_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    images, params = slow_set(tmp_path)
    process = start(images.url, tmp_path / "a", "--processes", "2", params=params)
    crew = wait_for_workers(process.pid, 2)
    wait_for_a_shard(tmp_path / "a")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert re.search(rf"stopped by {number.name}, and all workers with it: \d shards are kept", err)
    assert not [one for one in crew if one.is_running()]
    assert not [name for name in fitted(tmp_path / "a") if ".tmp-" in name]
    result = run(images.url, tmp_path / "a", "--processes", "2", params=params)
    assert result.returncode == 0, result.stderr
    assert run(images.url, tmp_path / "b", params=params).returncode == 0
    assert fitted(tmp_path / "a") == fitted(tmp_path / "b")


@pytest.mark.full
def test_workers_that_are_killed_and_a_pool_that_is(tmp_path: Path) -> None:
    """A killed worker's group is fitted by another; those of a killed pool stop, and the next one goes on."""
    images, params = slow_set(tmp_path)
    process = start(images.url, tmp_path / "a", "--processes", "2", params=params)
    crew = wait_for_workers(process.pid, 2)
    crew[0].kill()
    crew = wait_for_workers(process.pid, 2)
    wait_for_a_shard(tmp_path / "a")
    os.kill(process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert "was killed by SIGKILL (for want of memory?); try 2 of 7" in err
    _, alive = psutil.wait_procs(crew, timeout=20)
    assert not alive, "they saw that nobody waits for them"
    result = run(images.url, tmp_path / "a", "--processes", "2", params=params)
    assert result.returncode == 0, result.stderr
    assert run(images.url, tmp_path / "b", params=params).returncode == 0
    assert fitted(tmp_path / "a") == fitted(tmp_path / "b")
