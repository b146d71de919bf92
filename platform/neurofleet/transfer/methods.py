"""Which part of an encoder learns, and when: blocks of its parameters from the input to the features.

frozen           never: the head learns on features that are computed once (a linear probe)
full             all of it, from the first step
probe_then_full  the head alone at first, then all of it (LP-FT: Kumar et al. 2022, "Fine-tuning can distort
                 pretrained features and underperform out-of-distribution")
gradual          the head alone at first, then block after block from the top (ULMFiT: Howard and Ruder 2018)
lora, ia3        low-rank updates (Hu et al. 2022) or rescaled activations (Liu et al. 2022) beside weights that stay,
                 by peft; merged into the weights when training is over

`configs/method/NAME.yaml` gives the settings that a method heeds, and null for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import yaml
from torch import nn

from neurofleet import paths
from neurofleet.errors import ConfigError, nearest
from neurofleet.spec import DataSpec

METHODS = ("frozen", "full", "probe_then_full", "gradual", "lora", "ia3")
ADAPTERS = ("lora", "ia3")
FEW_ROWS = 64  # of each class, or in each tenth of a regression's targets
MANY_PARAMETERS = 1_000_000  # of an encoder
IDLE: Mapping[str, float] = {"share": 0.0, "layer_decay": 1.0, "rank": 1, "l2_sp": 0.0, "mixup": 0.0}
"""What a family is given as the settings that its method does not heed."""
LAST_PART, STILL_FALLING = 0.2, 0.05


def settings(method: str, given: Mapping[str, Any], *, asked: str | None = None) -> dict[str, Any]:
    """All settings of a method: those that are given, its own where null is, and `IDLE` where it heeds none.

    asked: what was asked for, where the method was chosen here

    Raises:
        ConfigError: a setting that it does not heed.
    """
    own = _own(method)
    heeded = [key for key, value in own.items() if value is not None]
    who = f"{asked}, which chose {method}," if asked else method
    for key in (key for key, value in given.items() if value is not None and key not in heeded):
        heeding = ", ".join(name for name in METHODS if _own(name)[key] is not None)
        raise ConfigError(
            f"method={who} heeds {', '.join(heeded)}, got method.{key}={given[key]}, which it does not; leave that "
            f"out, or take a method that does: {heeding}"
        )
    chosen = {key: own[key] if value is None else value for key, value in given.items()}
    return {key: IDLE[key] if value is None else value for key, value in chosen.items()}


def _own(method: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((paths.shipped("configs") / "method" / f"{method}.yaml").read_text())
    del values["name"]
    return values


def check(method: str, *, share: float, layer_decay: float, rank: int, l2_sp: float, mixup: float) -> None:
    """Raise ConfigError for settings of a fine-tuned family that cannot be, or that its method would not heed."""
    if method not in METHODS:
        raise ConfigError(f"method.name needs a known method, got {method!r}; {nearest(method, METHODS)}")
    if not 0 <= share < 1:
        raise ConfigError(f"method.share is a part of training and needs 0 <= share < 1, got {share}")
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"method.layer_decay needs 0 < layer_decay <= 1, got {layer_decay}")
    if rank < 1:
        raise ConfigError(f"method.rank needs at least 1, got {rank}")
    if not 0 <= l2_sp < math.inf:
        raise ConfigError(f"method.l2_sp needs a number of at least 0, got {l2_sp}")
    if not 0 <= mixup <= 0.5:
        raise ConfigError(f"method.mixup needs 0 <= mixup <= 0.5, got {mixup}")
    if method in ("frozen", *ADAPTERS) and (layer_decay != 1 or l2_sp):
        raise ConfigError(
            f"method.layer_decay and method.l2_sp need a method that moves the encoder's weights, got {method} with "
            f"layer_decay={layer_decay}, l2_sp={l2_sp}; set them to 1.0 and 0.0, or take full or gradual"
        )


def unconverged(history: Sequence[Mapping[str, float]], max_epochs: int) -> str | None:
    """What to say of a head alone that was still learning when its epochs were over; None where it was not.

    history: of the run, a row a validation
    """
    last = history[-1]
    before = [row for row in history if row["epoch"] <= (1 - LAST_PART) * last["epoch"]]
    if not before or last["epoch"] < max_epochs:  # stopped early: it no longer got better
        return None
    loss, earlier = last["train/loss_epoch"], before[-1]["train/loss_epoch"]
    spoilt = last.get("val/loss", -math.inf) > min(row.get("val/loss", math.inf) for row in history)
    if spoilt or loss > (1 - STILL_FALLING) * earlier:
        return None
    return (
        f"the head has not converged: its training loss fell from {earlier:.4f} to {loss:.4f} in the last "
        f"{last['epoch'] - before[-1]['epoch']:.0f} of {max_epochs} epochs; raise trainer.max_epochs or optimizer.lr"
    )


def choose(spec: DataSpec, num_parameters: int, adaptable: Callable[[], bool]) -> tuple[str, str]:
    """The method for so many rows and such an encoder, and the reason.

    adaptable: whether most of what an encoder computes can be adapted by low-rank updates; asked where it matters
    """
    num_groups = max(len(spec.classes), 1) if spec.task in ("binary", "multiclass") else 10
    rows = spec.num_rows["train"] / num_groups
    each = "a class" if spec.task in ("binary", "multiclass") else "in each tenth of the targets"
    if rows <= FEW_ROWS:
        return (
            "frozen",
            f"{rows:.3g} rows {each} are few: features that stay cannot be overfitted, only the head learns",
        )
    if num_parameters > MANY_PARAMETERS:
        large = f"{rows:.3g} rows {each} can move an encoder, but {num_parameters / 1e6:.1f} M parameters would "
        if adaptable():
            return "lora", f"{large}cost much and forget: low-rank updates learn, the weights stay"
        return "gradual", f"{large}forget, and have no linear layers for updates of low rank: they learn from the top"
    return "probe_then_full", (
        f"{rows:.3g} rows {each} are enough for all {num_parameters:,} parameters; the head learns first, so that a "
        "random one does not spoil the features"
    )


def thaws(method: str, share: float, num_blocks: int) -> list[float]:
    """When in training, by progress in [0, 1], each block begins to learn; infinity for never.  The last block is the
    one next to the head."""
    match method:
        case "full":
            return [0.0] * num_blocks
        case "probe_then_full":
            return [share] * num_blocks
        case "gradual":
            return [share * (num_blocks - index) / num_blocks for index in range(num_blocks)]
        case _:
            return [math.inf] * num_blocks


def blocks(module: nn.Module, run: Callable[[], object]) -> list[list[str]]:
    """Names of the module's parameters, divided as its layers are, in the order in which `run()` uses these.

    A block is a layer of a list (`layers.0`, `encoder.layer.3`) or what else has a name below the one that all share;
    what holds vectors alone, as norms do, belongs to the block before it.
    """
    called: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            called.setdefault(name, len(called))

        return hook

    handles = [
        one.register_forward_pre_hook(note(name))
        for name, one in module.named_modules()
        if any(True for _ in one.parameters(recurse=False))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[str, list[str]] = {}
    places: dict[str, float] = {}
    last = -1.0
    levels = zip(*(name.split(".")[:-1] for name, _ in module.named_parameters()), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    for name, _ in module.named_parameters():
        block = _block_of(name, shared)
        place = called.get(name.rpartition(".")[0])
        groups.setdefault(block, []).append(name)
        if place is None:  # used without being called: it stands where it was registered
            place_or_last = last + 0.5
        else:
            place_or_last = last = float(place)
        places[block] = min(places.get(block, math.inf), place_or_last)
    ordered = [groups[block] for block in sorted(groups, key=lambda block: places[block])]
    parameters = dict(module.named_parameters())
    merged: list[list[str]] = []
    for names in ordered:
        if merged and all(parameters[name].ndim < 2 for name in names):
            merged[-1] += names
        else:
            merged.append(names)
    return merged


def _block_of(name: str, shared: int) -> str:
    parts = name.split(".")[:-1] or [name]
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: (shared if number is None else number) + 1])
