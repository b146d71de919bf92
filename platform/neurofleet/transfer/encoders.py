"""Encoders: what a base's network is without what followed its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neurofleet.spec import DataSpec
from neurofleet.steps import Context

INITIALIZERS = ("torch.nn.init", "transformers.initialization")  # the latter stands in for the former while it builds
DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)  # what some initializers call without a word to overrides
NUM_TRIED = 2  # rows: as few as show what an encoder gives


class Features(nn.Module):
    """What an encoder makes of inputs as a forward, for `functional_call`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor, context: Context | None) -> Tensor:
        return self.encoder.features(inputs, context)  # type: ignore[operator]


def as_spec(values: Mapping[str, Any], spec: DataSpec) -> DataSpec:
    """An encoder's spec; the vocabulary of a text, which is long, stands in the data's spec alone."""
    vocabulary = {"vocabulary": list(spec.vocabulary)} if values["kind"] == "text" else {}
    return DataSpec.from_dict({**values, **vocabulary})


def drop_heads(encoder: nn.Module) -> dict[str, torch.Size]:
    """Delete what of an encoder's network follows its features; the shapes of its parameters and buffers."""
    heads: tuple[str, ...] = encoder.heads  # type: ignore[assignment]
    before = {name: tensor.shape for name, tensor in encoder.state_dict().items()} if heads else {}
    for name in heads:
        *place, last = name.split(".")
        delattr(encoder.get_submodule(".".join(place)), last)
    left = encoder.state_dict() if heads else {}
    return {name: shape for name, shape in before.items() if name not in left}


def num_features(encoder: nn.Module, spec: DataSpec) -> int:
    """Of a row: as many as the encoder says that it gives, or found by trying."""
    said = getattr(encoder, "num_features", None)
    return said if isinstance(said, int) else tried(encoder, spec).shape[1]


@torch.no_grad()
def tried(encoder: nn.Module, spec: DataSpec) -> Tensor:
    """Features of as few rows as will do; raises ConfigError where the encoder has none."""
    indices = spec.kind in ("text", "categorical")
    like = next(encoder.parameters(), torch.empty(0))  # a linear model's features are its inputs
    rows = torch.zeros(NUM_TRIED, *spec.shape, dtype=torch.int64 if indices else like.dtype, device=like.device)
    if spec.kind == "text":  # of one token; the rest is padding, which costs the less
        rows[:, 0] = 1
    features: Tensor = encoder.features(rows)  # type: ignore[operator]
    return features


class Unfilled(TorchFunctionMode):
    """Within it initializers leave parameters as they are: for a network whose weights are put in afterwards."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) in INITIALIZERS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in DRAWS and isinstance(args[0], nn.Parameter):  # a buffer may be no part of what is put in
            return args[0]
        return func(*args, **kwargs)
