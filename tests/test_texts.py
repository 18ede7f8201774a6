"""Texts drawn for batches, the loss with several positives, the prompt classifier."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components import texts as texts_module
from components.contrastive import clip_loss, num_correct, prompt_classifier
from components.errors import PermanentError
from components.openclip import build, model_config, tokenizer
from components.texts import TextBank

MODEL = "components/train_teacher/models/vit_32.json"
NAMES = ["cat", "dog"]
TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}.", "a small {c}."]
TOKENIZER = tokenizer(model_config(MODEL))


@dataclass
class Drawn:
    keys: list[str]
    captions: list[list[str]]
    classes: Tensor


def labelled(numbers: list[int], captions: list[list[str]] | None = None) -> Drawn:
    return Drawn([f"k{i}" for i in range(len(numbers))], captions or [[] for _ in numbers], torch.tensor(numbers))


def test_class_prompts_are_positive_for_their_whole_class() -> None:
    batch = labelled([0, 1] * 20)
    drawn = TextBank(TOKENIZER, NAMES, TEMPLATES, seed=1).draw(batch, epoch=0)
    assert len(drawn.texts) == len(set(drawn.texts)) == 6, "40 pictures, each distinct prompt once"
    assert drawn.tokens.shape == (6, 16)
    assert torch.equal(drawn.tokens, TOKENIZER(drawn.texts))
    for row, number in enumerate(batch.classes.tolist()):
        assert NAMES[number] in drawn.texts[int(drawn.index[row])]
        assert [NAMES[number] in text for text in drawn.texts] == drawn.positives[row].tolist()


def test_draws_depend_on_seed_epoch_and_key_alone() -> None:
    batch = labelled([0, 1] * 20)
    first = TextBank(TOKENIZER, NAMES, TEMPLATES, seed=1)
    first.draw(batch, epoch=5)
    again = TextBank(TOKENIZER, NAMES, TEMPLATES, seed=1).draw(batch, epoch=0)
    assert torch.equal(first.draw(batch, epoch=0).index, again.index)
    assert not torch.equal(first.draw(batch, epoch=1).index, again.index)
    assert not torch.equal(TextBank(TOKENIZER, NAMES, TEMPLATES, seed=2).draw(batch, epoch=0).index, again.index)
    alone = Drawn([batch.keys[7]], [[]], batch.classes[7:8])
    text = TextBank(TOKENIZER, NAMES, TEMPLATES, seed=1).draw(alone, epoch=0).texts
    assert text == [again.texts[int(again.index[7])]]


def test_captions_are_positive_for_those_who_drew_them() -> None:
    captions = [["a red car", "a car"], ["a red car"], ["a tree", ""]]
    batch = labelled([-1, -1, -1], captions)
    bank = TextBank(TOKENIZER)
    seen = set()
    for epoch in range(20):
        drawn = bank.draw(batch, epoch=epoch)
        seen.update(drawn.texts)
        expected = drawn.index[:, None] == torch.arange(len(drawn.texts))
        assert torch.equal(drawn.positives, expected)
        assert drawn.positives.any(dim=0).all()
    assert seen == {"a red car", "a car", "a tree"}


def test_a_caption_that_is_a_class_prompt_is_positive_for_the_class() -> None:
    """Whatever drew it: as a negative of its class's other pictures, which drew other prompts, it would mislead."""
    numbers = [-1, *[1] * 20, 0]
    drawn = TextBank(TOKENIZER, NAMES, TEMPLATES, seed=1).draw(
        labelled(numbers, [["a small dog."], *[[] for _ in numbers[1:]]]), epoch=0
    )
    place = drawn.texts.index("a small dog.")
    own = (drawn.index == place).tolist()
    assert own[0]
    assert any(own[1:21]), "a prompt drew it too"
    assert not all(own[1:21])
    assert drawn.positives[:, place].tolist() == [number != 0 for number in numbers]


def test_captions_and_class_prompts_take_turns() -> None:
    batch = labelled([0] * 200, [[f"picture {i} of a cat"] for i in range(200)])
    drawn = TextBank(TOKENIZER, NAMES, TEMPLATES).draw(batch, epoch=0)
    prompts = [text for text in drawn.texts if not text.startswith("picture")]
    assert sorted(prompts) == ["a drawing of a cat.", "a photo of a cat.", "a small cat."]
    assert 60 <= len(drawn.texts) - 3 <= 140
    columns = [drawn.texts.index(text) for text in prompts]
    assert drawn.positives[:, columns].all(), "a class prompt fits every picture of the class"
    others = [column for column in range(len(drawn.texts)) if column not in columns]
    assert (drawn.positives[:, others].sum(dim=0) == 1).all(), "a caption fits its own picture"


def test_a_sample_without_text_is_named() -> None:
    with pytest.raises(PermanentError, match=r"'k1' has no caption and no class prompt"):
        TextBank(TOKENIZER).draw(labelled([-1, -1], [["x"], [""]]), epoch=0)
    with pytest.raises(PermanentError, match="its class is 2 of 2"):
        TextBank(TOKENIZER, NAMES, TEMPLATES).draw(labelled([2]), epoch=0)


def test_token_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_CACHED", 4)
    bank = TextBank(TOKENIZER)
    for start in (0, 3, 6):
        batch = labelled([-1] * 3, [[f"word {start + i}"] for i in range(3)])
        drawn = bank.draw(batch, epoch=0)
        assert torch.equal(drawn.tokens, TOKENIZER(drawn.texts))
        assert len(bank._tokens) <= 4


def test_loss_with_one_positive_each_is_open_clips() -> None:
    from components.openclip import import_open_clip

    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(2.0)
    ours = clip_loss(image, text, scale, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(ours, import_open_clip().ClipLoss()(image, text, scale.exp()))


def test_loss_with_several_positives_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    positives = torch.tensor([[True, True, False], [False, False, True]])
    logits = [[1.0, 0.6, 0.0], [0.0, 0.8, 1.0]]

    def log_softmax(values: list[float], i: int) -> float:
        return values[i] - float(torch.tensor(values).logsumexp(0))

    columns = [[logits[0][j], logits[1][j]] for j in range(3)]
    by_image = -(0.5 * (log_softmax(logits[0], 0) + log_softmax(logits[0], 1)) + log_softmax(logits[1], 2)) / 2
    by_text = -(log_softmax(columns[0], 0) + log_softmax(columns[1], 0) + log_softmax(columns[2], 1)) / 3
    loss = clip_loss(image, text, torch.tensor(0.0), positives)
    assert float(loss.detach()) == pytest.approx((by_image + by_text) / 2, abs=1e-6)
    torch.autograd.backward(loss)
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_prompt_classifier_is_the_normalised_mean_of_normalised_prompts() -> None:
    clip = build(MODEL)
    classifier = prompt_classifier(clip, TOKENIZER, NAMES, TEMPLATES, batch_size=4)
    assert classifier.shape == (64, 2)
    with torch.no_grad():
        for number, name in enumerate(NAMES):
            features = clip.encode_text(TOKENIZER([t.replace("{c}", name) for t in TEMPLATES]))
            expected = F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1)
            torch.testing.assert_close(classifier[:, number], expected)
    features = classifier.T + 0.01 * torch.randn(2, 64)
    assert num_correct(features, classifier, torch.tensor([0, 1])) == 2
    assert num_correct(features, classifier, torch.tensor([0, 0])) == 1
