"""Adapters beside weights that stay, by peft: put in before training, merged into the weights after it.

Their own dropout stays off: what is random in training comes from the context alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurofleet.errors import ConfigError

NAME = "default"  # peft's, of the one adapter
LAYERS: dict[str, tuple[type[nn.Module], ...]] = {"lora": (nn.Linear, nn.Conv2d), "ia3": (nn.Linear,)}
FEWEST_ADAPTED = 0.25  # of a module's parameters; half of a small language model's are embeddings


def put_in(module: nn.Module, method: str, *, rank: int, seed: int, run: Callable[[], object]) -> None:
    """Give the linear and convolutional layers that `run()` calls an adapter each; only these can learn then.

    Raises:
        ConfigError: peft is not installed, or there is no layer that takes an adapter.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(
            f"method={method} needs peft; install it with: pip install -c requirements.lock 'neurofleet[pretrained]'"
        ) from None
    names = _called(module, run, LAYERS[method])
    if not names:
        raise ConfigError(
            f"method={method} needs linear layers to adapt, got {type(module).__name__} without one that its features "
            "pass through; take method=full or method=gradual"
        )
    exactly = "|".join(map(re.escape, names))  # of a list of names peft would take whatever ends in one
    config: Any
    if method == "lora":
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=exactly)
    else:
        config = peft.IA3Config(target_modules=exactly, feedforward_modules=[])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, adapter_name=NAME)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def adaptable(module: nn.Module, run: Callable[[], object]) -> bool:
    """Whether there is peft, and the layers that low-rank updates can stand beside hold a good part of the module."""
    if importlib.util.find_spec("peft") is None:
        return False
    names = set(_called(module, run, LAYERS["lora"]))
    held = sum(one.weight.numel() for name, one in module.named_modules() if name in names)
    return held >= FEWEST_ADAPTED * sum(one.numel() for one in module.parameters())


def _called(module: nn.Module, run: Callable[[], object], kinds: tuple[type[nn.Module], ...]) -> list[str]:
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    layers = [(name, one) for name, one in module.named_modules() if type(one) in kinds]
    handles = [one.register_forward_pre_hook(note(name)) for name, one in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in layers if name in called]


def is_adapter(name: str) -> bool:
    return any(part in ("lora_A", "lora_B", "ia3_l") for part in name.split("."))


@contextlib.contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """While it lasts, the module is what it was before adapters were put in; one without any is not touched."""
    # A whole model of transformers has a method of that name, too, which does something else.
    layers: list[Any] = [one for one in module.modules() if hasattr(one, "base_layer")]
    for one in layers:
        one.enable_adapters(False)
    try:
        yield
    finally:
        for one in layers:
            one.enable_adapters(True)


def merged(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict of the module around `module` (which stands in it as `prefix`), as if there had never been
    adapters: what they learnt is in the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = {}
    for name, tensor in state.items():
        if not is_adapter(name):
            plain[name.replace(".base_layer.", ".")] = tensor
    for name, layer in module.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        weight = f"{prefix}{name}.weight"
        if hasattr(layer, "get_delta_weight"):
            plain[weight] = plain[weight] + layer.get_delta_weight(NAME).to(plain[weight])
            continue
        scale = state[f"{prefix}{name}.ia3_l.{NAME}"]  # [outputs, 1]: it scales what the layer gives, its bias too
        plain[weight] = plain[weight] * scale
        if f"{prefix}{name}.bias" in plain:
            plain[f"{prefix}{name}.bias"] = plain[f"{prefix}{name}.bias"] * scale.reshape(-1)
    return plain
