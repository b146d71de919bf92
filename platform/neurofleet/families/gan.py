"""Generative adversarial network (Goodfellow et al. 2014): a generator makes rows, a critic tells them from real ones.

Two players, one loss: the critic's loss on detached samples plus the generator's loss through the critic's detached
parameters.  Each player's gradient is its own, so one backward pass and one optimizer train both at once.

| loss          | critic                                   | generator           | penalty on the slope of the critic  |
|---------------|------------------------------------------|---------------------|-------------------------------------|
| nonsaturating | softplus(-real) + softplus(fake)         | softplus(-fake)     | |slope|^2 / 2 at real rows          |
| hinge         | relu(1 - real) + relu(1 + fake)          | -fake               | |slope|^2 / 2 at real rows          |
| wasserstein   | fake - real                              | -fake               | (|slope| - 1)^2 between real, fake  |

The zero-centred penalty is R1 of Mescheder, Geiger and Nowozin 2018, the other Gulrajani et al. 2017.  With few images
critics learn them by heart: both kinds of images are distorted alike (Zhao et al. 2020).  What is served and scored
are the samples of the generator's exponential moving average (Yazici et al. 2019).

A game's loss is no measure of samples.  Held-out rows are scored by the energy distance (Székely and Rizzo 2013)
between rows and samples, relative to the rows' own distance: 2 E|row - sample| - E|sample - sample'| over
E|row - row'|, less one.  It is 0 where both have one distribution.  Shape suffixes: B batch, Z noise, S samples,
F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, nearest
from neurofleet.families._base import Objective
from neurofleet.families._generators import ImageGenerator, networks
from neurofleet.families._layers import RandomAffine, numbers, squared_distances
from neurofleet.families._unsupervised import UnsupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

LOSSES = ("nonsaturating", "hinge", "wasserstein")
NOISE, DISTORT_REAL, DISTORT_FAKE, BETWEEN, SERVED, JUDGED, SHOWN, SPREAD = range(8)  # sites
MOMENTS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of progress: a generator changes most at first
NUM_SHOWN = 12  # samples in a row of the grid
NUM_JUDGED = 256  # samples that held-out rows are scored against
NUM_SPREAD = 1024  # training rows, at most, from which their own distance is measured


class GAN(UnsupervisedFamily):
    """A generator and a critic: convolutions for images, perceptrons for tables and sequences.

    In: [B, *spec.shape]; the targets are left alone.  Out: [B, 1], the critic's score of each row.
    Loss: see the table of this module; held-out rows are scored by the relative energy distance.

    loss:             nonsaturating, hinge or wasserstein
    noise:            numbers that a sample is made of, uniform with unit variance
    hidden:           units of each layer, of tables and sequences
    channels:         of each stage of images, counted from the pixels; each stage after the first halves the map
    patch:            pixels a side that images are cut into before the first stage
    norm:             of the generator of images: layer (per sample) or none
    gradient_penalty: weight of the penalty on the critic's slope
    penalty_every:    every so many rows of the global batch pay it, so many times over: a second derivative is dear
    average_decay:    of the generator's moving average, after a shorter one for the first steps
    augmentation:     degrees, scale, translation of random affine distortions of real and generated images
    """

    shardable = False
    output_names = ("critic",)
    spread: Tensor
    grid: Tensor

    def __init__(
        self,
        *,
        spec: DataSpec,
        loss: str,
        noise: int,
        hidden: list[int],
        channels: list[int],
        patch: int,
        norm: str,
        gradient_penalty: float,
        penalty_every: int,
        average_decay: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec)
        self._check(loss, gradient_penalty, penalty_every, average_decay)
        self.loss, self.noise, self.average_decay = loss, noise, average_decay
        self.gradient_penalty, self.penalty_every = gradient_penalty, penalty_every
        self.generator, self.critic = networks(
            spec, noise=noise, hidden=hidden, channels=channels, patch=patch, norm=norm
        )
        self.distortions = tuple(
            RandomAffine.from_config(
                augmentation if spec.kind == "image" else dict.fromkeys(augmentation, 0.0), spec, site
            )
            for site in (DISTORT_REAL, DISTORT_FAKE)
        )
        self.averages = nn.Module()
        for name, parameter in self.generator.named_parameters():
            self.averages.register_buffer(_flat(name), parameter.detach().clone())
        # Until `start` measures it: that of standardised columns that know nothing of one another.
        self.register_buffer("spread", torch.tensor(math.sqrt(2 * spec.num_inputs)))
        if spec.kind != "tabular":
            self.register_buffer("grid", torch.zeros(len(MOMENTS), NUM_SHOWN, *spec.shape))
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def _check(loss: str, gradient_penalty: float, penalty_every: int, average_decay: float) -> None:
        if loss not in LOSSES:
            raise ConfigError(f"family.loss needs one of {', '.join(LOSSES)}, got {loss!r}; {nearest(loss, LOSSES)}")
        if not 0 <= gradient_penalty < math.inf:
            raise ConfigError(f"family.gradient_penalty needs a number >= 0, got {gradient_penalty}")
        if loss == "wasserstein" and gradient_penalty == 0:
            raise ConfigError("family.loss=wasserstein needs a gradient_penalty above 0, got 0; try 10")
        if penalty_every < 1:
            raise ConfigError(f"family.penalty_every needs a whole number of at least 1, got {penalty_every}")
        if not 0 <= average_decay < 1:
            raise ConfigError(f"family.average_decay needs 0 <= average_decay < 1, got {average_decay}")

    def start(self, batch: Batch) -> None:
        """Measure the training rows: the range of their pixels, and how far they lie from one another (which a single
        row does not say)."""
        inputs, keys = batch[0], counter.uniform(SPREAD, torch.arange(len(batch[0]), dtype=torch.int32), ())
        rows_BF = numbers(inputs[keys.argsort()[:NUM_SPREAD].to(inputs.device)])
        if len(rows_BF) > 1:
            self.spread.copy_(_mean_of_pairs(_distances(rows_BF, rows_BF)))
        if isinstance(self.generator, ImageGenerator):
            self.generator.low.copy_(inputs.amin(dim=(0, 2, 3)).view(-1, 1, 1))
            self.generator.high.copy_(inputs.amax(dim=(0, 2, 3)).view(-1, 1, 1))

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The critic's, before its score (as Radford et al. 2016 take a discriminator's for a classifier)."""
        return self.critic.features(self._rows(inputs))

    @property
    def heads(self) -> tuple[str, ...]:
        grid = () if self.spec.kind == "tabular" else ("grid",)
        return ("generator", "averages", "critic.readout", "spread", *grid)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.critic(self._rows(inputs)).unsqueeze(1)

    def objective(self, batch: Batch, context: Context) -> Objective:
        real = self._rows(batch[0])
        if not context.training:
            return Objective(self._energy(numbers(real)).mean())
        fake = self.generator(self._noise(context.key(NOISE), context.rows, real.dtype))
        seen_real, seen_fake = self.distortions[0](real, context), self.distortions[1](fake, context)
        real_scores, fake_scores = self.critic(torch.cat([seen_real, seen_fake.detach()])).chunk(2)
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        generator_loss = self._generator_loss(functional_call(self.critic, fixed, (seen_fake,)))
        critic_loss = self._critic_loss(real_scores, fake_scores)
        if self.gradient_penalty:
            critic_loss = critic_loss + self._penalty(seen_real, seen_fake.detach(), context)
        metrics = {
            "critic_loss": critic_loss.detach(),
            "generator_loss": generator_loss.detach(),
            "real_score": real_scores.detach(),
            "fake_score": fake_scores.detach(),
        }
        return Objective(critic_loss + generator_loss, metrics if context.measure else {}, self._renewed(context))

    # The two players.

    def _critic_loss(self, real_B: Tensor, fake_B: Tensor) -> Tensor:
        match self.loss:
            case "nonsaturating":
                return (F.softplus(-real_B) + F.softplus(fake_B)).mean()
            case "hinge":
                return (F.relu(1 - real_B) + F.relu(1 + fake_B)).mean()
            case _:
                return (fake_B - real_B).mean()

    def _generator_loss(self, fake_B: Tensor) -> Tensor:
        return (F.softplus(-fake_B) if self.loss == "nonsaturating" else -fake_B).mean()

    def _penalty(self, real: Tensor, fake: Tensor, context: Context) -> Tensor:
        """On the critic's slope at some rows, weighted as if it were all."""
        paying = context.rows % self.penalty_every == 0
        rows = real[paying]
        if self.loss == "wasserstein":
            shape = (len(rows), *[1] * (real.ndim - 1))
            share = counter.uniform(context.key(BETWEEN), context.rows[paying], (), real.dtype).view(shape)
            rows = torch.lerp(fake[paying], rows, share)
        # A row's score is its own, so the gradient of the sum holds the gradient of each.
        squares_B = torch.func.grad(lambda inputs: self.critic(inputs).sum())(rows).flatten(1).square().sum(1)
        # A root has no slope at 0.
        costs_B = ((squares_B + 1e-24).sqrt() - 1).square() if self.loss == "wasserstein" else squares_B / 2
        return costs_B.sum() * (self.gradient_penalty * self.penalty_every / len(real))

    def _noise(self, key: counter.Key, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return (counter.uniform(key, rows, (self.noise,), dtype) - 0.5) * math.sqrt(12)

    def _rows(self, inputs: Tensor) -> Tensor:
        """After a sequence's end there is the mean, 0."""
        return torch.nan_to_num(inputs) if self.spec.kind == "sequence" else inputs

    # The average of the generator, and what it makes.

    def _renewed(self, context: Context) -> dict[str, Tensor]:
        # So long as an average is young, it forgets faster: it would be one of the first weights else.
        if isinstance(context.step, Tensor):
            steps = context.step.double()
            decay: Tensor | float = ((steps + 1) / (steps + 10)).clamp(max=self.average_decay)
        else:
            decay = min((context.step + 1) / (context.step + 10), self.average_decay)
        buffers = {}
        for name, parameter in self.generator.named_parameters():
            average, value = self.averages.get_buffer(_flat(name)), parameter.detach()
            buffers[f"averages.{_flat(name)}"] = value + (average - value) * decay
        due = self._due(context.progress)
        if due:
            moments = torch.arange(len(MOMENTS), device=self.grid.device).view(-1, *[1] * (self.grid.ndim - 1))
            now = (moments >= due[0]) & (moments <= due[-1])
            buffers["grid"] = torch.where(now, self._shown().detach(), self.grid)
        return buffers

    def _due(self, progress: float) -> list[int]:
        """The moments of the grid that come with this step; the recipe says how long a step is."""
        if self.spec.kind == "tabular" or self._recipe is None:
            return []
        num_steps = self._recipe.num_steps
        step = round(progress * num_steps)
        return [place for place, moment in enumerate(MOMENTS) if math.ceil(moment * num_steps) == step]

    def _made(self, num: int, key: counter.Key) -> Tensor:
        """Samples of the averaged generator, [num, *spec.shape], standardised."""
        averages = {name: self.averages.get_buffer(_flat(name)) for name, _ in self.generator.named_parameters()}
        rows = torch.arange(num, dtype=torch.int32, device=self.spread.device)
        samples: Tensor = functional_call(self.generator, averages, (self._noise(key, rows, self.spread.dtype),))
        return samples

    def _shown(self) -> Tensor:
        return self._made(NUM_SHOWN, counter.fold(0, SHOWN))

    def _energy(self, rows_BF: Tensor) -> Tensor:
        """Of each row, its part in the relative energy distance from a fixed set of samples."""
        samples_SF = self._made(NUM_JUDGED, counter.fold(0, JUDGED)).flatten(1)
        among = _mean_of_pairs(_distances(samples_SF, samples_SF))
        return (2 * _distances(rows_BF, samples_SF).mean(1) - among) / self.spread - 1

    def sample(self, num: int, seed: int) -> Tensor:
        """Samples [num, *spec.shape] in the user's units; the same for the same weights and seed."""
        with torch.no_grad():
            return self.raw(self._made(num, counter.fold(seed, SERVED)))

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        inputs = batch[0]
        if self.spec.kind == "tabular":
            return {"marginals": {"real": self.raw(inputs), "generated": self.sample(max(len(inputs), 1024), 0)}}
        samples = torch.cat([self.grid, self._shown().unsqueeze(0)])
        raw = self.raw(samples.flatten(0, 1)).view_as(samples)
        return {"sample_grid": {"samples": raw, "moments": torch.tensor([*MOMENTS, 1.0])}}


def _flat(name: str) -> str:
    """A parameter's name as that of a buffer, which may have no dots."""
    return name.replace(".", "_")


def _distances(first_BF: Tensor, second_SF: Tensor) -> Tensor:
    """Euclidean, [B, S]."""
    return squared_distances(first_BF, second_SF).clamp(min=0).sqrt()


def _mean_of_pairs(distances_SS: Tensor) -> Tensor:
    """Over all pairs of two different ones."""
    size = len(distances_SS)
    return (distances_SS.sum() - distances_SS.diagonal().sum()) / (size * (size - 1))
