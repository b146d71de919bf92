"""The recurrent network against torch's own modules, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families.rnn import RNN
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
MODULES: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
LENGTHS = (3, 7, 1, 5)
BRANCH = {"channels": [6, 4], "kernel_sizes": [5, 3]}


def make(spec: DataSpec, **settings: Any) -> RNN:
    chosen: dict[str, Any] = {
        "cell": "gru",
        "hidden": 5,
        "num_layers": 2,
        "bidirectional": False,
        "readout": "both",
        "embedding": 4,
        "tied": False,
        "channels": [],
        "kernel_sizes": [],
        "dropout": 0.0,
        "jitter": 0.0,
        "label_smoothing": 0.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        family = RNN(spec=spec, **chosen | settings).double()
        with torch.no_grad():
            for weight in family.parameters():  # so that nothing is zero or one
                weight.add_(torch.randn_like(weight) * 0.1)
    return family


def sequences(num_steps: int = 7, seed: int = 0) -> Tensor:
    """Two channels; NaN after each sequence's end."""
    values = torch.randn(len(LENGTHS), num_steps, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(LENGTHS):
        values[row, length:] = torch.nan
    return values


@pytest.fixture
def text_spec(make_spec: MakeSpec) -> Callable[..., DataSpec]:
    def make_text(task: str, **changes: Any) -> DataSpec:
        settings = {"kind": "text", "vocabulary": tuple("abcdef"), "tokenizer": "characters"}
        return make_spec(task=task, shape=(9,), inputs=("text",), **settings | changes)

    return make_text


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_forward_is_that_of_torchs_modules_on_packed_sequences(
    cell: str, bidirectional: bool, make_spec: MakeSpec
) -> None:
    family = make(make_spec(shape=(7, 2)), cell=cell, bidirectional=bidirectional)
    module = MODULES[cell](2, 5, num_layers=2, bidirectional=bidirectional, batch_first=True).double()
    weights = {
        name.removesuffix("_l0") + f"_l{layer}" + "_reverse" * direction: weight
        for layer, directions in enumerate(family.layers)
        for direction, recurrence in enumerate(directions)  # type: ignore[arg-type]
        for name, weight in recurrence.named_parameters()
    }
    module.load_state_dict(weights)
    inputs = sequences()
    packed = nn.utils.rnn.pack_padded_sequence(
        inputs.nan_to_num(), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    outputs, last = module(packed)
    hidden = last[0] if cell == "lstm" else last
    last_states = torch.cat(list(hidden.unflatten(0, (2, -1))[-1]), dim=1)
    padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    means = padded.sum(dim=1) / torch.tensor(LENGTHS).unsqueeze(1)
    for readout, features in (("last", last_states), ("mean", means), ("both", torch.cat([last_states, means], dim=1))):
        other = make(make_spec(shape=(7, 2)), cell=cell, bidirectional=bidirectional, readout=readout)
        other.layers.load_state_dict(family.layers.state_dict())
        torch.testing.assert_close(other(inputs), other.readout(other.norm(features)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("readout", ["last", "mean", "both"])
@pytest.mark.parametrize("branch", [{}, BRANCH], ids=["alone", "branch"])
def test_steps_after_the_end_never_change_the_result(
    bidirectional: bool, readout: str, branch: dict[str, Any], make_spec: MakeSpec, make_context: MakeContext
) -> None:
    settings = {"bidirectional": bidirectional, "readout": readout, "dropout": 0.4, "jitter": 0.2}
    family = make(make_spec(shape=(7, 2)), **settings, **branch)
    inputs, targets = sequences(), torch.tensor([0, 2, 1, 1])
    expected = family(inputs)
    longer = torch.cat([inputs, torch.full((4, 6, 2), torch.nan)], dim=1)
    other_values = longer.clone()
    other_values[..., 1] = torch.where(other_values[..., 1].isnan(), 1e3, other_values[..., 1])
    beyond_a_gap = longer.clone()
    for row, length in enumerate(LENGTHS):
        beyond_a_gap[row, length + 2 :] = 7.0
    for changed in (longer, other_values, beyond_a_gap):
        torch.testing.assert_close(family(changed), expected, rtol=1e-12, atol=1e-13)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(family(inputs[row : row + 1, :length]), expected[row : row + 1])
    family.objective((other_values, targets), make_context(4, training=False)).loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in family.parameters() if weight.grad is not None)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_step_before_the_end_counts(bidirectional: bool, make_spec: MakeSpec) -> None:
    for readout in ("last", "mean"):
        family = make(make_spec(shape=(7, 2)), bidirectional=bidirectional, readout=readout)
        inputs = sequences().requires_grad_()
        family(inputs).square().sum().backward()
        assert inputs.grad is not None
        there = ~sequences().isnan()
        assert bool((inputs.grad[there] != 0).all())
        assert not inputs.grad[~there].any()


def test_padding_of_texts_never_changes_the_result(text_spec: MakeSpec) -> None:
    tokens = torch.tensor([[2, 3, 4, 0, 0], [5, 1, 2, 7, 3]])
    for task, bidirectional in (("multiclass", True), ("binary", False), ("language", False)):
        family = make(text_spec(task), bidirectional=bidirectional)
        longer = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.long)], dim=1)
        assert family(tokens).shape == (2, {"multiclass": 3, "binary": 1, "language": 8}[task])
        torch.testing.assert_close(family(longer), family(tokens), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(family(tokens[:1, :3]), family(tokens)[:1], rtol=1e-12, atol=1e-13)


def test_images_are_read_row_by_row(make_spec: MakeSpec) -> None:
    images = torch.randn(3, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    family = make(make_spec(shape=(2, 6, 4)))
    rows = torch.cat([images[:, 0], images[:, 1]], dim=2)
    twin = make(make_spec(shape=(6, 8)))
    twin.load_state_dict(family.state_dict())
    torch.testing.assert_close(family(images), twin(rows))


def test_a_row_does_not_depend_on_its_batch_mates(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(7, 2)), dropout=0.5, jitter=0.5, bidirectional=True, **BRANCH)
    batch = sequences()
    seen = family.augment(batch, make_context(4))
    assert bool((seen.isnan() == batch.isnan()).all())
    whole = family(seen, make_context(4))
    context = make_context(1, first_row=2)
    alone = family(family.augment(batch[2:3], context), context)
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-12, atol=1e-13)


