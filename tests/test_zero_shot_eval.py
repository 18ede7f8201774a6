"""The evaluation stage on a small world made here: what is scored, what is said about it, what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import (
    CLASSES,
    PARAMS,
    SIZE,
    TEMPLATES,
    World,
    by_name,
    content,
    gaussians,
    make_world,
    png,
    put_adapter,
    put_images,
    put_splats,
    put_teacher,
    scores_of,
)

from components.adapter import (
    encode_patches,
    load_adapter,
)
from components.config import ZeroShotEvalParams
from components.errors import PermanentError, UsageError
from components.images import fit_square
from components.loader import SplatBatch
from components.manifest import Artifact
from components.openclip import load_teacher, normalize_images
from components.splats import Splats, pad
from components.zero_shot_eval import predictions, report, sheet, stage, wording
from components.zero_shot_eval.embed import Reader, check_finite, drawn, text_features


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("captions"), captions=True)


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

    def renders(keys: list[str]) -> torch.Tensor:
        files = (Splats.unpack(gaussians(names.index(key)).pack()[0]) for key in keys)
        pixels = np.stack([np.round(file.render().clip(0, 1) * 255) for file in files]).astype(np.uint8)
        return loaded.model.encode_image(normalize_images(torch.from_numpy(pixels), loaded.mean, loaded.std))

    found = by_name(scores_of(scored))
    assert list(found) == ["teacher", "control", "rendered", "splats"]
    assert found["rendered"]["metrics"]["acc1"] == pytest.approx(independent_accuracy(world, renders), abs=1e-6)
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
    with Image.open(io.BytesIO(content(scored, "contact_sheet.png"))) as drawn:
        assert drawn.size[0] == 1292
    metrics = scored.manifest.metrics
    assert metrics["acc1_splats"] == found["acc1"]
    assert metrics["num_pictures"] == 38
    assert all(isinstance(value, (int, float)) for value in metrics.values())


def test_predictions_hold_what_every_row_answered(world: World, scored: Artifact) -> None:
    data = content(scored, "predictions.csv")
    lines = list(csv.DictReader(io.StringIO(data.decode())))
    assert [line["key"] for line in lines] == [key for key in world.pictures if key not in {"p05", "p06"}]
    assert [int(line["class"]) for line in lines] == [world.classes[line["key"]] for line in lines]
    for row in scores_of(scored)["rows"]:
        right = np.mean([line["class"] == line[f"class_{row['name']}"] for line in lines])
        assert right == pytest.approx(row["metrics"]["acc1"], abs=1e-6)
    first = lines[0]
    sizes = len(gaussians(0).pack()[0]), len(png(world.pictures["p00"]))
    assert (int(first["gs2d_bytes"]), int(first["stored_bytes"])) == sizes
    assert (float(first["psnr_db"]), int(first["num_gaussians"])) == (20.0, 9)
    read = predictions.read_predictions(data, "here")
    found = by_name(scores_of(scored))["splats"]["metrics"]
    assert read.hits["acc1"]["splats"].mean() == pytest.approx(found["acc1"], abs=1e-6)
    for damaged in (data[:40], b"", b"\xff", data.replace(b"p00,0", b"p00,x")):
        with pytest.raises(PermanentError, match=r"here: not a valid predictions.csv .* run zero-shot-eval again"):
            predictions.read_predictions(damaged, "here")


def test_predictions_of_captions_hold_the_ranks(captioned: World) -> None:
    done = captioned.run()
    data = content(done, "predictions.csv")
    lines = list(csv.DictReader(io.StringIO(data.decode())))
    assert lines[0]["caption"] == "a red ball, number p00"
    scores = scores_of(done)
    assert sum(int(line["captions"]) for line in lines) == scores["num_captions"]
    read = predictions.read_predictions(data, "here")
    for row in scores["rows"]:
        name = row["name"]
        assert all(len(line[f"picture_ranks_{name}"].split()) == int(line["captions"]) for line in lines)
        ranks = [int(rank) for line in lines for rank in line[f"picture_ranks_{name}"].split()]
        assert np.mean(np.array(ranks) <= 5) == pytest.approx(row["metrics"]["image_retrieval_recall@5"], abs=1e-6)
        for metric, value in row["metrics"].items():
            weights = read.weights.get(metric, np.ones(len(lines)))
            assert read.hits[metric][name].sum() / weights.sum() == pytest.approx(value, abs=1e-6)


def test_a_picture_without_gaussians_is_scored_and_drawn(world: World, tmp_path: Path) -> None:
    splats = put_splats(world.store, tmp_path, world.images, list(world.pictures), pruned="p00")
    done = world.run(splats=splats)
    scores = scores_of(done)
    assert scores["num_pictures"] == 38
    assert scores["splats"]["num_gaussians_mean"] == pytest.approx(9 * 37 / 38, abs=1e-3)
    page = np.asarray(Image.open(io.BytesIO(content(done, "contact_sheet.png"))))
    left, top = sheet.MARGIN, sheet.HEADER + sheet.HEADINGS  # p00, of the worst PSNR, is the first card
    assert (page[top : top + 192 : 6, left : left + 192 : 6] == world.pictures["p00"]).all()
    render, ellipses = (page[top : top + 192, x : x + 192] for x in (left + 198, left + 396))
    assert not render.any()
    assert (ellipses == sheet.NIGHT).all()


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
    assert (
        content(done, "per_class.csv").decode()
        == "class,pictures,recall,recall_teacher,recall_control,recall_rendered\n"
    )
    report.show(scores, "sheet.png")
    assert "caption to picture" in capsys.readouterr().out


def test_without_a_control_the_table_says_so(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, control=False)
    scores = scores_of(world.run(adapter=adapter))
    assert list(by_name(scores)) == ["teacher", "rendered", "splats"]
    report.show(scores, None)
    shown = capsys.readouterr().out
    assert "untouched teacher" in shown
    assert "ratios to the untouched teacher flatter" in " ".join(shown.split())


def test_one_learning_rate_was_not_chosen(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "one learning rate was tried on each side; none was chosen on validation"
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, rates=(1e-3,))
    report.show(scores_of(world.run(adapter=adapter)), None)
    shown = capsys.readouterr().out
    assert said in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert said not in scores_of(world.run())["notes"]


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


def test_a_model_that_returns_nan_is_named(world: World, tmp_path: Path) -> None:
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, diverged=True)
    with pytest.raises(PermanentError, match="row 'splats': its model returns values that are not finite, for 'p00'"):
        world.run(adapter=adapter)
    features = np.ones((3, 4), np.float32)
    assert check_finite(features, "teacher", ["a", "b", "c"]) is features
    features[1, 2] = -np.inf
    with pytest.raises(PermanentError, match=r"row 'teacher': .* for 'b' first"):
        check_finite(features, "teacher", ["a", "b", "c"])


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


def test_renders_are_stored_pictures_resized_as_photographs() -> None:
    """Rounded to 0..255 before they are resized; padding draws nothing, and no Gaussians are black."""
    files = [gaussians(3), gaussians(4, 0), gaussians(5, 5)]
    padded = pad(files, 9)
    arrays = (padded.means, padded.cholesky, padded.colors, padded.mask)
    batch = SplatBatch(*(torch.from_numpy(array) for array in arrays))
    for wanted in (SIZE, SIZE // 2):
        pixels = [np.rint(np.clip(file.render(), 0, 1) * 255).astype(np.uint8) for file in files]
        found = drawn(batch, SIZE, wanted, threads=1).numpy()
        assert (found == np.stack([fit_square(one, wanted) for one in pixels])).all()
    assert found[0].any()
    assert not found[1].any()


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
