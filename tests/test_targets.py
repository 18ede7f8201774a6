"""The teacher's embeddings: made once, found again, resumed by shard."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import make_flow
from torch import Tensor

from components.distributed import World
from components.errors import Interrupted, PermanentError
from components.loader import ImageSet
from components.manifest import Commit, open_artifact
from components.openclip import load_teacher
from components.signals import Stop, stop_on_sigterm
from components.store import open_store, sha256_file
from components.train_adapter import targets
from components.train_adapter.augment import Augmentation
from components.train_adapter.data import Stream
from components.train_adapter.targets import TeacherEmbeddings


class Setting:
    """A flow's images, splats and teacher; what the teacher was asked for is counted."""

    def __init__(self, folder: Path) -> None:
        flow = make_flow(folder)
        self.store = open_store(flow["store"])
        self.images, self.given, self.splats = (
            open_artifact(flow[name], self.store) for name in ("images", "teacher", "splats")
        )
        self.teacher = load_teacher(self.given)

    def made(self, flips: bool = True, stop: Stop | None = None) -> TeacherEmbeddings:
        return TeacherEmbeddings(
            self.images, self.given, self.teacher, self.store, flips=flips, stop=stop or Stop(), world=World()
        )

    def stream(self, flips: bool = True) -> Stream:
        pictures = ImageSet(self.images, "train", splats=self.splats)
        cpu = torch.device("cpu")
        return Stream(
            pictures, self.teacher, cpu, picture=16, batch_size=16, seed=3, augmentation=Augmentation(flips=flips)
        )


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each call of the teacher."""
    counts: list[int] = []
    embed = targets.embed

    def counted(clip: Any, images: Tensor) -> Tensor:
        counts.append(len(images))
        return embed(clip, images)

    monkeypatch.setattr(targets, "embed", counted)
    return counts


def test_files_made_twice_at_once_are_kept_apart(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two students' bytes may differ in the last bit; each manifest's files stay what it says."""
    first = setting.made().artifact
    url = Path(first.url)
    for path in (url / "manifest.json", *(url / "_done").iterdir()):  # as the other student found it
        path.unlink()
    embed = targets.embed
    monkeypatch.setattr(targets, "embed", lambda clip, images: embed(clip, images) * (1 + 2**-10))
    second = setting.made().artifact
    assert second.url == first.url
    names = [{entry.name for entry in made.manifest.files} for made in (first, second)]
    assert not names[0] & names[1]
    for made in (first, second):
        for entry in made.manifest.files:
            assert sha256_file(url / entry.name) == entry.sha256


def test_each_picture_is_seen_once_and_found_by_the_next_student(setting: Setting, asked: list[int]) -> None:
    made = setting.made()
    assert asked == [25, 25, 25, 25], "two shards, each picture and its mirror image"
    assert made.artifact.manifest.metrics == {"pictures": 50, "embeddings": 100, "dim": 24}
    assert setting.made().artifact.url == made.artifact.url
    assert setting.made(flips=False).artifact.url != made.artifact.url
    assert sum(asked) == 150
    stream = setting.stream()
    for step in range(stream.steps_per_epoch):
        given = stream.at(step)
        found = made.of(given)
        with torch.no_grad():
            expected = targets.embed(setting.teacher.model, given.images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(16))
        assert ((found * expected).sum(dim=1) > 0.9995).all(), "rounded to half precision, and of this very picture"


def test_what_is_missing_is_made_and_nothing_else(setting: Setting, asked: list[int]) -> None:
    made = setting.made(flips=False)
    before = {path.name: path.read_bytes() for path in Path(made.artifact.url).rglob("*.safetensors")}
    assert len(before) == 2
    asked.clear()
    first = min(Path(made.artifact.url).rglob("*.safetensors"))
    first.unlink()
    (Path(made.artifact.url) / "manifest.json").unlink()
    again = setting.made(flips=False)
    assert asked == [25]
    assert {path.name: path.read_bytes() for path in Path(again.artifact.url).rglob("*.safetensors")} == before
    first.write_bytes(b"damaged")
    with pytest.raises(PermanentError, match="sha256"):
        setting.made(flips=False).of(setting.stream(flips=False).at(0))


def test_processes_that_see_different_lists_leave_no_file_out(
    setting: Setting,
) -> None:
    """What is missing is dealt by process 0's list: the first one here looks when the second has done its part."""
    listed: list[dict[int, Any]] = []

    class Two(World):
        """Two processes, one after the other, in one."""

        def share(self, value: Any) -> Any:
            if not listed:
                listed.append(value())
            return listed[0]

        def wait(self) -> None:
            pass

    images, teacher = setting.images, setting.teacher

    def maker(name: str) -> Any:
        given = {"stage": "teacher_embeddings", "version": 1, "params": {"name": name}, "inputs": {"images": images}}
        return targets._Maker(images, "train", teacher, Commit(setting.store, **given), flips=False)

    for rank in (1, 0):
        maker("both").run(Stop(), Two(rank, 2))
    assert sorted(maker("both")._done()) == [0, 1]
    listed.clear()
    with pytest.raises(PermanentError, match=r"no embeddings of image shards \[1\]"):
        maker("one of them").run(Stop(), Two(0, 2))


def test_a_stop_keeps_the_shards_that_are_done(
    setting: Setting, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = targets.embed

    def stopped(clip: Any, images: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return counted(clip, images)

    monkeypatch.setattr(targets, "embed", stopped)
    with pytest.raises(Interrupted, match="run the same command again"), stop_on_sigterm() as stop:
        setting.made(flips=False, stop=stop)
    monkeypatch.setattr(targets, "embed", counted)
    setting.made(flips=False)
    assert asked == [25, 25]
