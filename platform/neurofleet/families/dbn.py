"""Deep belief network: restricted Boltzmann machines trained one upon another, then a classifier made of the stack.

A machine's learning rule is a loss: the free energy of the data minus that of what a Gibbs chain dreams up, held
constant.  Its gradient is contrastive divergence after k steps (Hinton 2002) where the chain starts at the data, and
persistent contrastive divergence (Tieleman 2008) where it goes on from step to step; those chains are buffers, which
every worker advances alike.  The layers have their turns in the first part of training (Hinton, Osindero and Teh 2006),
each on the means of the layer below; what remains fine-tunes all of them by the task's loss.

The machines are centred (Montavon and Müller 2012): weights connect hidden units less a half with visible ones less
their mean.  It is the same family of distributions, better conditioned: uncentred, the mean image alone drives units
into saturation, and fine-tuning finds no gradient (on `textures` it then learnt nothing at all).

Both parts share the optimizer. `pretraining_weight` sets their rates apart with SGD; within a layer's turn it falls to
a tenth in a straight line, since at a constant rate the noise of the chains would be the last thing learnt. Adam's
steps do not depend on it, but what Adam remembers does: free energies are sums over units, and after their large
gradients the first thousand steps of fine-tuning would be tiny. With Adam the schedule sets the rates apart: `step`
with a milestone where pretraining ends, or `cosine`, which comes down by itself. Held-out data is always measured by
the task, so the curve of the training loss breaks where fine-tuning begins, and validation scores mean nothing before.

Shape suffixes: B batch (or chains), V visible units, H hidden units, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._coders import Pixels
from neurofleet.families._inner import StartsFromInputs
from neurofleet.families._layers import Dropout, RandomAffine, checked_rate, numbers
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

AFFINE_SITE, GIBBS_SITE = 1000, 1001  # dropout layers count up from zero


class DBN(StartsFromInputs):
    """Sigmoid layers, pretrained as restricted Boltzmann machines.

    In: [B, *spec.shape], flattened.  Pixels are probabilities of Bernoulli units, brightest = 1; all else is the mean
    of Gaussian units with variance 1.
    Out: [B, spec.num_outputs] logits or values.
    Loss: in pretraining, the difference of free energies of the layer in turn; then by task, see
    `neurofleet.families._supervised`.

    hidden:             units of each layer
    pretraining:        fraction of training in which the layers have their turns, of equal length; 0 for none
    pretraining_weight: factor on the difference of free energies, see above
    gibbs_steps:        of a chain before each update, the k of CD-k
    num_chains:         persistent chains; 0 for chains that start at the data
    sample_visible:     draw a chain's visible units; false takes their means, which makes less noise (Hinton 2010)
    dropout:            rate after each layer in fine-tuning
    label_smoothing:    of classification, in fine-tuning
    augmentation:       degrees, scale, translation of random affine distortions of images in training; zeros for none
    """

    shardable = False
    centre: Tensor  # [V] of the lowest units; those above have a half

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        hidden: list[int],
        pretraining: float,
        pretraining_weight: float,
        gibbs_steps: int,
        num_chains: int,
        sample_visible: bool,
        dropout: float,
        label_smoothing: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        self.is_image = spec.kind == "image"
        self._check(hidden, pretraining, pretraining_weight, gibbs_steps, num_chains)
        self.pretraining, self.pretraining_weight = pretraining, pretraining_weight
        self.gibbs_steps, self.num_chains = gibbs_steps, num_chains
        self.sample_visible = sample_visible
        sizes = [spec.num_inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(visible, units) for visible, units in pairwise(sizes))
        # Without pretraining nothing would ever teach them.
        biases = [nn.Parameter(torch.zeros(visible), requires_grad=pretraining > 0) for visible in sizes[:-1]]
        self.visible_biases = nn.ParameterList(biases)
        self.register_buffer("centre", torch.full((spec.num_inputs,), 0.5 if self.is_image else 0.0))
        for index, visible in enumerate(sizes[:-1]):
            if num_chains:
                noise = torch.randn(num_chains, visible)
                self.register_buffer(f"chains_{index}", noise if self._is_gaussian(index) else (noise > 0).float())
        checked_rate(dropout)
        self.dropouts = nn.ModuleList(Dropout(dropout, site) for site in range(len(hidden)))
        self.readout = nn.Linear(sizes[-1], spec.num_outputs)
        self.pixels = Pixels(spec) if self.is_image else None
        self.distort = RandomAffine.from_config(augmentation, spec, AFFINE_SITE)

    @staticmethod
    def _check(
        hidden: list[int], pretraining: float, pretraining_weight: float, gibbs_steps: int, num_chains: int
    ) -> None:
        if not hidden or any(units < 1 for units in hidden):
            raise ConfigError(f"family.hidden needs at least one layer of at least one unit, got {list(hidden)}")
        if not 0 <= pretraining < 1:
            raise ConfigError(f"family.pretraining is a fraction and needs 0 <= pretraining < 1, got {pretraining}")
        if not pretraining_weight > 0:
            raise ConfigError(f"family.pretraining_weight needs a number above 0, got {pretraining_weight}")
        if gibbs_steps < 1 or num_chains < 0:
            raise ConfigError(
                f"DBN needs gibbs_steps >= 1 and num_chains >= 0, got gibbs_steps={gibbs_steps}, "
                f"num_chains={num_chains}; try gibbs_steps=1 and num_chains=0"
            )

    def start_from(self, inputs: Tensor) -> None:
        """Visible units that know nothing else say how often each pixel is on (Hinton 2010)."""
        if self.pixels is not None:
            with torch.no_grad():
                self.pixels.start(inputs)
                mean_V = self.visible(inputs).mean(dim=0)
                self.centre.copy_(mean_V)
                self.visible_biases[0].copy_(torch.logit(mean_V.clamp(0.01, 0.99)))

    def configure_optimizers(self) -> Any:
        """Layers that have not had their turn have no momentum yet, for which torch's fused SGD has no case."""
        optimizer = super().configure_optimizers()
        made = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        for group in made.param_groups:
            if group.get("fused") and group.get("momentum"):
                group["fused"] = False
        return optimizer

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return self.distort(inputs, context)

    def visible(self, inputs: Tensor) -> Tensor:
        """Standardised inputs [B, *spec.shape] -> the lowest units [B, V]."""
        return numbers(inputs) if self.pixels is None else self.pixels(inputs).flatten(1)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The means of the highest layer's units, less a half."""
        units_BH = self.visible(inputs) - self.centre
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            units_BH = dropout(torch.sigmoid(layer(units_BH)) - 0.5, context)
        return units_BH

    @property
    def heads(self) -> tuple[str, ...]:
        chains = [f"chains_{index}" for index in range(len(self.layers))] if self.num_chains else []
        return ("readout", "visible_biases", *chains)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.features(inputs, context))

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        shown = super().exhibits(batch)
        if self.is_image:
            filters = self.layers[0].weight.view(-1, *self.spec.shape)  # type: ignore[operator]
            shown["weight_filters"] = {"filters": filters}
        return shown

    # The learning rule.

    def turn(self, context: Context) -> tuple[int, float] | None:
        """The layer that is pretrained at this point of training and how much of its turn is over, or None."""
        if not context.training or context.progress >= self.pretraining:
            return None
        turns = context.progress / self.pretraining * len(self.layers)
        index = min(int(turns), len(self.layers) - 1)
        return index, turns - index

    def objective(self, batch: Batch, context: Context) -> Objective:
        turn = self.turn(context)
        if turn is None:
            return super().objective(batch, context)
        index, over = turn
        with torch.no_grad():
            data_BV = self.visible(self.augment(batch[0], context))
            for below in range(index):
                data_BV = torch.sigmoid(self.drive(below, data_BV))
            buffers = {}
            if self.num_chains:
                chains_BV = self.get_buffer(f"chains_{index}")
                rows = torch.arange(self.num_chains, dtype=torch.int32, device=data_BV.device)
                dreamt_BV = self.dream(index, chains_BV, context.key(GIBBS_SITE), rows)
                buffers = {f"chains_{index}": dreamt_BV}
            else:
                dreamt_BV = self.dream(index, data_BV, context.key(GIBBS_SITE), context.rows)
        gap = self.free_energy(index, data_BV).mean() - self.free_energy(index, dreamt_BV).mean()
        loss = self.pretraining_weight * (1 - 0.9 * over) * gap
        return Objective(loss, self._reconstruction(index, data_BV) if context.measure else {}, buffers)

    def drive(self, index: int, visible_BV: Tensor) -> Tensor:
        """[B, H], the log odds of the hidden units of layer `index`."""
        return self.layers[index](visible_BV - (0.5 if index else self.centre))

    def free_energy(self, index: int, visible_BV: Tensor) -> Tensor:
        """[B] of the machine whose hidden units are layer `index`: -log of what its hidden states sum to."""
        bias_V, drive_BH = self.visible_biases[index], self.drive(index, visible_BV)
        if self._is_gaussian(index):
            visible_B = 0.5 * (visible_BV - bias_V).square().sum(dim=1)
        else:
            visible_B = -visible_BV @ bias_V
        return visible_B - (F.softplus(drive_BH) - 0.5 * drive_BH).sum(dim=1)

    def dream(self, index: int, visible_BV: Tensor, key: counter.Key, rows: Tensor) -> Tensor:
        """The visible units [B, V] after `gibbs_steps` steps to the hidden units, which are drawn, and back."""
        for step in range(self.gibbs_steps):
            hidden_BH = torch.sigmoid(self.drive(index, visible_BV))
            draws_BH = counter.uniform(counter.fold(key, 2 * step), rows, (hidden_BH.shape[1],), hidden_BH.dtype)
            visible_BV = self.visible_mean(index, (draws_BH < hidden_BH).to(hidden_BH.dtype))
            if self.sample_visible:
                visible_BV = self._drawn(index, visible_BV, counter.fold(key, 2 * step + 1), rows)
        return visible_BV

    def visible_mean(self, index: int, hidden_BH: Tensor) -> Tensor:
        """[B, V], given hidden units."""
        weight_HV: Any = self.layers[index].weight
        values_BV = (hidden_BH - 0.5) @ weight_HV + self.visible_biases[index]
        return values_BV if self._is_gaussian(index) else torch.sigmoid(values_BV)

    def _drawn(self, index: int, mean_BV: Tensor, key: counter.Key, rows: Tensor) -> Tensor:
        shape = (mean_BV.shape[1],)
        if self._is_gaussian(index):
            return mean_BV + counter.normal(key, rows, shape, mean_BV.dtype)
        return (counter.uniform(key, rows, shape, mean_BV.dtype) < mean_BV).to(mean_BV.dtype)

    def _is_gaussian(self, index: int) -> bool:
        return index == 0 and not self.is_image

    @torch.no_grad()
    def _reconstruction(self, index: int, data_BV: Tensor) -> dict[str, Tensor]:
        """How well the layer's means say their input again: the usual, if crude, sign of progress."""
        said_BV = self.visible_mean(index, torch.sigmoid(self.drive(index, data_BV)))
        return {"reconstruction_error": (said_BV - data_BV).square().mean(dim=1)}
