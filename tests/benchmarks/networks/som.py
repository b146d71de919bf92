"""A map of 10x10 units with a neighbourhood that stays as it is; `python tests/benchmarks/networks/som.py` compares
our run's training phase with MiniSom's at equal map and passes."""

from typing import Any

import torch
from torch import Tensor, nn

OVERRIDES = ["family=som", "data=digits"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.units = nn.Parameter(torch.randn(100, 64))
        places = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
        self.steps = (places.unsqueeze(1) - places).square().sum(-1)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        rows = inputs.flatten(1)
        cross = torch.addmm(rows.square().sum(1, keepdim=True), rows, self.units.T, alpha=-2)
        squared = cross + self.units.square().sum(1)
        weights = torch.exp(-0.5 * self.steps[squared.detach().argmin(1)])
        return 0.5 * (weights * squared).sum(1).mean()


def against_minisom(passes: int = 20) -> None:
    import os
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[3] / "data"))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import contenders
    from minisom import MiniSom

    from neurofleet import experiment as experiments

    torch.set_num_threads(1)
    contenders.use_clock("cpu")
    overrides = ["experiment=digits_som", "trainer.num_threads=1", "trainer.check_val_every_n_epoch=1000"]
    rows = experiments.build_data(experiments.compose(overrides)).rows("train").inputs.flatten(1).double().numpy()
    for _ in range(3):
        ours, _ = contenders.ours(SimpleNamespace(overrides=overrides), passes, None)
        begin = contenders.clock()
        grid = MiniSom(10, 10, 64, sigma=1.5, learning_rate=0.5, random_seed=0)
        grid.train(rows, passes * len(rows), random_order=True)
        theirs = contenders.clock() - begin
        print(f"10x10 map, {passes} passes: ours {ours:.2f} s, MiniSom {theirs:.2f} s, {theirs / ours:.1f}x")


if __name__ == "__main__":
    against_minisom()
