from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurofleet.figures.label_efficiency import label_efficiency, worth

LABELS = np.array([10.0, 100.0, 1000.0])


def test_means_are_lines_and_seeds_points(tmp_path: Path) -> None:
    ours, control = np.array([[0.9, 0.9], [0.6, 0.8]]), np.array([[0.7, np.nan], [np.nan, np.nan]])
    figure = label_efficiency(
        tmp_path / "l.png", num_labels=np.array([100, 10]), fine_tuned=ours, from_scratch=control, metric="accuracy"
    )
    axes = figure.axes[0]
    means, points, scratch, _ = axes.lines
    assert list(means.get_xdata()) == [10, 100]
    assert list(means.get_ydata()) == pytest.approx([0.7, 0.9])
    assert list(points.get_xdata()) == [10, 10, 100, 100]
    assert list(points.get_ydata()) == [0.6, 0.8, 0.9, 0.9]
    assert scratch.get_ydata()[1] == 0.7
    assert np.isnan(scratch.get_ydata()[0])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("labels to train on", "test accuracy")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["fine-tuned", "from scratch"]
    band = axes.collections[0].get_paths()[0].vertices
    assert {0.6, 0.8} <= {round(float(height), 6) for height in np.asarray(band)[:, 1]}
    assert "means of 2 seeds" in axes.get_title()


def test_what_the_fewest_labels_are_worth() -> None:
    """Halfway between the scores at 10 and 100 labels lies sqrt(10 * 100) = 32."""
    ours = np.array([0.7, 0.9, 0.95])
    assert worth(LABELS, ours, np.array([0.6, 0.8, 0.9])) == "10 labels fine-tuned do what about 32 from scratch do"
    assert worth(LABELS, ours, np.array([0.2, 0.4, 0.6])) == "10 labels fine-tuned do what 1,000 from scratch do not"
    assert worth(LABELS, ours, np.array([0.8, 0.9, 0.95])) == "10 labels from scratch do more than fine-tuned"
    lacking = np.array([np.nan, 0.8, 0.9])
    assert worth(LABELS, ours, lacking) == "100 labels fine-tuned do what about 1,000 from scratch do"
    assert worth(LABELS, ours, np.full(3, np.nan)) == "no number of labels has runs of both"
