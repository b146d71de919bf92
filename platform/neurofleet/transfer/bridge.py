"""Bridge: from the inputs of a new dataset, standardised by its spec, to those that an encoder was trained on.

    tabular      the encoder's columns, by their names
    image        gray to RGB or back (luminance of ITU-R BT.601), then resized
    sequence     as many steps: the first ones, or filled up; the channels have to be as many
    text         nothing: the data take over the encoder's vocabulary (`ParquetDataModule.speak`)
    categorical  nothing: the columns and their numbers of indices have to be the same

Numbers are standardised by the data's own statistics, or by those that the encoder was trained with:
`statistics=data` gives it what it is used to (mean 0, deviation 1) from data in other units; `statistics=base` the very
numbers that it would have seen of the same thing.

Shape suffixes: B batch, N numbers, C channels, Y and X pixels, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.spec import DataSpec

LUMINANCE = (0.299, 0.587, 0.114)
STATISTICS = ("data", "base")


class Bridge(nn.Module):
    """In: [B, *given.shape], standardised by `given`.  Out: [B, *wanted.shape].

    statistics: data or base, see above
    steps:      what it does, for the user
    Raises ConfigError for other statistics, MismatchError where no bridge leads across, with what would.
    """

    columns: Tensor | None
    mix: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, given: DataSpec, wanted: DataSpec, statistics: str) -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise ConfigError(f"family.statistics needs one of {', '.join(STATISTICS)}, got {statistics!r}")
        self.given, self.wanted = given, wanted
        self.steps: list[str] = []
        self._place = (-1, 1, 1) if given.kind == "image" else (-1,)
        for name in ("columns", "mix", "scale", "shift"):  # of no state dict: they follow from the specs
            self.register_buffer(name, None, persistent=False)
        if given.kind != wanted.kind:
            self._refuse(f"no bridge leads from {given.kind} to {wanted.kind}; take a base that was trained on it")
        match given.kind:
            case "tabular":
                self._match_columns()
            case "image":
                self._match_channels()
            case "sequence":
                self._match_steps()
            case "text":
                if (given.tokenizer, given.vocabulary) != (wanted.tokenizer, wanted.vocabulary):
                    self._refuse("the texts have to be cut up by the base's vocabulary: data.speak(base.spec)")
            case "categorical":
                if (given.inputs, given.cardinalities) != (wanted.inputs, wanted.cardinalities):
                    columns, sizes = (", ".join(map(str, one)) for one in (wanted.inputs, wanted.cardinalities))
                    self._refuse(
                        f"indices mean what they meant there; give the data the columns {columns} with {sizes} indices"
                    )
            case _:
                self._refuse("observations of an environment are no rows of a dataset")
        if statistics == "base" and given.input_mean:
            self._restandardise()

    def _refuse(self, remedy: str) -> None:
        def told(spec: DataSpec) -> str:
            shape = "x".join(map(str, spec.shape))
            return f"{spec.name} ({spec.kind} {shape}, {spec.tokenizer or ', '.join(spec.inputs[:4])})"

        raise MismatchError(f"a base trained on {told(self.wanted)} cannot take {told(self.given)}: {remedy}")

    def _match_columns(self) -> None:
        lacking = [name for name in self.wanted.inputs if name not in self.given.inputs]
        if lacking:
            self._refuse(f"it needs the columns {', '.join(lacking)} too; add them to the data, or train from scratch")
        if self.given.inputs != self.wanted.inputs:
            self.columns = torch.tensor([self.given.inputs.index(name) for name in self.wanted.inputs])
            self.steps.append(f"{len(self.columns)} of {len(self.given.inputs)} columns, by name")

    def _match_channels(self) -> None:
        (given, *size), (wanted, *other) = self.given.shape, self.wanted.shape
        if given != wanted:
            if (given, wanted) not in ((1, 3), (3, 1)):
                self._refuse(f"only gray and RGB can be bridged; make images of {wanted} channels")
            self.steps.append("gray to RGB" if wanted == 3 else "RGB to gray")
            if wanted == 1:
                self.mix = torch.tensor(LUMINANCE, dtype=torch.float64).view(self._place)
        if size != other:
            self.steps.append(f"resized from {size[0]}x{size[1]} to {other[0]}x{other[1]}")

    def _match_steps(self) -> None:
        (given, channels), (wanted, others) = self.given.shape, self.wanted.shape
        if channels != others:
            self._refuse(f"it needs {others} channels a step; give the data as many")
        if given != wanted:
            self.steps.append(
                f"the first {wanted} of {given} steps" if given > wanted else f"filled up to {wanted} steps"
            )

    def _restandardise(self) -> None:
        """One product and one sum for both standardisations, told exactly: means may be large beside deviations."""
        own_mean, own_std, base_mean, base_std = (
            torch.tensor(values, dtype=torch.float64).view(self._place)
            for values in (self.given.input_mean, self.given.input_std, self.wanted.input_mean, self.wanted.input_std)
        )
        if self.columns is not None:
            own_mean, own_std = own_mean[self.columns], own_std[self.columns]
        if self.mix is None:
            self.scale, self.shift = own_std / base_std, (own_mean - base_mean) / base_std
        else:
            self.shift = ((self.mix * own_mean).sum(dim=0, keepdim=True) - base_mean) / base_std
            self.mix = self.mix * own_std / base_std
        self.steps.append("standardised as the base's data")

    def forward(self, inputs: Tensor) -> Tensor:
        if self.columns is not None:
            inputs = inputs[:, self.columns]
        if self.mix is not None:
            inputs = (inputs * self.mix.to(inputs.dtype)).sum(dim=1, keepdim=True)
        if self.scale is not None:  # of gray images it makes RGB
            inputs = inputs * self.scale.to(inputs.dtype)
        if self.shift is not None:
            inputs = inputs + self.shift.to(inputs.dtype)
        match self.given.kind:
            case "image":
                return self._resized(inputs.expand(-1, self.wanted.shape[0], -1, -1))
            case "sequence":
                missing = self.wanted.shape[0] - self.given.shape[0]
                inputs = F.pad(inputs, (0, 0, 0, missing), value=torch.nan) if missing > 0 else inputs
                return inputs[:, : self.wanted.shape[0]]
            case _:
                return inputs

    def _resized(self, images_BCYX: Tensor) -> Tensor:
        size = self.wanted.shape[1:]
        if self.given.shape[1:] == size:
            return images_BCYX
        smaller = any(new < old for new, old in zip(size, self.given.shape[1:], strict=True))
        return F.interpolate(images_BCYX, size, mode="bilinear", align_corners=False, antialias=smaller)
