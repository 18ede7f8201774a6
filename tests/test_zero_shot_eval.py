"""The evaluation stage on a small world made here: what is scored, what is said about it, what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.adapter import (
    SplatClip,
    apply_control_policy,
    apply_freeze_policy,
    describe,
    encode_patches,
    load_adapter,
    trained_state,
)
from components.config import ZeroShotEvalParams
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, canonical, open_artifact
from components.openclip import build, load_teacher, normalize_images, save_model
from components.shards import Sample, ShardIndex, write_shard
from components.splats import Splats, pad
from components.stems import StemConfig
from components.store import open_store
from components.tokens import NUM_FEATURES, FeatureStats
from components.zero_shot_eval import report, rows, stage, wording
from components.zero_shot_eval.embed import Reader, text_features

SIZE, CLASSES = 32, ("red ball", "green ball", "blue ball")
TEMPLATES = ("a photo of a {c}.", "a picture of the {c}.")
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PARAMS = ZeroShotEvalParams(num_bootstrap=200, num_sheet=4, batch_size=7, device="cpu", threads=1)


@dataclass
class World:
    """A store with the four inputs of the stage."""

    store: Path
    images: Artifact
    teacher: Artifact
    splats: Artifact
    adapter: Artifact
    pictures: dict[str, np.ndarray]
    classes: dict[str, int]

    def run(self, params: ZeroShotEvalParams = PARAMS, store: Path | None = None, **changes: Artifact) -> Artifact:
        given = {name: getattr(self, name) for name in ("images", "teacher", "splats", "adapter")} | changes
        urls = {name: artifact.url for name, artifact in given.items()}
        done = stage.run(params, **urls, store=str(store or self.store))
        return open_artifact(done.url, open_store(str(store or self.store)))


def content(artifact: Artifact, name: str) -> bytes:
    with artifact.local(name) as path:
        return path.read_bytes()


def scores_of(artifact: Artifact) -> dict:
    return json.loads(content(artifact, "scores.json"))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def gaussians(seed: int, count: int = 9) -> Splats:
    rng = np.random.default_rng(seed)
    cholesky = np.stack([rng.uniform(2, 5, count), rng.normal(0, 1, count), rng.uniform(2, 5, count)], 1)
    return Splats(rng.uniform(0, SIZE, (count, 2)), cholesky, rng.uniform(0, 0.8, (count, 3)), SIZE, SIZE)


def put_images(
    store: Path, tmp: Path, *, captions: bool, seed: int = 0, broken_class: bool = False
) -> tuple[Artifact, dict[str, np.ndarray], dict[str, int]]:
    """Two shards of test pictures; p05 has no class (or no caption), p06 will have no splats."""
    commit = Commit(
        open_store(str(store)), stage="download", version=1, params={"image_size": SIZE, "seed": seed}, inputs={}
    )
    rng = np.random.default_rng(seed)
    pictures: dict[str, np.ndarray] = {}
    classes: dict[str, int] = {}
    shards = []
    for shard in range(2):
        samples = []
        for i in range(20):
            key, number = f"p{shard * 20 + i:02d}", (shard * 20 + i) % 3
            pixels = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[8:24, 8:24, number] += 150
            fields = {"png": png(pixels), "txt": b""}
            texts = [f"a {CLASSES[number]}, number {key}", f"one {CLASSES[number]}"][: 1 + number % 2]
            if captions:
                texts = [] if key == "p05" else texts
                fields |= {"txt": " ".join(texts[:1]).encode(), "json": canonical({"key": key, "captions": texts})}
            elif key != "p05":
                number = 7 if broken_class and key == "p09" else number
                fields |= {"cls": str(number).encode()}
            samples.append(Sample(key, fields))
            pictures[key], classes[key] = pixels, number if key != "p05" else -1
        write_shard(tmp / "shard.tar", samples)
        shards.append(commit.put_shard(tmp / "shard.tar", index=shard, split="test", ok=20))
    files = []
    if not captions:
        files.append(commit.put_file("classnames.txt", "\n".join(CLASSES).encode()))
        files.append(commit.put_file("zeroshot_classification_templates.txt", "\n".join(TEMPLATES).encode()))
    metrics = {"dataset": "balls", "image_size": SIZE, "num_classes": 0 if captions else 3}
    return commit.finalise(shards=shards, files=files, metrics=metrics), pictures, classes


def put_splats(store: Path, tmp: Path, images: Artifact, keys: list[str]) -> Artifact:
    params = {"num_gaussians": 9}
    commit = Commit(open_store(str(store)), stage="splat_fit", version=1, params=params, inputs={"images": images})
    shards = []
    for shard in range(2):
        samples = []
        for place, key in enumerate(keys[shard * 20 : shard * 20 + 20]):
            if key == "p06":
                continue
            data, _ = gaussians(shard * 20 + place).pack()
            about = {"key": key, "psnr_db": 20.0 + place, "num_gaussians": 9, "num_bytes": len(data)}
            samples.append(Sample(key, {"gs2d": data, "txt": b"", "json": canonical(about)}))
        layout = write_shard(tmp / "splats.tar", samples)
        side = {".idx": ShardIndex.of(layout).to_bytes()}
        entry = commit.put_shard(tmp / "splats.tar", index=shard, split="test", ok=len(samples), side_files=side)
        shards.append(entry)
    return commit.finalise(shards=shards, files=[], metrics={})


def put_teacher(store: Path, tmp: Path, images: Artifact, *, trained_here: bool = True, seed: int = 1) -> Artifact:
    commit = Commit(
        open_store(str(store)),
        stage="train_teacher",
        version=1,
        params={"seed": seed, "here": trained_here},
        inputs={"images": images},
    )
    (tmp / "model.json").write_text(json.dumps(MODEL))
    torch.manual_seed(seed)
    save_model(build(str(tmp / "model.json")).state_dict(), tmp / "model.safetensors")
    about = {
        **MODEL,
        "model": "components/train_teacher/models/tiny.json",
        "pretrained": "" if trained_here else "laion",
        "trained_here": trained_here,
        "class_names": list(CLASSES) if trained_here else [],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    files = [
        commit.put_file("model.safetensors", tmp / "model.safetensors"),
        commit.put_file("config.json", canonical(about)),
    ]
    return commit.finalise(shards=[], files=files, metrics={})


def put_adapter(
    store: Path,
    tmp: Path,
    images: Artifact,
    teacher: Artifact,
    splats: Artifact,
    *,
    control: bool = True,
    picture: int = SIZE,
) -> Artifact:
    """An adapter with random weights, and a control whose tensors are the teacher's own."""
    inputs = {"images": images, "teacher": teacher, "splats": splats}
    params = {"control": control, "picture": picture}
    commit = Commit(open_store(str(store)), stage="train_adapter", version=1, params=params, inputs=inputs)
    loaded = load_teacher(teacher)
    zero, one = (0.0,) * NUM_FEATURES, (1.0,) * NUM_FEATURES
    config = StemConfig(
        stem="paper",
        stem_width=8,
        layers=1,
        heads=2,
        num_latents=16,
        grid=(4, 4),
        width=32,
        picture=(picture, picture),
        features=FeatureStats(zero, one),
        tokens=FeatureStats((0.0,) * 32, (1.0,) * 32),
    )
    torch.manual_seed(3)
    student = SplatClip(load_teacher(teacher).model, config)
    apply_freeze_policy(student, "paper")
    save_model(trained_state(student), tmp / "adapter.safetensors")
    files = [
        commit.put_file("adapter.safetensors", tmp / "adapter.safetensors"),
        commit.put_file("adapter.json", describe(config, "paper")),
    ]
    if control:
        apply_control_policy(loaded.model, "paper")
        save_model(trained_state(loaded.model), tmp / "control.safetensors")
        files.append(commit.put_file("control.safetensors", tmp / "control.safetensors"))
    metrics = {"trained_share": 0.097, "trained_vision_share": 0.15}
    return commit.finalise(shards=[], files=files, metrics=metrics)


