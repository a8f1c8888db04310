"""Pictures: what they show, and that they leave pyplot alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pyro_flows.diagnostics import plot_losses, plot_pairs, plot_weights


def pair(shift: float = 0.0, size: int = 500):
    return torch.randn(size) + shift, torch.randn(size)


def texts(axis) -> list[str]:
    return [axis.get_title(loc="left"), *(text.get_text() for text in axis.texts)]


def test_every_set_gets_a_panel_on_the_same_axes():
    figure = plot_pairs({"left\nverdict: poor": pair(), "right": pair(9.0)}, xlabel="a", ylabel="b")
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert left.get_xlim()[0] < -2 and left.get_xlim()[1] > 11
    assert texts(left) == ["left", "verdict: poor"]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_xlabel()) == ("a", "b", "a")


def test_panels_show_the_draws_of_their_set():
    x, y = pair()
    (axis,) = plot_pairs({"only": (x, y)}).axes
    assert np.allclose(np.asarray(axis.collections[0].get_offsets()), np.stack([x, y], 1))


def test_reference_contour_holds_half_of_the_reference():
    # 4000 draws of a standard normal pair: the line around the densest half has radius 1.18, smoothing widens it by some per cent
    torch.manual_seed(0)
    (axis,) = plot_pairs({"only": pair()}, reference=pair(size=4000)).axes
    line = axis.collections[-1].get_paths()[1]
    radius = np.hypot(*line.vertices.T)
    assert float(np.median(radius)) == pytest.approx(1.18, rel=0.12)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["50 % of the reference", "90 %"]


def test_pictures_are_written(tmp_path):
    plot_pairs({"a": pair()}, reference=pair(), path=tmp_path / "pairs.png")
    plot_weights(torch.randn(100), path=tmp_path / "weights.png")
    plot_losses([3.0, 2.0], path=tmp_path / "losses.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reference_that_does_not_move_draws_no_contour():
    (axis,) = plot_pairs({"a": pair()}, reference=(torch.zeros(10), torch.randn(10))).axes
    assert len(axis.collections) == 1


@pytest.mark.parametrize("values", [torch.zeros(50), torch.tensor([0.0, -torch.inf, 1.0])])
def test_weights_without_spread_or_of_zero_are_drawn(values):
    (axis,) = plot_weights(values).axes
    counted = sum(patch.get_height() for patch in axis.patches)
    assert counted == int(torch.isfinite(values).sum())
    assert ("weight zero" in texts(axis)[1]) == (not bool(torch.isfinite(values).all()))


@pytest.mark.parametrize("losses", [[1.0], [1.0] * 100, [5.0, float("nan"), 4.0], [1e9, *[3.0 + 0.01 * i for i in range(200)]]])
def test_losses_of_any_kind_are_drawn(losses):
    (axis,) = plot_losses(losses).axes
    finite = [value for value in losses if value == value]
    assert len(axis.lines[0].get_xdata()) == len(finite)
    assert axis.get_ylim()[0] < min(finite)
    assert axis.get_ylim()[1] < 20  # the end of training stays readable whatever its first steps


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: plot_pairs({}), "draw_sets"),
        (lambda: plot_pairs({"a": (torch.zeros(3), torch.zeros(4))}), "draws of 'a'"),
        (lambda: plot_pairs({"a": (torch.zeros(3), torch.tensor([0.0, 1.0, torch.nan]))}), "finite"),
        (lambda: plot_pairs({"a": pair()}, reference=(torch.zeros(1), torch.zeros(1))), "reference"),
        (lambda: plot_weights(torch.full((3,), -torch.inf)), "log_weights"),
        (lambda: plot_weights(torch.zeros(3, 2)), "shape"),
        (lambda: plot_losses([]), "losses"),
        (lambda: plot_losses([float("nan")]), "losses"),
    ],
)
def test_nothing_to_draw_is_refused(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_pyplot_is_never_loaded():
    code = (
        "import sys, torch; from pyro_flows.diagnostics import plot_pairs, plot_weights, plot_losses; x = torch.randn(50);"
        "plot_pairs({'a': (x, x.roll(1))}, reference=(x, x.roll(2))); plot_weights(x); plot_losses([1.0, 2.0]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
