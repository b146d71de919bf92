"""Backbones: encoders out of installed packages, as modules that a config builds for the DataSpec of what they take.

Each has `features(inputs, context=None) -> [B, F]`, and `heads` (), since what its package puts behind the features is
not built.  None draws anything at random once it is built: whatever a package would do at random in training (dropout,
drop-connect), or with a whole batch at once (batch statistics), is off, because here randomness comes from the context
alone and a row's features may not depend on its neighbours.  So a backbone works in evaluation mode always, whatever
mode it was put in; gradients flow through it all the same.

Shape suffixes: B batch, T steps or tokens, C channels, F features.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.data.sources import library
from neurofleet.errors import ConfigError, MismatchError, nearest
from neurofleet.families._recurrence import Recurrence, last_of, leading
from neurofleet.families._supervised import embedding_spec
from neurofleet.spec import RESERVED_TOKENS, DataSpec, Kind
from neurofleet.steps import Context

POOLINGS = ("mean", "cls")
UNKNOWN_PIECE = "[UNK]"
GROUP = 8  # texts of like length that go through an encoder together; of 32 a step took three times as long
# What a config that came with weights may not say: where code lies, and other models to be fetched and put within.
_CODE = {"auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "backbone", "backbone_config"}
_CODE |= {"use_pretrained_backbone", "use_timm_backbone", "transformers_weights", "adapter_config"}
# What it says of how to compute, which is decided here.
OURS = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"}
OURS |= {"experts_implementation", "_experts_implementation", "dtype", "torch_dtype", "gradient_checkpointing"}


def takes(name: str, kind: Kind, shape: tuple[int, ...], num_features: int, source: str, **others: Any) -> DataSpec:
    """The spec of what a backbone takes, with its features as targets.

    others: fields of DataSpec: input_mean, input_std, tokenizer, vocabulary
    """
    column = {"image": "image", "text": "text", "sequence": "mels"}[kind]
    fields: dict[str, Any] = {field.name: () for field in dataclasses.fields(DataSpec)}
    fields |= {"name": name, "kind": kind, "task": "regression", "shape": shape, "inputs": (column,), "tokenizer": ""}
    fields |= {"split": "official", "num_rows": {"train": 0, "val": 0, "test": 0}, "source": source}
    return embedding_spec(DataSpec(**fields | others), num_features)


class Backbone(nn.Module):
    """Abstract: a subclass gives `encode`, and `num_features` where its config leaves no choice."""

    num_features: int | None = None

    def __init__(self, *, spec: DataSpec, kind: Kind, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        if spec.kind != kind or (shape and spec.shape != shape):
            wanted = f"{kind} of shape {shape}" if shape else kind
            raise MismatchError(
                f"{type(self).__name__} takes {wanted}, got {spec.name}, which is {spec.kind} of shape {spec.shape}"
            )
        self.spec = spec

    @property
    def heads(self) -> tuple[str, ...]:
        return ()

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """Inputs as `spec` says [B, *shape] -> features [B, F]."""
        learning = [part for part in self.modules() if part.training]
        for part in learning:
            part.training = False
        try:
            return self.encode(inputs)
        finally:  # Lightning warns of parts that are not in training mode when training starts
            for part in learning:
                part.training = True

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.features(inputs, context)

    def encode(self, inputs: Tensor) -> Tensor:
        """`features`, in evaluation mode."""
        raise NotImplementedError


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (Tan and Le 2019; the Lite variants, Liu 2020), pooled over the whole image.

    In: images [B, 3, 224, 224] of 0 to 255, standardised as `(pixel - 127) / 128`.  Out: [B, 1280], at least 0.

    Its batch norms use the statistics of the base always, and never learn new ones (their scales and shifts do learn);
    drop-connect is off.
    """

    num_features = 1280

    def __init__(self, *, spec: DataSpec) -> None:
        super().__init__(spec=spec, kind="image", shape=(3, 224, 224))
        self.net = library("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        self.net._fc = nn.Identity()  # of ImageNet's classes
        self._start()

    def _start(self) -> None:
        """Weights that keep the size of signals (He et al. 2015) without a base, where no batch norm sets it anew."""
        blocks = [block for block in self.net._blocks if block.id_skip and block._block_args.stride == 1]
        added = [block for block in blocks if block._block_args.input_filters == block._block_args.output_filters]
        linear = {block._project_conv for block in self.net._blocks}
        for convolution in (module for module in self.net.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear" if convolution in linear else "relu")
        with torch.no_grad():
            for block in added:  # what is added to a skipped signal makes it larger
                block._project_conv.weight /= len(added) ** 0.5

    def encode(self, inputs: Tensor) -> Tensor:
        return self.net.extract_features(inputs).mean(dim=(2, 3))


class SpeakerLSTM(Backbone):
    """The speaker encoder of Wan et al. (2018), as the package resemblyzer has it: three LSTMs, a ReLU layer, length 1.

    In: sequences [B, 160, 40] of mel energies (not their logarithms) every 10 ms; NaN after the end of a shorter one.
    Out: [B, 256], of length 1 and at least 0.
    """

    num_features = 256

    def __init__(self, *, spec: DataSpec) -> None:
        super().__init__(spec=spec, kind="sequence", shape=(160, 40))
        self.lstm = nn.ModuleList(Recurrence("lstm", size, 256) for size in (40, 256, 256))
        self.linear = nn.Linear(256, 256)

    def encode(self, inputs: Tensor) -> Tensor:
        _, lengths_B = leading(torch.isfinite(inputs).all(dim=2))
        hidden_BTF = torch.nan_to_num(inputs)
        for layer in self.lstm:
            hidden_BTF, _ = layer(hidden_BTF)
        return F.normalize(F.relu(self.linear(last_of(hidden_BTF, lengths_B))))


class HuggingFace(Backbone):
    """An encoder of the library transformers, built from a config that is data: of text, or of images.

    In: text: token numbers [B, T] as the spec says; the place of a token in `spec.vocabulary` is its id in the model.
        images: [B, C, H, W], standardised.
    Out: the last hidden states [B, F], pooled: `mean` over a text's own tokens (or all places of an image), `cls` the
        first one's.

    The model's own dropout is off always.

    Raises:
        ConfigError: a config that names code or other models, or one that transformers cannot build.
    """

    def __init__(self, *, spec: DataSpec, config: dict[str, Any], pooling: str) -> None:
        super().__init__(spec=spec, kind="text" if spec.kind == "text" else "image")
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling needs one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pooling = pooling
        settings = model_config(config)
        self.net: Any = _built(settings)
        if any(True for _ in getattr(self.net, "pooler", nn.Identity()).parameters()):
            self.net.pooler = nn.Identity()  # behind the states that are pooled here
        self._causal = any(getattr(module, "is_causal", False) for module in self.net.modules())
        if spec.kind == "text":
            self._padding, self._unknown = self._special_ids(settings)

    def _special_ids(self, settings: Any) -> tuple[int, int]:
        words, vocabulary = settings.vocab_size, self.spec.vocabulary
        if len(vocabulary) > words:
            raise MismatchError(f"the model knows {words} tokens, got a vocabulary of {len(vocabulary)}")
        unknown = vocabulary.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in vocabulary else None
        padding = settings.pad_token_id or 0
        return padding, padding if unknown is None else unknown

    def encode(self, inputs: Tensor) -> Tensor:
        if self.spec.kind == "image":
            with self._attention():
                return self._pooled(self.net(pixel_values=inputs).last_hidden_state, None)
        if _within_func() or torch.compiler.is_compiling():
            return self._of_texts(inputs)
        # Texts of like length go together: a short one does not pay for the longest.
        order = (inputs != 0).sum(dim=1).argsort(stable=True)
        groups = [self._of_texts(_trimmed(inputs[places])) for places in order.split(GROUP)]
        return torch.cat(groups)[order.argsort()]

    def _of_texts(self, inputs: Tensor) -> Tensor:
        there_BT = inputs != 0
        ids_BT = torch.where(inputs >= RESERVED_TOKENS, inputs - RESERVED_TOKENS, self._unknown)
        ids_BT = torch.where(there_BT, ids_BT, self._padding)
        mask = self._whole_mask(there_BT) if _within_func() else there_BT.long()
        with self._attention():
            return self._pooled(self.net(input_ids=ids_BT, attention_mask=mask).last_hidden_state, there_BT)

    def _whole_mask(self, there_BT: Tensor) -> Tensor:
        """What transformers makes of a mask of tokens, [B, 1, T, T], without a look at its values."""
        length = there_BT.shape[1]
        seen_TT = torch.ones(length, length, dtype=torch.bool, device=there_BT.device)
        seen = there_BT[:, None, None, :] & (seen_TT.tril() if self._causal else seen_TT)
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        """Within torch.func attention is written out: torch's own function has no rule for `torch.func.vmap`."""
        settings = self.net.config
        before = settings._attn_implementation
        settings._attn_implementation = "eager" if _within_func() else before
        try:
            yield
        finally:
            settings._attn_implementation = before

    def _pooled(self, states: Tensor, there_BT: Tensor | None) -> Tensor:
        if states.ndim == 4:  # a map of channels [B, C, H, W]
            return states.mean(dim=(2, 3))
        if self.pooling == "cls":
            return states[:, 0]
        if there_BT is None:
            return states.mean(dim=1)
        weights_BT1 = there_BT.to(states.dtype).unsqueeze(2)
        return (states * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)


def _within_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _trimmed(inputs: Tensor) -> Tensor:
    """[B, T] without the columns that are padding in all rows."""
    return inputs[:, : max(int((inputs != 0).sum(dim=1).max()), 1)] if len(inputs) else inputs


def model_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers for the plain keys of a config.json.

    Raises:
        ConfigError: it names code, other models or a type that transformers does not know.
    """
    _refuse_code(config, "config")
    transformers = library("transformers")
    plain = {key: value for key, value in config.items() if key not in OURS}
    kind = plain.pop("model_type", None)
    known = transformers.CONFIG_MAPPING.keys()
    if kind not in known:
        raise ConfigError(
            f"config.model_type needs one that transformers has, got {kind!r}; {nearest(str(kind), known)}"
        )
    try:
        return transformers.AutoConfig.for_model(kind, **plain)
    except _faults() as error:
        raise ConfigError(f"transformers refuses the config of this {kind}: {error}") from None


def _faults() -> tuple[type[Exception], ...]:
    """What transformers raises at settings of a wrong type or size."""
    strict: type[Exception] = library("huggingface_hub").errors.StrictDataclassError
    return (strict, ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


def _refuse_code(node: Any, where: str) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in _CODE and value:
                raise ConfigError(
                    f"{where}.{key} names code or another model, which a base may not bring along; take a model of "
                    "transformers' own, without it"
                )
            _refuse_code(value, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            _refuse_code(value, f"{where}[{index}]")


def _built(settings: Any) -> nn.Module:
    """The model with new weights; attention by torch's own function where the model has that way."""
    transformers = library("transformers")
    try:
        return transformers.AutoModel.from_config(settings, trust_remote_code=False, dtype=torch.float32)
    except _faults() as error:
        raise ConfigError(f"transformers cannot build a {settings.model_type} from its config: {error}") from None