def make_world(folder: Path, *, captions: bool) -> World:
    store, tmp = folder / "store", folder / "tmp"
    tmp.mkdir()
    images, pictures, classes = put_images(store, tmp, captions=captions)
    splats = put_splats(store, tmp, images, list(pictures))
    teacher = put_teacher(store, tmp, images)
    adapter = put_adapter(store, tmp, images, teacher, splats)
    return World(store, images, teacher, splats, adapter, pictures, classes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("classes"), captions=False)


@pytest.fixture(scope="module")
def scored(world: World) -> Artifact:
    return world.run()


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("captions"), captions=True)


def by_name(scores: dict) -> dict[str, dict]:
    return {row["name"]: row for row in scores["rows"]}


def independent_accuracy(world: World, encode: Callable[[list[str]], torch.Tensor]) -> float:
    """Top-1 accuracy by the shortest way: one forward pass, prompts one by one."""
    loaded = load_teacher(world.teacher)
    keys = [key for key in world.pictures if key not in {"p05", "p06"}]
    with torch.no_grad():
        columns = []
        for name in CLASSES:
            tokens = loaded.tokenizer([template.replace("{c}", name) for template in TEMPLATES])
            mean = torch.nn.functional.normalize(loaded.model.encode_text(tokens), dim=-1).mean(0)
            columns.append(mean / mean.norm())
        guesses = (encode(keys) @ torch.stack(columns, 1)).argmax(1)
    return float((guesses == torch.tensor([world.classes[key] for key in keys])).float().mean())


