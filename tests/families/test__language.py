"""What language models share: what they are scored by, whatever the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neurofleet import experiment as experiments
from neurofleet.families._language import LanguageFamily
from neurofleet.spec import DataSpec


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_held_out_bits_are_over_all_scored_tokens(name: str, make_spec: Callable[..., DataSpec]) -> None:
    """A text with few scored tokens weighs little, however the texts are cut into batches."""
    text: dict[str, Any] = {"kind": "text", "vocabulary": tuple("abcdefgh"), "tokenizer": "characters"}
    spec = make_spec("language", (9,), targets=("y",), **text)
    family: Any = experiments.build_family(experiments.compose([f"family={name}"]), spec).double()
    assert isinstance(family, LanguageFamily)
    tokens = torch.randint(2, 10, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens[1, 6:] = 0
    given = torch.tensor([1, 5, 3])
    with torch.no_grad():
        logs = family.token_logits(tokens[:, :-1]).log_softmax(dim=-1)
    rows = [
        [-logs[row, place - 1, tokens[row, place]].item() for place in scored]
        for row, scored in enumerate([range(1, 9), range(5, 6), range(3, 9)])
    ]
    found: dict[str, float] = {}
    family.log = lambda name, value, **_: found.update({name: float(value)})
    for part in (slice(0, 1), slice(1, 3)):
        family.validation_step((tokens[part], given[part]), 0)
    family.on_validation_epoch_end()
    assert found == pytest.approx(
        {
            "val/loss": sum(sum(nats) / len(nats) for nats in rows) / 3,
            "val/bits_per_character": sum(map(sum, rows)) / 15 / math.log(2),
        },
        rel=1e-10,
    )
