"""Finetuned: a network that learns a new task on an encoder, which mostly knows something already.

    outputs = head(encoder.features(bridge(inputs)))

The encoder is a family's network or a packaged backbone, without what follows its features; the head is new.  What of
the encoder learns, and when, is the method (see `methods`).  Where none of it does, features are computed once, and an
epoch costs what the head costs.

Against overfitting, beside the head's dropout: `l2_sp` holds the encoder to where it started (Li, Grandvalet and
Davoine 2018, "Explicit inductive bias for transfer learning with convolutional networks"); `mixup` trains the head
between rows (Zhang et al. 2018, on features as in Verma et al. 2019, "Manifold mixup").  A row's partner is drawn from
all training rows by (seed, step, row), so that a result does not depend on how rows are shared among workers.

Shape suffixes: B batch, F features, N training rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import weakref
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from neurofleet import checkpoint, counter
from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._inner import StartsFromInputs
from neurofleet.families._layers import Dropout, RandomAffine, is_off
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context
from neurofleet.transfer import adapters, base, methods
from neurofleet.transfer.bridge import Bridge
from neurofleet.transfer.encoders import Features, Unfilled, as_spec, drop_heads, num_features, tried
from neurofleet.transfer.stored import need_fit

AFFINE_SITE, PARTNER_SITE, SHARE_SITE, HEAD_SITE = range(5000, 5004)  # beyond those of any encoder
SHOWN_ROWS, SHOWN_AT_ONCE = 1000, 64  # of the map of features
# Encoders that never change, by what makes them equal: the trials of a study need one copy, not one each.
_SETTLED: weakref.WeakValueDictionary[str, Features] = weakref.WeakValueDictionary()


class Finetuned(SupervisedFamily):
    """An encoder and a head.

    In: [B, *spec.shape].  Out: [B, spec.num_outputs] logits or values.
    Loss: by task, see `neurofleet.families._supervised`; and `l2_sp` / 2 times the squared distance from the start.

    encoder:         a family or a backbone, built for data of `encoder_spec`
    encoder_spec:    a DataSpec as a dict; a text's vocabulary is that of `spec`
    base:            `uri` and `sha256` of the weights to start from
    random_start:    take the base's architecture alone, as the control of a fine-tuning does
    strict:          whether the base has to have all of the encoder's weights; what it lacks has a random start
    statistics:      data or base, see `bridge`
    method:          frozen, full, probe_then_full, gradual, lora or ia3, see `methods`
    share:           of training, after which all of the encoder learns (probe_then_full, gradual)
    layer_decay:     factor on the learning rate from each block of the encoder to the one below it; the head has 1
                     (discriminative rates, Howard and Ruder 2018)
    rank:            of the updates of lora
    l2_sp:           weight of the squared distance of the encoder's parameters from their start
    mixup:           the most that another row may have in one, in [0, 0.5]
    hidden:          units of the head's hidden layers; empty for a linear head
    dropout:         rate before each layer of the head
    label_smoothing: of classification, in training
    augmentation:    of images: degrees, scale, translation of random affine distortions in training; zeros for none
    """

    shardable = False
    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "categorical", "image", "sequence", "text"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        encoder: Callable[..., Any],
        encoder_spec: Mapping[str, Any],
        base: Mapping[str, str],
        random_start: bool,
        strict: bool,
        statistics: str,
        method: str,
        share: float,
        layer_decay: float,
        rank: int,
        l2_sp: float,
        mixup: float,
        hidden: list[int],
        dropout: float,
        label_smoothing: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        methods.check(method, share=share, layer_decay=layer_decay, rank=rank, l2_sp=l2_sp, mixup=mixup)
        if l2_sp and random_start:
            raise ConfigError(f"method.l2_sp holds to a base's weights, got {l2_sp} with a random start; set it to 0.0")
        if any(units < 1 for units in hidden):
            raise ConfigError(f"head.hidden needs numbers of at least 1, got {list(hidden)}")
        self.base, self.random_start, self.strict, self.method = base, random_start, strict, method
        self.share, self.layer_decay, self.rank = share, layer_decay, rank
        self.l2_sp, self.mixup = l2_sp, mixup
        self.encoder_spec = as_spec(encoder_spec, spec)
        self.bridge = Bridge(spec, self.encoder_spec, statistics)
        whole = strict and not random_start  # `begin` puts all of its weights in
        # Of a generator of its own, so that the head begins alike with a base and from a random start.
        with torch.random.fork_rng(devices=[]), Unfilled() if whole else contextlib.nullcontext():
            self.encoder = encoder(spec=self.encoder_spec)
        self.dropped = drop_heads(self.encoder)
        self._features = (Features(self.encoder),)  # in a tuple: its parameters stand in `encoder` already
        names = [name for name, _ in self.encoder.named_parameters()]
        self.blocks = [names] if names else []
        if method == "gradual" or layer_decay != 1:  # else their order, which a trial shows, says nothing
            self.blocks = methods.blocks(self.encoder, lambda: tried(self.encoder, self.encoder_spec))
        if method == "frozen":
            self.encoder.requires_grad_(False)
        sizes = [num_features(self.encoder, self.encoder_spec), *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.dropouts = nn.ModuleList(Dropout(dropout, HEAD_SITE + index) for index in range(len(sizes)))
        self.readout = nn.Linear(sizes[-1], spec.num_outputs)
        self.distort = RandomAffine.from_config(augmentation, spec, site=AFFINE_SITE)
        self._settles = method == "frozen" and not any(augmentation.values())
        described = repr((encoder, self.encoder_spec, statistics))
        self._architecture = hashlib.sha256(described.encode()).hexdigest()
        self._seed = 0
        self._rows: Batch | None = None  # to mix with
        self._came: dict[str, Tensor] = {}  # what the base gave
        self._start: dict[str, Tensor] = {}  # of the encoder's parameters, to be held to

    # Where it starts.

    def begin(self, seed: int) -> None:
        self._seed = seed
        if not self.random_start:
            found = base.weights(self.base["sha256"], self.base["uri"])
            expected = self.encoder.state_dict()
            uri = self.base["uri"]
            fit = need_fit(expected, found, heads=tuple(self.dropped), uri=uri, allow_missing=not self.strict).kept
            checkpoint.fill({name: expected[name] for name in fit}, found)
            self._came = {name: found[name] for name in fit}
        if self.method in methods.ADAPTERS:
            run = functools.partial(tried, self.encoder, self.encoder_spec)
            adapters.put_in(self.encoder, self.method, rank=self.rank, seed=seed, run=run)
            self.encoder.to(self.readout.weight.dtype)

    def start(self, batch: Batch) -> None:
        if self.random_start and not self.settled and isinstance(self.encoder, StartsFromInputs):
            self.encoder.start_from(self.bridge(batch[0]))
        self._rows = batch if self.mixup else None
        if self.l2_sp:  # a view of what all trials start from, where it has their type
            named = self.encoder.named_parameters()
            self._start = {name: self._came[name].to(one) for name, one in named if name in self._came}

    def origins(self) -> tuple[dict[str, Tensor], dict[str, torch.Size], dict[str, Tensor]]:
        """Tensors that came with the base, the shapes of those of it that were dropped, and new tensors, by name."""
        state = self._features[0].state_dict() | self.state_dict()
        came = {f"encoder.{name}" for name in self._came}
        kept = {name: tensor for name, tensor in state.items() if name.replace(".base_layer.", ".") in came}
        new = {name: tensor for name, tensor in state.items() if name not in kept}
        return kept, {f"encoder.{name}": shape for name, shape in self.dropped.items()}, new

    def released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.method in methods.ADAPTERS:
            return adapters.merged(self.encoder, state, "encoder.")
        return {**state, **self._features[0].state_dict()}  # where the encoder has left the modules

    # What is computed once.

    @property
    def settled_key(self) -> str | None:
        if not self._settles:
            return None
        start = "random" if self.random_start else self.base["sha256"]
        start += "" if self.strict and not self.random_start else f" {self._seed}"  # what lacks has a random start too
        return f"{start} {self._architecture} {self.readout.weight.dtype}"

    def settle_down(self) -> None:
        """The encoder leaves the modules: neither checkpoints nor the trials of a study need copies of it."""
        super().settle_down()
        self._features = (_SETTLED.setdefault(str(self.settled_key), self._features[0]),)
        del self.encoder

    def settle(self, inputs: Tensor) -> Tensor:
        self._features[0].to(inputs.device)
        return self._embed(inputs, None)

    # The network.

    def _embed(self, inputs: Tensor, context: Context | None) -> Tensor:
        """[B, *spec.shape] -> [B, F]; parameters whose turn has not come yet are constants."""
        training = context is not None and context.training
        bridged = self.bridge(inputs)
        waiting = self._waiting(context.progress) if context is not None and training else []
        if not waiting:
            return self._features[0](bridged, context if training else None)
        if len(waiting) == len(self.blocks):
            with torch.no_grad():  # as long as none of it learns, it is the encoder that it will be at serving time
                return self._features[0](bridged, None)
        parameters = dict(self.encoder.named_parameters())
        constants = {f"encoder.{name}": parameters[name].detach() for names in waiting for name in names}
        return functional_call(self._features[0], constants, (bridged, context))

    def _waiting(self, progress: float) -> list[list[str]]:
        """The blocks whose turn has not come; looks at progress only where it matters."""
        if self.method in ("full", *methods.ADAPTERS):
            return []
        if self.method == "frozen":
            return self.blocks
        thaws = methods.thaws(self.method, self.share, len(self.blocks))
        return [names for names, thaw in zip(self.blocks, thaws, strict=True) if thaw > progress]

    def _answer(self, features_BF: Tensor, context: Context | None) -> Tensor:
        for layer, dropout in zip(self.layers, self.dropouts[:-1], strict=True):
            features_BF = F.relu(layer(dropout(features_BF, context)))
        return self.readout(self.dropouts[-1](features_BF, context))

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return inputs if self.settled else self._embed(inputs, context)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("layers", "dropouts", "readout")

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self._answer(self.features(inputs, context), context)

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return inputs if self.settled else self.distort(inputs, context)

    # The learning rule.

    def objective(self, batch: Batch, context: Context) -> Objective:
        mixes = self.mixup > 0 and context.training
        objective = self._mixed(batch, context) if mixes else super().objective(batch, context)
        if is_off(self.l2_sp) or not context.training:
            return objective
        if not self._start:
            raise RuntimeError("method.l2_sp needs what to hold to; call family.start(rows)")
        parameters = dict(self.encoder.named_parameters())
        distance = sum((parameters[name] - start).square().sum() for name, start in self._start.items())
        return dataclasses.replace(objective, loss=objective.loss + 0.5 * self.l2_sp * distance)

    def _mixed(self, batch: Batch, context: Context) -> Objective:
        if self._rows is None:
            raise ConfigError("method.mixup needs the training rows to mix with; call family.start(rows)")
        inputs, targets = batch
        draws_B = counter.uniform(context.key(PARTNER_SITE), context.rows, ())
        partners_B = (draws_B * len(self._rows[1])).long()
        # One pass for both.  Partners have rows of their own, below zero, so that they draw apart from the batch.
        joint = dataclasses.replace(context, rows=torch.cat([context.rows, -1 - context.rows]))
        both = self.augment(torch.cat([inputs, self._rows[0][partners_B]]), joint)
        own, other = self.features(both, joint).chunk(2)
        share = self.mixup * counter.uniform(context.key(SHARE_SITE), torch.zeros_like(context.rows[:1]), ()).to(
            own.dtype
        )
        outputs = self._answer(own + share * (other - own), context)
        losses = self.loss(outputs, targets, context), self.loss(outputs, self._rows[1][partners_B], context)
        loss = (losses[0] + share * (losses[1] - losses[0])).squeeze()
        return Objective(loss, self._quick_metrics(outputs, targets) if context.measure else {})

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        shown = super().exhibits(batch)
        if self.settled or self.random_start:
            return shown
        inputs, targets = (tensor[:SHOWN_ROWS] for tensor in batch)
        parts = inputs.split(SHOWN_AT_ONCE)
        after = torch.cat([self._embed(part, None) for part in parts])
        with adapters.switched_off(self.encoder):
            start = {}
            if self.method not in methods.ADAPTERS:  # else the weights are still those of the base
                own = self.encoder.state_dict()
                start = {f"encoder.{name}": came.to(own[name]) for name, came in self._came.items()}
            network = self._features[0]
            before = torch.cat([functional_call(network, start, (self.bridge(part), None)) for part in parts])
        return shown | {"embedding_map": {"before": before, "after": after, "targets": targets}}

    def make_optimizer(self) -> torch.optim.Optimizer:
        if self.layer_decay == 1:
            return super().make_optimizer()
        names = dict(self.encoder.named_parameters())
        learning = [[names[name] for name in block if names[name].requires_grad] for block in self.blocks]
        encoder = {id(one) for block in learning for one in block}
        head = [one for one in self.parameters() if one.requires_grad and id(one) not in encoder]
        # Depth counts what learns: a block of nothing else is none.
        learning = [block for block in reversed(learning) if block]
        groups = [(head, 1.0)] + [(block, self.layer_decay**depth) for depth, block in enumerate(learning, start=1)]
        optimizer = self.recipe.optimizer([{"params": block} for block, _ in groups])  # type: ignore[misc]
        for group, (_, factor) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = group["initial_lr"] = group["lr"] * factor
        return optimizer