def test_accuracies_are_those_of_the_shortest_way(world: World, scored: Artifact) -> None:
    loaded = load_teacher(world.teacher)
    student = load_adapter(world.adapter, loaded)
    names = list(world.pictures)

    def photographs(keys: list[str]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([world.pictures[key] for key in keys]))
        return loaded.model.encode_image(normalize_images(pixels, loaded.mean, loaded.std))

    def splats(keys: list[str]) -> torch.Tensor:
        batch = pad([Splats.unpack(gaussians(names.index(key)).pack()[0]) for key in keys], 9)

        class Given:
            means, cholesky, colors = (torch.from_numpy(x) for x in (batch.means, batch.cholesky, batch.colors))
            mask = torch.from_numpy(batch.mask)

        return encode_patches(student.clip, student.patch_latents(Given()))

    found = by_name(scores_of(scored))
    assert list(found) == ["teacher", "control", "splats"]
    assert found["teacher"]["metrics"]["acc1"] == pytest.approx(independent_accuracy(world, photographs), abs=1e-6)
    assert found["splats"]["metrics"]["acc1"] == pytest.approx(independent_accuracy(world, splats), abs=1e-6)


def test_a_control_that_is_the_teacher_scores_as_the_teacher(scored: Artifact) -> None:
    found = by_name(scores_of(scored))
    assert found["control"]["metrics"] == found["teacher"]["metrics"]
    ratio = found["teacher"]["figures"]["acc1"]["ratio"]["to_control"]
    assert ratio == {"value": 1.0, "interval": [1.0, 1.0]}
    assert "to_teacher" in found["splats"]["figures"]["acc1"]["ratio"]
    assert "to_control" not in found["control"]["figures"]["acc1"]["ratio"]


def test_the_same_pictures_are_scored_and_the_others_named(scored: Artifact) -> None:
    scores = scores_of(scored)
    assert {row["n"] for row in scores["rows"]} == {38}
    assert scores["num_pictures"] == 38
    assert scores["left_out"] == {
        "counts": {"without splats": 1, "without a class": 1},
        "named": {"without splats": ["p06"], "without a class": ["p05"]},
    }


def test_sizes_are_those_of_the_scored_files(world: World, scored: Artifact) -> None:
    scores = scores_of(scored)
    keys = [key for key in world.pictures if key not in {"p05", "p06"}]
    assert scores["bytes_per_picture"]["raw"] == SIZE * SIZE * 3
    assert scores["bytes_per_picture"]["gs2d"] == len(gaussians(0).pack()[0])
    assert scores["bytes_per_picture"]["stored"] == pytest.approx(
        np.mean([len(png(world.pictures[key])) for key in keys]), abs=1e-3
    )
    assert scores["splats"]["compression"]["paper"] == pytest.approx(SIZE * SIZE * 3 / (9 * 16), abs=1e-3)
    places = [list(world.pictures).index(key) % 20 for key in keys]
    assert scores["splats"]["psnr_db_mean"] == pytest.approx(20 + np.mean(places), abs=1e-3)
    assert scores["stored_formats"] == {"png": 38}


