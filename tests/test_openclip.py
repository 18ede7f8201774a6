"""Building, importing, saving and loading open_clip models; the torchvision mend."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components import openclip
from components.device import mixed_precision, pick_device, precision
from components.errors import PermanentError, TransientError, UsageError
from components.manifest import Artifact, Commit, canonical
from components.store import open_store

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


class Importing(str):
    """A module's name; while it is looked at, another thread imports something."""

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        sys.modules["meanwhile"] = sys
        return super().partition(sep)


def test_mend_is_applied_only_after_the_known_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = types.ModuleType("torchvision")
    defined: list[str] = []
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(importlib, "import_module", lambda name: fine)
    assert openclip._import_torchvision() is fine
    assert defined == [], "a torchvision that imports by itself was meddled with"

    failures = [RuntimeError("operator torchvision::nms does not exist")]

    def fails_once(name: str) -> types.ModuleType:
        if failures:
            sys.modules["torchvision.half"] = sys.modules[Importing("other")] = fine
            raise failures.pop()
        assert not [name for name in sys.modules if name.startswith("torchvision")]
        return fine

    monkeypatch.setattr(importlib, "import_module", fails_once)
    assert openclip._import_torchvision() is fine
    assert defined == ["torchvision::nms", "torchvision::qnms"]

    failures.append(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        openclip._import_torchvision()


def test_open_clip_imports_here() -> None:
    package = openclip.import_open_clip()  # a warning on the way would be an error
    assert package is openclip.import_open_clip()
    assert sys.modules["torchvision"].__name__ == "torchvision"


def test_build_by_name_and_by_file(tiny: str) -> None:
    clip = openclip.build(tiny)
    assert openclip.image_side(clip) == 16
    assert openclip.built_config(clip) == TINY
    assert not clip.training
    shared = openclip.model_config("components/train_teacher/models/vit_32.json")
    assert shared["vision_cfg"]["image_size"] == 32
    assert openclip.model_config("ViT-M-16")["vision_cfg"]["width"] == 512


@pytest.mark.parametrize("name", ["vit_32", "vit_64", "vit_224"])
def test_project_configs_build_and_have_eight_blocks(name: str) -> None:
    clip = openclip.build(f"components/train_teacher/models/{name}.json")
    assert len(clip.visual.transformer.resblocks) >= 8
    assert openclip.image_side(clip) == int(name.removeprefix("vit_"))


def test_fresh_weights_come_from_the_global_seed(tiny: str) -> None:
    torch.manual_seed(3)
    first = openclip.build(tiny).state_dict()
    torch.manual_seed(3)
    second = openclip.build(tiny).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-23", "did you mean ViT-B-32"),
        ("nowhere.json", "no file 'nowhere.json'"),
        ("RN50", "a ResNet"),
        ("ViT-B-16-SigLIP", "timm_model_name"),
        ("coca_ViT-B-32", "multimodal_cfg"),
    ],
)
def test_models_that_cannot_be_teachers(model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        openclip.build(model)


def test_a_config_that_open_clip_refuses(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**TINY, "vision_cfg": {**TINY["vision_cfg"], "layerz": 3}}))  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="layerz"):
        openclip.build(str(path))
    path.write_text("{}")
    with pytest.raises(UsageError, match="needs embed_dim"):
        openclip.build(str(path))
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot read"):
        openclip.build(str(path))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "state_dict.pt"])
def test_pretrained_from_a_local_checkpoint(tmp_path: Path, tiny: str, kind: str) -> None:
    source = openclip.build(tiny)
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:  # as open_clip's own training writes them
        state = {f"module.{name}": value for name, value in source.state_dict().items()}
        whole = {"state_dict": state, "epoch": 3} if kind.startswith("state") else source.state_dict()
        torch.save(whole, path)  # noqa: TID251  users bring such files; they are read with weights_only
    loaded = openclip.build(tiny, str(path))
    tokens = openclip.tokenizer(TINY)(["a cat"])
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(source.encode_image(pixels), loaded.encode_image(pixels))
        assert torch.equal(source.encode_text(tokens), loaded.encode_text(tokens))


def test_pretrained_that_does_not_fit_or_is_damaged(tmp_path: Path, tiny: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"logit_scale": torch.ones(())}, path)
    with pytest.raises(PermanentError, match="not a checkpoint of"):
        openclip.build(tiny, str(path))
    path.write_bytes(b"junk")
    with pytest.raises(PermanentError, match="not a checkpoint of"):
        openclip.build(tiny, str(path))
    with pytest.raises(PermanentError, match="there is no file"):
        openclip.build(tiny, str(tmp_path / "none.pt"))


