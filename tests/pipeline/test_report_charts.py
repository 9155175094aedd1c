import base64
import io
from itertools import pairwise

import pytest
from PIL import Image

from pipeline.report_charts import NARROW_PX, WIDE_PX, Pen, columns, draw_chart, groups, legible, rank_chart


def test_a_chart_is_drawn_for_phones_for_wider_pages_and_as_png() -> None:
    chart = rank_chart("colours", "White leads", [("white", 3, "75 %"), ("red", 1, "25 %")], unit="photos", alt="Bars")
    assert chart.wide is not None
    assert (chart.narrow.width_px, chart.wide.width_px) == (NARROW_PX, WIDE_PX)
    for drawing in (chart.narrow, chart.wide):
        svg = base64.b64decode(drawing.uri.partition(",")[2]).decode()
        assert f'width="{drawing.width_px * 0.75:g}pt"' in svg
        assert "<text" not in svg, "letters are paths, so that no page needs the font"
    with Image.open(io.BytesIO(chart.png)) as picture:
        assert picture.width == 2 * WIDE_PX


def test_the_same_chart_is_the_same_bytes() -> None:
    first, second = (draw_chart("x", "x", lambda pen: columns(pen, ["a"], [1]), alt="x") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("label", ["$5k and $x^2$", "\u0416\u4e2d\U0001f697", "a\nb\x00c", "w" * 80, ""])
def test_any_label_can_be_drawn(label: str) -> None:
    chart = rank_chart("x", label, [(label, 1, label[:5]), ("b", 0, "")], unit="photos", alt="x", small=True)
    assert chart.wide is None
    assert chart.png.startswith(b"\x89PNG")


def test_a_label_is_cut_and_what_the_font_lacks_is_shown_as_such() -> None:
    assert legible("Volvo") == "Volvo"
    assert legible("\U0001f697 V70") == "? V70"
    assert len(legible("w" * 80)) == 26


@pytest.mark.parametrize("num_labels", [1, 2, 11, 25, 41])
@pytest.mark.parametrize("small", [True, False])
def test_labels_of_columns_never_touch(num_labels: int, small: bool) -> None:
    labels = [f"${index * 5}k" for index in range(num_labels)]
    checked = []

    def draw(pen: Pen) -> None:
        columns(pen, labels, [1.0] * num_labels)
        figure = pen.axes.figure
        figure.draw_without_rendering()  # type: ignore[union-attr]  # a figure it is, not a part of one
        boxes = [label.get_window_extent() for label in pen.axes.get_xticklabels() if label.get_text()]
        checked.append(all(left.x1 < right.x0 for left, right in pairwise(boxes)))

    draw_chart("x", "x", draw, alt="x", small=small)
    assert checked == [True] * (2 if small else 3)


def test_bars_of_several_series_stand_side_by_side() -> None:
    spans: list[tuple[float, float]] = []

    def draw(pen: Pen) -> None:
        groups(pen, ["a", "b"], {"train": [1, 2], "val": [2, 1], "test": [1, 1]})
        spans[:] = sorted((bar.get_window_extent().x0, bar.get_window_extent().x1) for bar in pen.axes.patches)

    draw_chart("x", "x", draw, alt="x")
    assert len(spans) == 6
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
