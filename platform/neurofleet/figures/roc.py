"""ROC: what share of one kind is found, at the price of what share of the other that is mistaken for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roc(
    path: Path,
    *,
    spec: DataSpec,
    false_positive_rate: np.ndarray,
    true_positive_rate: np.ndarray,
    auc: np.ndarray,
    eer: np.ndarray,
) -> Figure:
    """Draw the curve and the point of equal errors, and write a PNG.

    false_positive_rate, true_positive_rate: [T], from (0, 0) to (1, 1)
    auc, eer: numbers, the area under the curve and the rate at which both errors are equal
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="chance")
    axes.plot(false_positive_rate, true_positive_rate, color="#0072B2", label=f"area {float(auc):.4f}")
    rate = float(eer)
    axes.plot(rate, 1 - rate, "o", color="#D55E00", markersize=5, label=f"equal errors {rate:.2%}")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    axes.set_title(f"{spec.name}: telling pairs of test rows apart", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path)
    return figure
