from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import pytest
from omegaconf import OmegaConf

from neurofleet import experiment, paths
from neurofleet.data.catalog import NEEDS
from neurofleet.figures.learning_curves import learning_curves, lower_is_better

HISTORY = [
    {"step": 10, "epoch": 1, "train/loss": 1.0, "val/loss": 1.1, "val/accuracy": 0.5},
    {"step": 20, "epoch": 2, "train/loss": 0.5, "val/loss": 0.6, "val/accuracy": 0.9},
    {"step": 30, "epoch": 3, "train/loss": 0.2, "val/loss": 0.7, "val/accuracy": 0.8},
]


def test_one_panel_a_metric_with_the_best_marked(tmp_path: Path) -> None:
    figure = learning_curves(HISTORY, tmp_path / "curves.png", title="mlp on digits")
    assert figure.get_suptitle() == "mlp on digits"
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    loss, accuracy = figure.axes
    training, validation, best = loss.lines
    assert training.get_xydata().tolist() == [[10, 1.0], [20, 0.5], [30, 0.2]]
    assert validation.get_xydata().tolist() == [[10, 1.1], [20, 0.6], [30, 0.7]]
    assert best.get_xydata().tolist() == [[20, 0.6]]
    assert accuracy.lines[-1].get_xydata().tolist() == [[20, 0.9]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation", "best: 0.6"]


def test_writes_a_png_of_sensible_size(tmp_path: Path) -> None:
    learning_curves(HISTORY, tmp_path / "curves.png", title="mlp on digits")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    height, width, _ = matplotlib.image.imread(tmp_path / "curves.png").shape
    assert 400 < height < 1000
    assert 800 < width < 2000


def test_rows_may_lack_metrics_and_hold_infinities(tmp_path: Path) -> None:
    history = [{"step": 1, "train/loss": 3.0}, {"step": 2, "val/loss": math.nan}, {"step": 3, "val/loss": 2.0}]
    figure = learning_curves(history, tmp_path / "curves.png", title="mlp on digits")
    training, _, best = figure.axes[0].lines
    assert training.get_xydata().tolist() == [[1, 3.0]]
    assert best.get_xydata().tolist() == [[3, 2.0]]


def test_leftover_panels_are_hidden(tmp_path: Path) -> None:
    figure = learning_curves(
        [{"step": 1} | {f"train/{name}": 1.0 for name in "abcd"}], tmp_path / "curves.png", title="mlp on digits"
    )
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        learning_curves([{"step": 1, "epoch": 1}], tmp_path / "curves.png", title="mlp on digits")


BEST = {
    True: {
        *("bits_per_character", "bits_per_word", "denoising_mse", "eer", "kl", "loss", "mae", "mse", "negative_elbo"),
        *("quantization_error", "reconstruction_error", "rmse", "topographic_error"),
    },
    False: {*("accuracy", "anomaly_auroc", "auc", "auroc", "average_precision", "f1", "one_shot", "r2", "return")},
    None: {"active_units", "episode_length", "spike_rate", "spikes"},
}


@pytest.mark.parametrize("lowest", BEST)
def test_which_end_of_a_curve_is_the_best_goes_by_whole_words(lowest: bool | None) -> None:
    assert {name for name in BEST[lowest] if lower_is_better(name) is not lowest} == set()
    assert lower_is_better("maestro") is lower_is_better("lossless") is False
    assert lower_is_better("train_loss") is lower_is_better("frechet_distance") is True


def test_every_score_of_every_shipped_experiment_is_judged() -> None:
    """And those of all variants of an autoencoder."""
    files = (paths.shipped("configs") / "experiment").glob("*.yaml")
    # Those of fine-tuning, which say what they start from, have the scores of a family's networks.
    experiments = [[f"experiment={path.stem}"] for path in files if "base" not in OmegaConf.load(path)]
    variants = [["family=autoencoder", f"family.variant={name}"] for name in ("plain", "denoising", "sparse")]
    judged = set().union(*BEST.values())
    for overrides in [*experiments, *variants]:
        composed = experiment.compose(overrides)
        if composed["data"]["name"] not in NEEDS:
            family = experiment.build_family(composed, experiment.build_data(composed).spec)
            assert set(family.score_names) <= judged


def test_a_metric_that_is_neither_good_nor_bad_has_no_best_value(tmp_path: Path) -> None:
    figure = learning_curves(
        [{"step": 1, "val/spikes": 3.0}, {"step": 2, "val/spikes": 2.0}], tmp_path / "curves.png", title="mlp on digits"
    )
    assert len(figure.axes[0].lines) == 1
