"""Autoencoder: a network that says its own input again through a narrow code (Hinton and Salakhutdinov 2006).

What keeps it from learning the identity is the width of the code, or one of

- denoising (Vincent et al. 2008): the input is disturbed, and the undisturbed one is wanted;
- sparse: few units of the code may speak at once.  The penalty is the row's L1 norm over its L2 norm (Hoyer 2004),
  which no scaling of weights can evade, and which, unlike the textbook's penalty on a unit's mean over the batch, is a
  row's own;
- variational (Kingma and Welling 2014): the code is a distribution, and the loss the negative evidence lower bound in
  nats.  With squared errors the data's own spread is learnt beside (Rybkin, Daniilidis and Levine 2021).

Pixels are said again in [0, 1], all else as it comes, standardised; after a sequence's end nothing is wanted.
Shape suffixes: B batch, K code, S draws, N numbers in a row of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAUROC

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._coders import (
    Code,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DenseDecoder,
    DenseEncoder,
    Pixels,
    crowding,
    row_mean,
)
from neurofleet.families._layers import RandomAffine, activation_by_name, fingerprints
from neurofleet.families._unsupervised import UnsupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

VARIANTS = ("plain", "denoising", "sparse", "variational")
AFFINE_SITE, NOISE_SITE, CODE_SITE = range(3)
NUM_DRAWS = 4  # of the code, where the bound is estimated outside training


class Autoencoder(UnsupervisedFamily):
    """Encoder and decoder, dense or convolutional, in four variants.

    In: [B, *spec.shape].  Out: [B, code + 1], the code (its mean, if variational) and the anomaly score: the row's
    reconstruction error, or its negative evidence lower bound.
    Loss: a row's mean reconstruction error, + sparsity penalty; or the negative evidence lower bound.

    variant:        plain, denoising, sparse or variational
    architecture:   dense, or convolutional for images
    hidden:         units of the encoder's dense layers; the decoder mirrors them
    channels:       of the convolutional encoder's stages, each halving the image
    code:           units of the code
    activation:     relu, sigmoid, tanh or gelu
    reconstruction: mse, or bce (binary cross-entropy, for pixels)
    squash_pixels:  pixels come out of a sigmoid; false: linear
    noise:          standard deviation when denoising, of pixels in [0, 1] (then clipped) or standardised inputs
    sparsity:       weight of the penalty when sparse
    kl_weight:      of the code's divergence from its prior when variational (beta-VAE: above 1)
    augmentation:   degrees, scale, translation of random affine distortions of images in training; zeros for none
    """

    def __init__(
        self,
        *,
        spec: DataSpec,
        variant: str,
        architecture: str,
        hidden: list[int],
        channels: list[int],
        code: int,
        activation: str,
        reconstruction: str,
        squash_pixels: bool,
        noise: float,
        sparsity: float,
        kl_weight: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec)
        self.is_image = spec.kind == "image"
        self._check(variant, architecture, hidden, channels, code, reconstruction, squash_pixels)
        for name, value in {"noise": noise, "sparsity": sparsity, "kl_weight": kl_weight}.items():
            if not value >= 0:
                raise ConfigError(f"family.{name} needs a number >= 0, got {value}")
        self.variant, self.reconstruction, self.num_codes = variant, reconstruction, code
        self.noise, self.sparsity, self.kl_weight = noise, sparsity, kl_weight
        self.squashes = self.is_image and squash_pixels
        self.output_names = (*(f"code_{index}" for index in range(code)), "anomaly_score")
        function = activation_by_name(activation)
        self.encoder: DenseEncoder | ConvolutionalEncoder
        self.decoder: DenseDecoder | ConvolutionalDecoder
        if architecture == "convolutional":
            self.encoder = ConvolutionalEncoder(spec, channels, hidden, function)
            self.decoder = ConvolutionalDecoder(spec, channels, hidden, code, function)
        else:
            self.encoder = DenseEncoder(spec, hidden, function)
            self.decoder = DenseDecoder(spec, hidden, code, function)
        self._has_hidden = architecture == "convolutional" or bool(hidden)
        self.to_code = nn.Linear(self.encoder.num_features, 2 * code if variant == "variational" else code)
        learns_spread = variant == "variational" and reconstruction == "mse"
        self.log_spread = nn.Parameter(torch.zeros(())) if learns_spread else None  # of squared errors
        self.pixels = Pixels(spec)
        self.distort = RandomAffine.from_config(augmentation, spec, site=AFFINE_SITE)
        self._aurocs: dict[str, BinaryAUROC] = {}

    def _check(
        self,
        variant: str,
        architecture: str,
        hidden: list[int],
        channels: list[int],
        code: int,
        reconstruction: str,
        squash_pixels: bool,
    ) -> None:
        known = {"variant": VARIANTS, "architecture": ("dense", "convolutional"), "reconstruction": ("mse", "bce")}
        for name, value in {"variant": variant, "architecture": architecture, "reconstruction": reconstruction}.items():
            if value not in known[name]:
                raise ConfigError(f"family.{name} needs one of {', '.join(known[name])}, got {value!r}")
        for name, sizes in {"code": [code], "hidden": hidden, "channels": channels}.items():
            if any(size < 1 for size in sizes):
                raise ConfigError(f"family.{name} needs at least 1, got {', '.join(map(str, sizes))}")
        kind = f"got {self.spec.name}, which is {self.spec.kind}"
        if architecture == "convolutional" and not self.is_image:
            raise ConfigError(f"family.architecture=convolutional needs images, {kind}; set family.architecture=dense")
        if reconstruction == "bce" and not (self.is_image and squash_pixels):
            raise ConfigError(
                f"family.reconstruction=bce needs pixels and family.squash_pixels=true, {kind}, and "
                f"squash_pixels={str(squash_pixels).lower()}; set family.reconstruction=mse"
            )

    def start(self, batch: Batch) -> None:
        """A decoder that has learnt nothing says the mean of the training rows."""
        if self.is_image:
            self.pixels.start(batch[0])
        wanted, known = self.target(batch[0])
        count = known.sum(dim=0) if known is not None else len(wanted)
        mean = wanted.sum(dim=0) / count
        with torch.no_grad():
            self.decoder.set_offset(torch.logit(mean.clamp(0.01, 0.99)) if self.squashes else torch.nan_to_num(mean))
            if self.log_spread is not None:
                self.log_spread.copy_(wanted.std().clamp(min=1e-3).log())

    # From inputs to the code and back.

    def target(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is to be said again [B, N]: pixels in [0, 1], else the standardised inputs; and which of it is known
        (None: all)."""
        if self.is_image:
            return self.pixels(inputs).flatten(1), None
        flat = inputs.flatten(1)
        return torch.nan_to_num(flat), (~flat.isnan() if self.spec.kind == "sequence" else None)

    def disturb(self, inputs: Tensor, context: Context) -> Tensor:
        """Standardised inputs with Gaussian noise, pixels clipped."""
        shape = tuple(inputs.shape[1:])
        noise = counter.normal(context.key(NOISE_SITE), context.rows, shape, inputs.dtype) * self.noise
        if not self.is_image:
            return inputs + noise
        return self.pixels.standardised((self.pixels(inputs) + noise).clamp(0, 1))

    def encode(self, inputs: Tensor) -> Code:
        """Standardised inputs [B, *spec.shape] -> code."""
        code = self.to_code(self.encoder(inputs))
        if self.variant == "variational":
            mean_BK, log_variance_BK = code.chunk(2, dim=-1)
            return Code(mean_BK, log_variance_BK)
        return Code(F.relu(code) if self.variant == "sparse" else code, None)

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """Standardised inputs [B, *spec.shape] -> the same as the network says them again, standardised too."""
        values = self.decoder(self.encode(inputs).mean)
        values = (values.sigmoid() if self.squashes else values).view(len(inputs), *self.spec.shape)
        return self.pixels.standardised(values) if self.is_image else values

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The encoder's last hidden layer: what can be told from a row is still there, while a narrow code keeps what
        rebuilds it (deep autoencoders are fine-tuned from their hidden layers: Vincent et al. 2010).  The code (its
        mean), where no layer is hidden."""
        return self.encoder(inputs) if self._has_hidden else self.encode(inputs).mean

    @property
    def heads(self) -> tuple[str, ...]:
        spread = ("log_spread",) if self.log_spread is not None else ()
        return ("decoder", "pixels", *spread, *(("to_code",) if self._has_hidden else ()))

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        code = self.encode(inputs)
        if code.log_variance is None:
            score_B = self._error(self.decoder(code.mean), *self.target(inputs))
        else:
            likelihood_B, divergence_B = self._bound(inputs, code, None)
            score_B = likelihood_B + divergence_B
        return torch.cat([code.mean, score_B.unsqueeze(1)], dim=1)

    # The learning rule.

    def objective(self, batch: Batch, context: Context) -> Objective:
        inputs = self.distort(batch[0], context) if self.is_image else batch[0]
        if self.variant == "variational":
            code = self.encode(inputs)
            likelihood_B, divergence_B = self._bound(inputs, code, context if context.training else None)
            terms = {"negative_elbo": likelihood_B + divergence_B, "kl": divergence_B}
            loss_B = likelihood_B + self.kl_weight * divergence_B
        else:
            code = self.encode(self.disturb(inputs, context) if self.variant == "denoising" else inputs)
            values, (wanted, known) = self.decoder(code.mean), self.target(inputs)
            loss_B, terms = self._error(values, wanted, known), {}
            if self.variant == "denoising":
                terms["denoising_mse"] = self._squared(values, wanted, known)
            if self.variant == "sparse":
                loss_B = loss_B + self.sparsity * crowding(code.mean)
                terms["active_units"] = (code.mean > 0).to(loss_B.dtype).mean(dim=1)
        return Objective(loss_B.mean(), {name: row.detach() for name, row in terms.items()} if context.measure else {})

    def _squared(self, values: Tensor, wanted: Tensor, known: Tensor | None) -> Tensor:
        """[B] mean squared error of each row."""
        return row_mean(((values.sigmoid() if self.squashes else values) - wanted).square(), known)

    def _error(self, values: Tensor, wanted: Tensor, known: Tensor | None) -> Tensor:
        """[B] reconstruction error of each row, a mean over its numbers."""
        if self.reconstruction == "mse":
            return self._squared(values, wanted, known)
        return F.binary_cross_entropy_with_logits(values, wanted, reduction="none").mean(dim=1)

    def _bound(self, inputs: Tensor, code: Code, context: Context | None) -> tuple[Tensor, Tensor]:
        """The two terms of the negative evidence lower bound, in nats [B]: how unlikely the inputs are, given the code,
        and the code's divergence from its prior.

        Without a context the first is a mean over `NUM_DRAWS` draws, in pairs of opposites, which are a function of the
        row: its score does not depend on the rows beside it.
        """
        mean_BK, log_variance_BK = code
        assert log_variance_BK is not None
        divergence_B = 0.5 * (mean_BK.square() + log_variance_BK.exp() - 1 - log_variance_BK).sum(dim=1)
        spread_BK, size = (0.5 * log_variance_BK).exp(), self.num_codes
        wanted, known = self.target(inputs)
        if context is not None:
            draws_BK = counter.normal(context.key(CODE_SITE), context.rows, (size,), mean_BK.dtype)
            return self._unlikelihood(self.decoder(mean_BK + spread_BK * draws_BK), wanted, known), divergence_B
        key, rows = counter.fold(0, CODE_SITE), fingerprints(inputs)
        half_BSK = counter.normal(key, rows, (NUM_DRAWS // 2, size), mean_BK.dtype)
        every = [
            self._unlikelihood(self.decoder(mean_BK + spread_BK * draws_BK), wanted, known)
            for draws_BK in torch.cat([half_BSK, -half_BSK], dim=1).unbind(dim=1)
        ]
        return torch.stack(every).mean(dim=0), divergence_B

    def _unlikelihood(self, values: Tensor, wanted: Tensor, known: Tensor | None) -> Tensor:
        """-log p(inputs | code) [B], a sum over a row's known numbers."""
        if self.reconstruction == "bce":
            return F.binary_cross_entropy_with_logits(values, wanted, reduction="none").sum(dim=1)
        assert self.log_spread is not None
        count = wanted.shape[1] if known is None else known.sum(dim=1)
        error_B, variance = self._squared(values, wanted, known), (2 * self.log_spread).exp()
        return 0.5 * count * (error_B / variance + math.log(2 * math.pi) + 2 * self.log_spread)

    # What it is scored by, and what it shows.

    @property
    def score_names(self) -> list[str]:
        own = {"denoising": ["denoising_mse"], "sparse": ["active_units"], "variational": ["negative_elbo", "kl"]}
        anomaly = ["anomaly_auroc"] if self.spec.task == "binary" else []
        return ["loss", "mse", *own.get(self.variant, []), *anomaly]

    def _evaluate(self, batch: Batch, stage: str) -> None:
        inputs, targets = batch
        objective = self.objective(batch, self._context(batch, 0, training=False))
        error_B = self._squared(self.decoder(self.encode(inputs).mean), *self.target(inputs))
        self._tally(stage, {"loss": objective.loss, "mse": error_B, **objective.metrics}, len(targets))
        if self.spec.task == "binary":
            auroc = self._aurocs.setdefault(stage, BinaryAUROC().to(inputs.device))
            # torchmetrics takes numbers beyond [0, 1] for logits, and by batch: only their order counts.
            auroc.update(0.5 + 0.5 * F.softsign(self(inputs)[:, -1].double()), targets[:, 0].long())

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        scores = self._means(stage)
        if stage in self._aurocs:  # of the anomaly score against the second class
            scores["anomaly_auroc"] = self._aurocs[stage].compute()
            self._aurocs[stage].reset()
        return scores

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        inputs, targets = batch
        outputs = {"inputs": self.raw(inputs), "outputs": self.raw(self.reconstruct(inputs))}
        if self.variant == "denoising":
            disturbed = self.disturb(inputs, self._context(batch, 0, training=False))
            outputs |= {"seen": self.raw(disturbed), "outputs": self.raw(self.reconstruct(disturbed))}
        code_map = {"codes": self.encode(inputs).mean, "targets": targets}
        return {"reconstructions": outputs, "code_map": code_map}