def test_unknown_tag_names_the_known_ones() -> None:
    with pytest.raises(PermanentError, match=r"'laion3b' is no tag of ViT-B-32.*laion2b"):
        openclip.build("ViT-B-32", "laion3b")
    with pytest.raises(PermanentError, match="it has none"):
        openclip.build("ViT-M-16", "openai")


@pytest.mark.parametrize("error", [FileNotFoundError("no route to host"), RuntimeError("connection reset")])
def test_unreachable_hub_is_transient(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(settings: object) -> str:
        raise error

    monkeypatch.setattr(openclip.import_open_clip(), "download_pretrained", refuse)
    with pytest.raises(TransientError, match=r"(no route to host|connection reset).*train_teacher\.pretrained"):
        openclip.build("ViT-B-32", "laion2b_s34b_b79k")


def test_a_tags_activation_and_statistics_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_clip = openclip.import_open_clip()
    config = {**TINY, "quick_gelu": True}
    clip = openclip._instantiate(config)
    save_file(clip.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(openclip, "model_config", lambda model: dict(TINY))
    settings = {"file": str(tmp_path / "w.safetensors"), "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: settings)
    loaded = openclip.build("tiny", "tag")
    assert openclip.built_config(loaded)["quick_gelu"] is True
    assert openclip.preprocess_stats(loaded) == ((0.5,) * 3, (0.25,) * 3)
    assert type(loaded.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_tokenizer_has_the_models_context_length() -> None:
    tokens = openclip.tokenizer(TINY)(["a photo of a cat.", "word " * 40])
    assert tokens.shape == (2, 12)
    assert tokens.dtype == torch.int64
    assert tokens[1, -1] == 49407, "a long text still ends with the end token"


def test_normalize_images_is_what_torchvision_does() -> None:
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = (images.permute(0, 3, 1, 2) / 255.0 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(openclip.normalize_images(images, mean, std), expected)


def _commit(tmp_path: Path, config: dict[str, object], weights: Path) -> Artifact:
    commit = Commit(open_store(str(tmp_path / "store")), stage="train_teacher", version=1, params={}, inputs={})
    files = [
        commit.put_file(openclip.MODEL_FILE, weights),
        commit.put_file(openclip.CONFIG_FILE, canonical(config)),
    ]
    return commit.finalise(shards=[], files=files, metrics={})


def test_save_and_load_teacher(tmp_path: Path, tiny: str) -> None:
    clip = openclip.build(tiny)
    openclip.save_model(clip.state_dict(), tmp_path / "a.safetensors")
    openclip.save_model(dict(reversed(list(clip.state_dict().items()))), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert set(load_file(tmp_path / "a.safetensors")) == set(clip.state_dict())
    about = {"model": "tiny", "pretrained": "", "trained_here": True, "class_names": ["cat", "dog"]}
    stats = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    teacher = openclip.load_teacher(_commit(tmp_path, {**TINY, **about, **stats}, tmp_path / "a.safetensors"))
    assert (teacher.image_size, teacher.trained_here, teacher.class_names_trained) == (16, True, ["cat", "dog"])
    assert teacher.std == (0.25, 0.25, 0.25)
    assert teacher.tokenizer(["x"]).shape == (1, 12)
    state = teacher.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in clip.state_dict().items())


def test_a_damaged_teacher_is_named(tmp_path: Path, tiny: str) -> None:
    openclip.save_model({"logit_scale": torch.ones(())}, tmp_path / "a.safetensors")
    about = {
        "model": "tiny",
        "pretrained": "",
        "trained_here": True,
        "class_names": [],
        "mean": [0] * 3,
        "std": [1] * 3,
    }
    with pytest.raises(PermanentError, match=r"model\.safetensors: does not fit"):
        openclip.load_teacher(_commit(tmp_path, {**TINY, **about}, tmp_path / "a.safetensors"))
    with pytest.raises(PermanentError, match="not a teacher's configuration"):
        openclip.load_teacher(_commit(tmp_path / "other", {**TINY}, tmp_path / "a.safetensors"))


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="choose one of: auto, cpu, cuda"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="choose device cpu or auto"):
            pick_device("cuda")
    before = torch.get_num_threads()
    try:
        pick_device("cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_mixed_precision_stays_close_to_float32(tiny: str) -> None:
    device = torch.device("cpu")
    clip = openclip.build(tiny)
    pixels = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        exact = clip.encode_image(pixels, normalize=True)
        with mixed_precision(device):
            fast = clip.encode_image(pixels, normalize=True)
    assert (fast.dtype == torch.bfloat16) == (precision(device) == "bf16")
    torch.testing.assert_close(fast.float(), exact, atol=0.03, rtol=0)
