"""The metric of a teacher's image embedding on patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from components.openclip import import_open_clip
from components.patch_metric import patch_metric

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
STD = (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
    return import_open_clip().CLIP(embed_dim=8, vision_cfg=vision, text_cfg=TEXT).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_foretells_how_far_a_change_of_a_patch_moves_the_embedding(clip: Any, images: torch.Tensor) -> None:
    """|rows d|^2 is in proportion to the mean squared move, for changes of pixels in [0, 1] seen most and least."""
    rows = patch_metric(clip, images, STD, num_rows=48)
    assert np.square(rows).sum() == pytest.approx(48, rel=1e-5)
    assert (np.diff(np.square(rows).sum(1)) <= 1e-5).all()
    largest, middle = (rows[k] / np.linalg.norm(rows[k]) for k in (0, 6))
    moves, told = [], []
    for change in (largest, middle):
        moved = 0.0
        pixels = torch.from_numpy(change.reshape(4, 4, 3)).permute(2, 0, 1) / torch.tensor(STD).view(3, 1, 1) * 1e-3
        for top in range(0, 16, 4):
            for left in range(0, 16, 4):
                other = images.clone()
                other[:, :, top : top + 4, left : left + 4] += pixels
                with torch.no_grad():
                    one, two = (F.normalize(clip.encode_image(x).double(), dim=-1) for x in (images, other))
                moved += float((one - two).square().sum())
        moves.append(moved)
        told.append(float(np.square(rows @ change).sum()))
    assert told[0] > 2 * told[1]
    assert moves[0] / moves[1] == pytest.approx(told[0] / told[1], rel=0.1)


def test_fewer_rows_are_the_largest_and_the_model_stays(clip: Any, images: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    some, all_rows = (patch_metric(clip, images[:16], STD, num_rows=n, seed=3) for n in (5, 48))
    np.testing.assert_array_equal(some, all_rows[:5])
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize("num_rows", [0, 49])
def test_numbers_of_rows_that_there_are_not(clip: Any, images: torch.Tensor, num_rows: int) -> None:
    with pytest.raises(ValueError, match=r"num_rows in 1\.\.48"):
        patch_metric(clip, images, STD, num_rows=num_rows)