def test_the_files_are_readable_by_others(scored: Artifact) -> None:
    scores = scores_of(scored)
    for row in scores["rows"]:
        name = f"benchmark/balls_tiny_{row['name']}.json"
        values = json.loads(content(scored, name))
        assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= values.keys()
        assert values["task"] == "zeroshot_classification"
        assert values["metrics"] == row["metrics"]
        assert set(values["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
        assert values["zero_shot"] is False
    table = list(csv.DictReader(io.StringIO(content(scored, "per_class.csv").decode())))
    assert [line["class"] for line in table] == list(CLASSES)
    found = by_name(scores)["splats"]["metrics"]
    weighed = sum(int(line["pictures"]) * float(line["recall"]) for line in table) / 38
    assert weighed == pytest.approx(found["acc1"], abs=1e-5)
    with Image.open(io.BytesIO(content(scored, "contact_sheet.png"))) as sheet:
        assert sheet.size[0] == 1292
    metrics = scored.manifest.metrics
    assert metrics["acc1_splats"] == found["acc1"]
    assert metrics["num_pictures"] == 38
    assert all(isinstance(value, (int, float)) for value in metrics.values())


def test_the_same_bytes_in_another_store_and_batch_order(world: World, scored: Artifact, tmp_path: Path) -> None:
    again = world.run(store=tmp_path / "other")
    assert again.url != scored.url
    assert again.manifest.to_bytes() == scored.manifest.to_bytes()


def test_a_second_call_finds_the_first(world: World, scored: Artifact) -> None:
    urls = {name: getattr(world, name).url for name in ("images", "teacher", "splats", "adapter")}
    done = stage.run(PARAMS, **urls, store=str(world.store))
    assert done.cached
    assert done.manifest_sha256 == scored.manifest.sha256


def test_captions_are_scored_by_retrieval(captioned: World, capsys: pytest.CaptureFixture[str]) -> None:
    done = captioned.run()
    scores = scores_of(done)
    assert scores["task"] == "retrieval"
    assert scores["num_pictures"] == 38
    assert scores["num_captions"] > 38
    assert scores["left_out"]["named"] == {"without splats": ["p06"], "without a caption": ["p05"]}
    row = by_name(scores)["splats"]
    assert row["setting"] == wording.IN_DISTRIBUTION_RETRIEVAL
    assert set(row["metrics"]) == {f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in (1, 5)}
    assert row["metrics"]["image_retrieval_recall@5"] >= row["metrics"]["image_retrieval_recall@1"]
    assert scores["chance"]["image_retrieval_recall@5"] == pytest.approx(5 / 38, abs=1e-5)
    assert json.loads(content(done, "benchmark/balls_tiny_splats.json"))["task"] == "zeroshot_retrieval"
    assert content(done, "per_class.csv").decode() == "class,pictures,recall,recall_teacher,recall_control\n"
    report.show(scores, "sheet.png")
    assert "caption to picture" in capsys.readouterr().out


def test_without_a_control_the_table_says_so(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, control=False)
    scores = scores_of(world.run(adapter=adapter))
    assert list(by_name(scores)) == ["teacher", "splats"]
    report.show(scores, None)
    shown = capsys.readouterr().out
    assert "untouched teacher" in shown
    assert "ratios to the untouched teacher flatter" in " ".join(shown.split())


def test_only_an_imported_teacher_is_zero_shot(world: World, tmp_path: Path) -> None:
    teacher = put_teacher(world.store, tmp_path, world.images, trained_here=False)
    adapter = put_adapter(world.store, tmp_path, world.images, teacher, world.splats)
    elsewhere = tmp_path / "other"  # where the image set cannot be looked up: it is told by its sum
    found = by_name(scores_of(world.run(store=elsewhere, teacher=teacher, adapter=adapter)))
    assert found["teacher"]["setting"] == "zero-shot"
    assert found["splats"]["setting"] == found["control"]["setting"] == "in-distribution, prompt classifier"


def test_an_adapter_of_other_classes_is_zero_shot_here(world: World, captioned: World, tmp_path: Path) -> None:
    """The adapter's own image set is looked up in the store: captions only, so no class of this set was trained on."""
    other, _, _ = put_images(world.store, tmp_path, captions=True, seed=8)
    teacher = put_teacher(world.store, tmp_path, other, trained_here=False, seed=2)
    adapter = put_adapter(world.store, tmp_path, other, teacher, world.splats)
    found = by_name(scores_of(world.run(teacher=teacher, adapter=adapter)))
    assert found["splats"]["setting"] == "zero-shot"


def test_what_does_not_belong_together_is_refused(world: World, tmp_path: Path) -> None:
    teacher = put_teacher(world.store, tmp_path, world.images, seed=5)
    with pytest.raises(PermanentError, match=r"adapter: .* was made from teacher") as error:
        world.run(teacher=teacher)
    assert teacher.manifest.sha256 in str(error.value)
    assert world.teacher.manifest.sha256 in str(error.value)
    images, _, _ = put_images(world.store, tmp_path, captions=False, seed=9)
    with pytest.raises(PermanentError, match=r"splats: .* was made from images") as error:
        world.run(images=images)
    assert images.manifest.sha256 in str(error.value)
    assert world.images.manifest.sha256 in str(error.value)
    with pytest.raises(UsageError, match=r"teacher: .* was made by download; give train_teacher's output"):
        world.run(teacher=world.images)


def test_splats_of_another_size_are_refused(world: World, tmp_path: Path) -> None:
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, picture=64)
    with pytest.raises(PermanentError, match="reads splats of 64 x 64 pixels, these are of 32 x 32"):
        world.run(adapter=adapter)


def test_a_missing_split_is_refused(world: World) -> None:
    with pytest.raises(PermanentError, match="no split 'val'; it has: test"):
        world.run(ZeroShotEvalParams(split="val"))


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    images, pictures, _ = put_images(tmp_path / "store", tmp_path, captions=False, broken_class=True)
    splats = put_splats(tmp_path / "store", tmp_path, images, list(pictures))
    teacher = put_teacher(tmp_path / "store", tmp_path, images)
    adapter = put_adapter(tmp_path / "store", tmp_path, images, teacher, splats)
    with pytest.raises(PermanentError, match=r"'p09' is of class 7, but classnames.txt names 3 classes"):
        World(tmp_path / "store", images, teacher, splats, adapter, {}, {}).run()


def test_text_towers_are_shared_only_where_they_are_the_same() -> None:
    def reader(name: str, text: float, image: float) -> Reader:
        clip = torch.nn.ModuleDict({"visual": torch.nn.Linear(1, 1), "text": torch.nn.Linear(1, 1)})
        for part, value in ((clip["visual"], image), (clip["text"], text)):
            torch.nn.init.constant_(part.weight, value)
            torch.nn.init.constant_(part.bias, 0.0)
        return Reader(name, clip, clip, lambda batch: batch.classes)

    asked: list[str] = []

    def encode(reader: Reader) -> np.ndarray:
        asked.append(reader.name)
        return reader.clip["text"].weight.detach().numpy()

    readers = [reader("teacher", 1.0, 1.0), reader("control", 1.0, 2.0), reader("splats", 3.0, 1.0)]
    found = text_features(readers, encode)
    assert asked == ["teacher", "splats"]
    assert {name: float(value[0, 0]) for name, value in found.items()} == {"teacher": 1, "control": 1, "splats": 3}


def test_wording() -> None:
    names = ["airplane", "fire_truck"]
    assert wording.classification_setting(names, []) == "zero-shot"
    assert wording.classification_setting(names, ["cat"]) == "zero-shot"
    assert wording.classification_setting(names, ["Airplane", "fire truck"]) == "in-distribution, prompt classifier"
    assert wording.classification_setting(names, ["airplane"]).endswith("(1 of 2 classes trained on)")
    assert not wording.is_zero_shot(wording.classification_setting(names, None))
    assert not wording.is_zero_shot(wording.retrieval_setting(True, False))
    assert wording.is_zero_shot(wording.retrieval_setting(False, True))


def example(accuracies: dict[str, float], n: int = 2000) -> dict:
    """A scores.json of CIFAR-10's shape with these accuracies."""
    rng = np.random.default_rng(0)
    targets, found = np.arange(n) % 10, []
    for name, accuracy in accuracies.items():
        logits = rng.random((n, 10))
        logits[np.arange(n), targets] = np.where(rng.random(n) < accuracy, 2.0, -1.0)
        found.append(rows.classification_row(name, wording.IN_DISTRIBUTION, logits, targets))
    chance = rows.classification_chance(10)
    return {
        "format": 1,
        "dataset": "cifar10",
        "split": "test",
        "task": "classification",
        "num_pictures": n,
        "num_classes": 10,
        "chance": chance,
        "headline": ["acc1"],
        "rows": rows.compare(found, chance, {}, 500, 0),
        "splats": {
            "psnr_db_mean": 25.51,
            "num_gaussians_mean": 61.2,
            "num_gaussians_budget": 64,
            "compression": {"paper": 3.0, "raw": 2.93, "jpeg90": 0.96, "stored": 0.95},
        },
        "bytes_per_picture": {"gs2d": 1048, "stored": 992.1, "jpeg90": 1003.7, "raw": 3072},
        "stored_formats": {"jpg": n},
        "trained": {"trained_share": 0.097, "trained_vision_share": 0.131},
        "left_out": {"counts": {"without splats": 3}},
        "intervals": {"note": "95 %, 500 paired resamplings of the pictures; other training runs are not covered"},
        "notes": [],
    }


def test_the_table_is_plain_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example({"teacher": 0.594, "control": 0.636, "control_stage1": 0.64, "splats": 0.526})
    report.show(scores, "runs/cifar10/contact_sheet.png")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    splats = next(row for row in scores["rows"] if row["name"] == "splats")["figures"]["acc1"]
    fair = splats["chance_corrected_ratio"]["to_control"]
    line = next(line for line in shown.splitlines() if "splats, 64 Gaussians" in line)
    assert f"{100 * splats['value']:.1f} [" in line
    assert f"{splats['ratio']['to_control']['value']:.3f} [" in line
    assert f"{fair['value']:.3f} [{fair['interval'][0]:.3f}, {fair['interval'][1]:.3f}]" in line
    for text in ("25.51 dB", "61.2 of 64", ".gs2d 1,048", "1.04x LARGER than JPEG", "9.7 %", "3 without splats"):
        assert text in shown
    assert shown.rstrip().endswith("runs/cifar10/contact_sheet.png")
    assert "in-distribution, prompt classifier" in shown


def test_ratios_are_worked_out_from_the_values() -> None:
    scores = example({"teacher": 0.9, "control": 0.6, "splats": 0.3})
    found = by_name(scores)
    acc = {name: row["metrics"]["acc1"] for name, row in found.items()}
    figure = found["splats"]["figures"]["acc1"]
    assert figure["ratio"]["to_control"]["value"] == pytest.approx(acc["splats"] / acc["control"], abs=1e-6)
    fair = (acc["splats"] - 0.1) / (acc["control"] - 0.1)
    assert figure["chance_corrected_ratio"]["to_control"]["value"] == pytest.approx(fair, abs=1e-6)
    assert figure["ratio"]["to_teacher"]["value"] == pytest.approx(acc["splats"] / acc["teacher"], abs=1e-6)
    low, high = figure["interval"]
    half = 1.96 * (acc["splats"] * (1 - acc["splats"]) / 2000) ** 0.5
    assert (low, high) == pytest.approx((acc["splats"] - half, acc["splats"] + half), abs=0.004)


def test_a_control_at_chance_gives_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example({"teacher": 0.5, "control": 0.1, "splats": 0.3}, n=300)
    assert by_name(scores)["splats"]["figures"]["acc1"]["chance_corrected_ratio"]["to_control"] is None
    report.show(scores, None)
    assert "undefined: the control cannot be told from guessing" in " ".join(capsys.readouterr().out.split())


def test_scores_of_another_format_are_refused() -> None:
    with pytest.raises(UsageError, match="format None"):
        report.show({}, None)
