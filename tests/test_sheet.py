"""The contact sheet: what is drawn where, the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from components.zero_shot_eval import sheet


def picture(size: int = 32, count: int = 5, **changes: object) -> sheet.SheetPicture:
    rng = np.random.default_rng(size + count)
    values: dict[str, object] = {
        "photo": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "render": np.full((size, size, 3), (10, 200, 30), np.uint8),
        "means": rng.uniform(0, size, (count, 2)).astype(np.float32),
        "cholesky": rng.uniform(1, size / 4, (count, 3)).astype(np.float32),
        "colors": rng.normal(0.3, 0.4, (count, 3)).astype(np.float32),
        "psnr_db": 25.3,
        "num_bytes": 1048,
        "photo_bytes": 992,
        "photo_format": "jpg",
        "truth": "cat",
        "guess": "dog",
        "right": False,
    }
    return sheet.SheetPicture(**(values | changes))  # type: ignore[arg-type]


def draw(pictures: list[sheet.SheetPicture]) -> Image.Image:
    return sheet.draw_sheet(pictures, title="cifar10", subtitle="64 Gaussians", footer="note")


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return {color for _, color in image.getcolors(image.width * image.height)}  # type: ignore[union-attr, misc]


def test_choose_spreads_from_worst_to_best() -> None:
    psnr = np.random.default_rng(0).permutation(101) + 10.0
    chosen = [psnr[i] for i in sheet.choose(psnr, 5)]
    assert chosen == [10, 35, 60, 85, 110]
    assert sheet.choose([30.0, 20.0], 12) == [1, 0]
    assert sheet.choose([30.0, 20.0, 25.0], 1) == [2]
    assert len(set(sheet.choose(np.zeros(50), 12))) == 12


@pytest.mark.parametrize(
    ("size", "panel"), [(16, 208), (32, 192), (48, 192), (64, 192), (100, 200), (224, 224), (512, 208)]
)
def test_panels_are_whole_multiples_or_reduced(size: int, panel: int) -> None:
    assert sheet.panel_size(size, size) == (panel, panel)


def test_sheet_is_the_same_every_time_and_sized_for_a_screen() -> None:
    pictures = [picture(32, count) for count in range(1, 13)]
    first, second = draw(pictures), draw(pictures)
    data = sheet.to_png(first)
    assert data == sheet.to_png(second)
    assert first.size == (1292, 96 + 26 + 6 * (192 + 70) + 46)
    assert Image.open(io.BytesIO(data)).size == first.size
    assert draw([picture(64) for _ in range(3)]).size[0] == 1292
    assert draw([picture(224) for _ in range(2)]).size[0] == 1484


def test_photo_and_render_lie_side_by_side_on_the_same_grid() -> None:
    one = picture(32)
    page = np.asarray(draw([one]))
    left, top = sheet.MARGIN, sheet.HEADER + sheet.HEADINGS
    assert (page[top : top + 192 : 6, left : left + 192 : 6] == one.photo).all()
    right = left + 192 + sheet.GAP
    assert (page[top : top + 192, right : right + 192] == (10, 200, 30)).all()


def test_outlines_lie_where_the_gaussian_is() -> None:
    one = picture(
        32,
        1,
        means=np.array([[10.0, 20.0]]),
        cholesky=np.array([[4.0, 0.0, 2.0]]),
        colors=np.array([[1.0, 0.0, 0.0]]),
    )
    shown = np.asarray(sheet.outlines(one, (320, 320))).astype(int)
    red = np.argwhere(shown[:, :, 0] - shown[:, :, 2] > 60)
    # the centre of pixel 10 is 10.5 pixels from the edge; one sigma is 4 pixels across and 2 down; 10 panel pixels each
    assert red.min(0).tolist() == pytest.approx([185, 65], abs=2)
    assert red.max(0).tolist() == pytest.approx([225, 145], abs=2)


def test_a_right_and_a_wrong_answer_differ_in_colour() -> None:
    assert sheet.BAD in colours(draw([picture()]))
    right = colours(draw([picture(guess="cat", right=True)]))
    assert sheet.GOOD in right
    assert sheet.BAD not in right
    captioned = colours(draw([picture(truth="A dog runs. " * 30, guess="", right=None)]))
    assert not {sheet.GOOD, sheet.BAD} & captioned


def test_odd_pictures_are_drawn() -> None:
    none = np.zeros((0, 2), np.float32), np.zeros((0, 3), np.float32)
    sheet_of = draw([picture(64, means=none[0], cholesky=none[1], colors=none[1], truth="x\n" * 900, guess="y" * 400)])
    assert sheet_of.size[0] == 2 * sheet.MARGIN + 3 * 192 + 2 * sheet.GAP
    negative = picture(16, 2, colors=np.full((2, 3), -0.5, np.float32))
    assert draw([negative]).size[1] > 208
    with pytest.raises(ValueError, match="at least one picture"):
        draw([])