def test_jitter_is_noise_of_that_size_in_training_alone(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(50, 2)), jitter=0.3)
    batch = torch.zeros(64, 50, 2, dtype=torch.float64)
    noise = family.augment(batch, make_context(64))
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert torch.equal(family.augment(batch, make_context(64, training=False)), batch)


@pytest.mark.parametrize("cell", MODULES)
def test_a_later_token_never_changes_an_earlier_prediction(cell: str, text_spec: MakeSpec) -> None:
    family = make(text_spec("language"), cell=cell)
    tokens = torch.tensor([[2, 3, 4, 5, 6, 7]])
    logits = family.token_logits(tokens)
    for place in range(1, 6):
        changed = tokens.clone()
        changed[:, place:] = 7 - changed[:, place:] + 2
        torch.testing.assert_close(family.token_logits(changed)[:, :place], logits[:, :place], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(family(tokens), logits[:, -1], rtol=1e-12, atol=1e-13)


def test_generation_goes_on_with_what_forward_says(text_spec: MakeSpec) -> None:
    family = make(text_spec("language"))
    tokens = torch.tensor([[2, 3, 4], [5, 0, 0]])
    texts = family.generate(tokens, 6, temperature=0.0, seed=0)
    assert texts.shape == (2, 9)
    assert texts[1, 7:].tolist() == [0, 0]
    for row, length in ((0, 3), (1, 1)):
        text = tokens[row : row + 1, :length]
        for _ in range(6):
            logits = family(text)
            logits[:, :2] = -torch.inf
            text = torch.cat([text, logits.argmax(dim=1, keepdim=True)], dim=1)
        assert texts[row, : length + 6].tolist() == text[0].tolist()


def test_generation_draws_from_the_softmax(text_spec: MakeSpec) -> None:
    family = make(text_spec("language"))
    tokens = torch.full((4000, 1), 3)
    drawn = family.generate(tokens, 1, temperature=0.7, seed=1)[:, 1]
    shares = torch.bincount(drawn, minlength=8) / 4000
    expected = torch.softmax(family(tokens[:1])[0, 2:] / 0.7, dim=0)
    assert shares[:2].tolist() == [0, 0]
    torch.testing.assert_close(shares[2:].double(), expected, rtol=0, atol=0.03)
    assert torch.equal(drawn, family.generate(tokens, 1, temperature=0.7, seed=1)[:, 1])
    assert not torch.equal(drawn, family.generate(tokens, 1, temperature=0.7, seed=2)[:, 1])
    with pytest.raises(ConfigError, match="generate needs a temperature of at least 0"):
        family.generate(tokens, 1, temperature=-1.0, seed=1)
    with pytest.raises(ConfigError, match="generate needs a network for the task language, got binary"):
        make(text_spec("binary")).generate(tokens, 1, temperature=1.0, seed=1)


def test_a_tied_readout_has_the_embeddings_weights(text_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(text_spec("language"), tied=True, embedding=5)
    assert family.embedding is not None
    assert family.readout.weight is family.embedding.weight
    batch = torch.tensor([[2, 3, 4, 5]]), torch.tensor([1])
    family.objective(batch, make_context(1)).loss.backward()
    assert family.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "positive hidden.*hidden=0"),
        ({"num_layers": 0}, "positive hidden, num_layers.*num_layers=0"),
        ({"cell": "grue"}, r"family\.cell needs a known cell, got 'grue'.*gru"),
        ({"readout": "first"}, r"family\.readout needs last, mean, both, got 'first'"),
        ({"channels": [4, 0], "kernel_sizes": [3, 3]}, r"at least one channel, got \[4, 0\]"),
        ({"channels": [4], "kernel_sizes": []}, r"kernel_sizes needs a size for each of the 1 convolutions, got \[\]"),
        ({"channels": [4], "kernel_sizes": [8]}, r"kernel_sizes needs odd numbers, got 8; try 9"),
        ({"tied": True}, r"family\.tied needs the task language.*got multiclass"),
        ({"jitter": -1.0}, r"family\.jitter needs a number >= 0, got -1"),
        ({"dropout": 1.0}, r"family\.dropout needs 0 <= dropout < 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(7, 2)), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bidirectional": True}, "reads forwards only, got family.bidirectional=true"),
        (BRANCH, r"no convolutions, got family\.channels=\[6, 4\]"),
        ({"tied": True}, r"embedding = hidden, got language, embedding=4, hidden=5; .* family\.embedding=5"),
    ],
)
def test_a_language_model_sees_nothing_to_come(settings: dict[str, Any], message: str, text_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(text_spec("language"), **settings)


def test_tables_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(MismatchError, match="RNN needs data of kind image or sequence or text, got made"):
        make(make_spec(shape=(4,)))


def test_forecasts_are_shown_in_the_users_units(make_spec: MakeSpec) -> None:
    units = {"input_mean": (5.0,), "input_std": (2.0,), "target_mean": (5.0,) * 3, "target_std": (2.0,) * 3}
    family = make(make_spec("regression", shape=(7, 1), **units))
    inputs, targets = sequences()[..., :1], torch.arange(12.0, dtype=torch.float64).view(4, 3)
    shown = family.exhibits((inputs.repeat(5, 1, 1), targets.repeat(5, 1)))["forecast"]
    rows = [0, 3, 7, 11, 15, 19]
    torch.testing.assert_close(shown["targets"], targets.repeat(5, 1)[rows] * 2 + 5)
    torch.testing.assert_close(shown["history"], inputs[..., 0].repeat(5, 1)[rows] * 2 + 5, equal_nan=True)
    torch.testing.assert_close(shown["predictions"], (family(inputs) * 2 + 5).repeat(5, 1)[rows])
    several = make(make_spec("regression", shape=(7, 2)))
    assert several.exhibits((sequences(), targets))["forecast"]["history"].shape == (4, 0)
    assert make(make_spec("regression", shape=(7, 2), num_outputs=1)).exhibits((sequences(), targets[:, :1])) == {}
