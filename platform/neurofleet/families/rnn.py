"""Recurrent networks for sequences, texts and images read row by row: Elman's network, the LSTM and the GRU.

Sequences of different lengths share a batch: a result never depends on what lies after a sequence's end, and the
backward direction (Schuster and Paliwal 1997) begins at each sequence's own end; see `_recurrence` for the cells and
how.  Beside the recurrence there may be convolutions over time, the fully convolutional branch of an LSTM-FCN (Karim et
al. 2018), with a norm per sequence in place of the batch's.

Shape suffixes: B batch, T steps, I inputs of a step, H units, F features, O outputs, V different tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._language import LanguageFamily, sample
from neurofleet.families._layers import Dropout
from neurofleet.families._recurrence import (
    MaskedConvolution,
    Recurrence,
    State,
    StepDropout,
    checked_cell,
    last_of,
    leading,
    mean_of,
    turned,
)
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

READOUTS = ("last", "mean", "both")
NUM_FORECASTS = 6  # that are drawn


class RNN(LanguageFamily):
    """Layers of a recurrent cell; what is read out is the last state, the mean of all states, or both.

    In: sequences [B, T, channels], NaN after a shorter one's end; tokens [B, T], 0 after the end, each embedded; images
    [B, channels, height, width], a row a step.
    Out: [B, spec.num_outputs] logits or values; for language the logits of the token that comes next.
    Loss: by task, see `neurofleet.families._supervised` and `_language`.

    cell:            rnn (tanh), lstm or gru
    hidden:          units of each layer, in each direction
    num_layers:      layers, each reading the states of the one before
    bidirectional:   whether every layer also reads backwards; not for language
    readout:         last (of each direction: the state after its last step), mean (over the steps) or both; a language
                     model reads out every state
    embedding:       units that a token becomes
    tied:            for language: the readout's weights are the embedding's (Press and Wolf 2017); embedding = hidden
    channels:        of the convolutions over time beside the recurrence, whose mean over the steps is read out as well;
                     empty for none, and for language
    kernel_sizes:    of these convolutions, odd
    dropout:         rate after each layer (the same units at all steps) and before the readout
    jitter:          standard deviation of noise on the numbers of a sequence or image, in training
    label_smoothing: of classification and language, in training
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"sequence", "text", "image"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        cell: str,
        hidden: int,
        num_layers: int,
        bidirectional: bool,
        readout: str,
        embedding: int,
        tied: bool,
        channels: list[int],
        kernel_sizes: list[int],
        dropout: float,
        jitter: float,
        label_smoothing: float,
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        _check_sizes(hidden, num_layers, embedding, channels, kernel_sizes)
        if readout not in READOUTS:
            raise ConfigError(f"family.readout needs {', '.join(READOUTS)}, got {readout!r}")
        if not jitter >= 0:
            raise ConfigError(f"family.jitter needs a number >= 0, got {jitter}")
        if spec.task == "language":
            _check_language(spec, bidirectional, channels)
        if tied and (spec.task != "language" or embedding != hidden):
            raise ConfigError(
                f"family.tied needs the task language and embedding = hidden, got {spec.task}, embedding={embedding}, "
                f"hidden={hidden}; set family.tied=false or family.embedding={hidden}"
            )
        self.readout_of, self.bidirectional, self.jitter = readout, bidirectional, jitter
        self.embedding = nn.Embedding(spec.num_tokens, embedding) if spec.kind == "text" else None
        num_inputs = {"text": embedding, "image": spec.shape[0] * spec.shape[-1]}.get(spec.kind, spec.shape[-1])
        num_directions = 2 if bidirectional else 1
        sizes = [num_inputs, *[hidden * num_directions] * num_layers]
        cell = checked_cell(cell)
        self.layers = nn.ModuleList(
            nn.ModuleList(Recurrence(cell, size, hidden) for _ in range(num_directions)) for size in sizes[:-1]
        )
        self.convolutions = nn.ModuleList(
            MaskedConvolution(before, after, kernel_size)
            for (before, after), kernel_size in zip(pairwise([num_inputs, *channels]), kernel_sizes, strict=True)
        )
        self.dropouts = nn.ModuleList(StepDropout(dropout, site) for site in range(num_layers - 1))
        self.last_dropout = (StepDropout if spec.task == "language" else Dropout)(dropout, site=num_layers)
        num_features = sizes[-1] * (2 if readout == "both" and spec.task != "language" else 1) + sum(channels[-1:])
        # States are small at first: a readout of them as they are takes three times as many steps to learn.
        self.norm = nn.LayerNorm(num_features)
        self.readout = nn.Linear(num_features, spec.num_outputs)
        if tied:
            assert self.embedding is not None
            nn.init.normal_(self.embedding.weight, std=hidden**-0.5)
            self.readout.weight = self.embedding.weight

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        if not context.training or self.jitter == 0 or not inputs.is_floating_point():
            return inputs
        site = len(self.layers) + 1
        noise = counter.normal(context.key(site), context.rows, tuple(inputs.shape[1:]), inputs.dtype)
        return inputs + noise * self.jitter

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """What is read out, normed: the last state, the mean of all states, or both, and the convolutions' means."""
        steps_BTI, mask_BT1, lengths_B = self._steps(inputs)
        states_BTH = self._states(steps_BTI, lengths_B, context)
        if self.spec.task == "language":  # whose dropout takes steps
            last_B1H = self.norm(last_of(states_BTH, lengths_B)).unsqueeze(1)
            return self.last_dropout(last_B1H, context).squeeze(1)
        features = []
        if self.readout_of != "mean":
            features.append(last_of(states_BTH, lengths_B))
        if self.readout_of != "last":
            features.append(mean_of(states_BTH, mask_BT1))
        if self.convolutions:
            local_BTC = steps_BTI
            for convolution in self.convolutions:
                local_BTC = convolution(local_BTC, mask_BT1)
            features.append(mean_of(local_BTC, mask_BT1))
        return self.last_dropout(self.norm(torch.cat(features, dim=1)), context)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("readout",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.features(inputs, context))

    def token_logits(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        steps_BTI, _, lengths_B = self._steps(tokens)
        return self.readout(self.last_dropout(self.norm(self._states(steps_BTI, lengths_B, context)), context))

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Forecasts of a few rows, evenly through the test rows."""
        spec = self.spec
        if spec.kind != "sequence" or spec.task != "regression" or len(spec.targets) < 2:
            return super().exhibits(batch)
        rows = torch.linspace(0, len(batch[0]) - 1, min(NUM_FORECASTS, len(batch[0]))).long()
        inputs, targets = (tensor[rows.to(tensor.device)] for tensor in batch)
        mean, std = (targets.new_tensor(values) for values in (spec.target_mean, spec.target_std))
        past = inputs[..., 0] * spec.input_std[0] + spec.input_mean[0]
        if inputs.shape[2] > 1:  # which of the channels is foretold is not known
            past = past[:, :0]
        shown = {"history": past, "targets": targets * std + mean, "predictions": self(inputs) * std + mean}
        return super().exhibits(batch) | {"forecast": shown}

    def generate(self, tokens: Tensor, num_tokens: int, *, temperature: float, seed: int) -> Tensor:
        """Continue texts, token by token: int64 [B, T], 0 after the end of a shorter one -> [B, T + num_tokens], alike.

        temperature: of the softmax that is drawn from; 0 for the most probable token
        Raises ConfigError if the network was not trained to continue texts, or if there is nothing to continue.
        """
        self.check_prompts(tokens, temperature)
        _, _, lengths_B = self._steps(tokens)
        assert lengths_B is not None
        assert self.embedding is not None
        texts_BT = F.pad(tokens, (0, num_tokens))
        rows_B = torch.arange(len(tokens), dtype=torch.int32, device=tokens.device)
        states: list[State | None] = [None] * len(self.layers)
        with torch.no_grad():
            for place in range(1, texts_BT.shape[1]):
                hidden_B1H = self.embedding(texts_BT[:, place - 1 : place])
                for index, directions in enumerate(self.layers):
                    hidden_B1H, states[index] = directions[0](hidden_B1H, states[index])  # type: ignore[index]
                logits_BV = self.readout(self.norm(hidden_B1H[:, 0]))
                drawn_B = sample(logits_BV, temperature, counter.fold(seed, place), rows_B)
                new_B = (place >= lengths_B) & (place < lengths_B + num_tokens)
                texts_BT[:, place] = torch.where(new_B, drawn_B, texts_BT[:, place])
        return texts_BT

    def _steps(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The steps [B, T, I], 0 after each sequence's end; the mask of those before it [B, T, 1], and how many they
        are [B]: None for images, which have no end."""
        match self.spec.kind:
            case "image":
                return inputs.transpose(1, 2).flatten(2), None, None
            case "text":
                assert self.embedding is not None
                steps_BTI = self.embedding(inputs)
                mask_BT, lengths_B = leading(inputs != 0)
            case _:
                steps_BTI = inputs
                mask_BT, lengths_B = leading(~inputs.isnan().any(dim=2))
        mask_BT1 = mask_BT.unsqueeze(2)
        return torch.where(mask_BT1, steps_BTI, 0.0), mask_BT1.to(steps_BTI.dtype), lengths_B

    def _states(self, steps_BTI: Tensor, lengths_B: Tensor | None, context: Context | None) -> Tensor:
        """The last layer's states [B, T, H]; those of the backward direction in the order in which it read."""
        hidden_BTH, states_BTH = steps_BTI, steps_BTI
        for index, directions in enumerate(self.layers):
            if index:
                hidden_BTH = self.dropouts[index - 1](hidden_BTH, context)
            states_BTH, _ = directions[0](hidden_BTH)  # type: ignore[index]
            if not self.bidirectional:
                hidden_BTH = states_BTH
                continue
            back_BTH, _ = directions[1](turned(hidden_BTH, lengths_B))  # type: ignore[index]
            if index < len(self.layers) - 1:
                hidden_BTH = torch.cat([states_BTH, turned(back_BTH, lengths_B)], dim=2)
            states_BTH = torch.cat([states_BTH, back_BTH], dim=2)
        return states_BTH


def _check_sizes(hidden: int, num_layers: int, embedding: int, channels: list[int], kernel_sizes: list[int]) -> None:
    if min(hidden, num_layers, embedding) < 1:
        raise ConfigError(
            "RNN needs positive hidden, num_layers and embedding, got "
            f"hidden={hidden}, num_layers={num_layers}, embedding={embedding}"
        )
    if any(size < 1 for size in channels):
        raise ConfigError(f"family.channels needs convolutions of at least one channel, got {list(channels)}")
    if len(channels) != len(kernel_sizes):
        raise ConfigError(
            f"family.kernel_sizes needs a size for each of the {len(channels)} convolutions, got {list(kernel_sizes)}"
        )
    for size in kernel_sizes:
        if size < 1 or size % 2 == 0:
            raise ConfigError(f"family.kernel_sizes needs odd numbers, got {size}; try {max(size + 1, 1) | 1}")


def _check_language(spec: DataSpec, bidirectional: bool, channels: list[int]) -> None:
    """What a network may not have that says what comes next."""
    if bidirectional:
        raise ConfigError(
            f"a language model reads forwards only, got family.bidirectional=true for {spec.name}; set it to false"
        )
    if channels:
        raise ConfigError(f"a language model has no convolutions, got family.channels={channels}; set it to []")
