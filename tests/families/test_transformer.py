"""The transformer against softmax and logarithms by hand, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families.transformer import Transformer
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
MOVING = {"degrees": 15.0, "scale": 0.1, "translation": 0.1}
VOCABULARY = tuple("abcdefgh")


def make(spec: DataSpec, **settings: Any) -> Transformer:
    """With random matrices everywhere: those that start at zero would hide mistakes."""
    chosen: dict[str, Any] = {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward": 2,
        "activation": "gelu",
        "dropout": 0.0,
        "patch_size": None,
        "stem": [4],
        "ngrams": [2, 3],
        "ngram_buckets": 50,
        "label_smoothing": 0.0,
        "augmentation": STILL,
    }
    torch.manual_seed(0)
    family = Transformer(spec=spec, **chosen | settings).double()
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return family


@pytest.fixture
def text_spec(make_spec: MakeSpec) -> MakeSpec:
    def text(task: str = "language", length: int = 9, **changes: Any) -> DataSpec:
        settings = {"kind": "text", "shape": (length,), "vocabulary": VOCABULARY, "tokenizer": "characters"}
        return make_spec(task=task, **settings | {"targets": ("y",)} | changes)

    return text


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def texts(num_rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 10, (num_rows, length), generator=torch.Generator().manual_seed(seed))


# What a result must not depend on.


def test_a_later_token_never_changes_an_earlier_output(text_spec: MakeSpec) -> None:
    family, tokens = make(text_spec()), texts(2, 9)
    before = family.token_logits(tokens)
    for place in range(1, 9):
        changed = tokens.clone()
        changed[:, place] = changed[:, place] % 9 + 1
        after = family.token_logits(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-12, atol=1e-12)
        assert (after[:, place:] - before[:, place:]).abs().amin(dim=(0, 2)).max() > 1e-4
        assert not torch.allclose(after[:, place], before[:, place]), "but its own, and that of those after it"


@pytest.mark.parametrize("task", ["multiclass", "language"])
def test_padding_of_texts_never_changes_a_result(task: str, text_spec: MakeSpec) -> None:
    long, short = make(text_spec(task, length=12)), make(text_spec(task, length=5))
    short.load_state_dict(long.state_dict())
    tokens = texts(3, 5)
    padded = torch.cat([tokens, torch.zeros(3, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(long(padded), short(tokens), rtol=1e-12, atol=1e-12)
    mixed = torch.cat([padded, texts(2, 12, seed=1)])  # beside longer rows in one batch
    torch.testing.assert_close(long(mixed)[:3], short(tokens), rtol=1e-12, atol=1e-12)


def test_steps_after_the_end_never_change_a_result(make_spec: MakeSpec) -> None:
    family, steps = make(make_spec(shape=(11, 3))), numbers(3, 4, 3)
    padded = torch.cat([steps, torch.full((3, 7, 3), math.nan, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(family(padded), family(steps), rtol=1e-12, atol=1e-12)
    mixed = torch.cat([padded, numbers(2, 11, 3, seed=1)])
    torch.testing.assert_close(family(mixed)[:3], family(steps), rtol=1e-12, atol=1e-12)
    assert bool(family(torch.full((1, 11, 3), math.nan, dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize("kind", ["sequence", "image", "text"])
def test_the_order_of_tokens_counts(kind: str, make_spec: MakeSpec, text_spec: MakeSpec) -> None:
    if kind == "text":
        family, inputs = make(text_spec("multiclass"), ngrams=[]), texts(2, 9)
        assert not torch.allclose(family(inputs), family(inputs.flip(1)))
        return
    shape = (6, 3) if kind == "sequence" else (1, 8, 8)
    family, inputs = make(make_spec(shape=shape), stem=[]), numbers(2, *shape)
    swapped = inputs.flip(1) if kind == "sequence" else inputs.unflatten(3, (4, 2)).flip(3).flatten(3)
    assert not torch.allclose(family(inputs), family(swapped))


# The task language.


def test_the_loss_is_that_of_the_scored_tokens(text_spec: MakeSpec, make_context: MakeContext) -> None:
    family, tokens = make(text_spec()), texts(3, 9)
    tokens[1, 6:] = 0  # a shorter text
    tokens[2, 4:] = 0  # whose tokens are all given
    given = torch.tensor([1, 4, 4])
    context = make_context(3, training=False)
    probabilities = family.token_logits(tokens[:, :-1]).softmax(dim=-1).detach()
    rows = []
    for row, scored in enumerate([range(1, 9), range(4, 6), range(0)]):
        bits = [-math.log2(float(probabilities[row, place - 1, tokens[row, place]])) for place in scored]
        rows.append(sum(bits) / max(len(bits), 1))
    objective = family.objective((tokens, given), context)
    np.testing.assert_allclose(objective.metrics["bits_per_character"].numpy(), rows, rtol=1e-10)
    assert objective.loss.item() == pytest.approx(np.mean(rows) * math.log(2), rel=1e-10)
    smoothed = make(text_spec(), label_smoothing=0.2).objective((tokens, given), make_context(3))
    np.testing.assert_allclose(smoothed.metrics["bits_per_character"].numpy(), rows, rtol=1e-10)
    assert smoothed.loss > objective.loss


def test_words_are_not_called_characters(text_spec: MakeSpec) -> None:
    assert make(text_spec()).score_names == ["loss", "bits_per_character"]
    assert make(text_spec(tokenizer="words")).score_names == ["loss", "bits_per_word"]
    assert "accuracy" in make(text_spec("multiclass")).score_names


def test_what_is_served_is_the_token_after_the_text(text_spec: MakeSpec) -> None:
    family, tokens = make(text_spec()), texts(2, 9)
    tokens[1, 4:] = 0
    everywhere = family.token_logits(tokens)
    torch.testing.assert_close(family(tokens), torch.stack([everywhere[0, 8], everywhere[1, 3]]))


def test_without_temperature_the_likeliest_token_follows(text_spec: MakeSpec) -> None:
    family, tokens = make(text_spec(length=6)), texts(2, 4)
    text = tokens
    for _ in range(5):  # further than the network sees at once
        text = torch.cat([text, family(text[:, -6:])[:, 2:].argmax(dim=1, keepdim=True) + 2], dim=1)
    assert torch.equal(family.generate(tokens, 5, temperature=0.0, seed=0), text)


def test_texts_of_different_lengths_go_on_as_each_does_alone(text_spec: MakeSpec) -> None:
    family, tokens = make(text_spec(length=6)), texts(3, 8)
    tokens[1, 5:] = 0
    tokens[2, 1:] = 0
    together = family.generate(tokens, 4, temperature=0.0, seed=0)
    assert together.shape == (3, 12)
    for row, length in enumerate([8, 5, 1]):
        alone = family.generate(tokens[row : row + 1, :length], 4, temperature=0.0, seed=0)
        assert torch.equal(together[row, : length + 4], alone[0])
        assert not together[row, length + 4 :].any()


def test_tokens_are_drawn_as_the_softmax_says(text_spec: MakeSpec) -> None:
    family, tokens = make(text_spec()), texts(1, 4)
    drawn = family.generate(tokens.expand(4000, 4), 1, temperature=0.7, seed=3)[:, 4]
    wanted = (family(tokens)[0, 2:] / 0.7).softmax(dim=0)
    shares = torch.bincount(drawn, minlength=10)[2:] / 4000
    assert (shares - wanted).abs().max() < 4 * math.sqrt(0.25 / 4000)
    again = family.generate(tokens.expand(3, 4), 6, temperature=0.7, seed=3)
    assert torch.equal(again[:, 4], drawn[:3]), "a text does not depend on those beside it"
    assert not torch.equal(again, family.generate(tokens.expand(3, 4), 6, temperature=0.7, seed=4))


def test_what_cannot_be_continued_is_refused(text_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match="for the task language, got multiclass"):
        make(text_spec("multiclass")).generate(texts(1, 4), 1, temperature=1.0, seed=0)
    for tokens, temperature in ((texts(1, 4), -1.0), (texts(1, 0), 1.0), (torch.tensor([[0, 3]]), 1.0)):
        with pytest.raises(ConfigError, match=r"a temperature of at least 0 and texts .* of at least one token, got"):
            make(text_spec()).generate(tokens, 1, temperature=temperature, seed=0)


# Training and figures.


def test_images_are_distorted_in_training_alone(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family, inputs = make(make_spec(shape=(1, 8, 8)), augmentation=MOVING), numbers(2, 1, 8, 8)
    assert not torch.allclose(family.augment(inputs, make_context(2)), inputs)
    assert torch.equal(family.augment(inputs, make_context(2, training=False)), inputs)
    with pytest.raises(ConfigError, match=r"family\.augmentation needs images, got made, which is sequence"):
        make(make_spec(shape=(5, 3)), augmentation=MOVING)


def test_every_dropout_draws_for_itself(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(5, 3)), dropout=0.5, num_layers=3)
    sites = [module.site for module in family.modules() if hasattr(module, "rate")]
    assert len(sites) == len(set(sites)) == 2 + 2 * 3
    assert family.distort.site not in sites


@pytest.mark.parametrize("kind", ["sequence", "image", "text", "language"])
def test_attention_maps_are_of_the_last_block(kind: str, make_spec: MakeSpec, text_spec: MakeSpec) -> None:
    shape = (1, 9, 12) if kind == "image" else (5, 3)
    inputs = texts(8, 9) if kind in ("text", "language") else numbers(8, *shape) + 1
    if kind in ("text", "language"):
        spec = text_spec("language" if kind == "language" else "multiclass")
    else:
        num_channels = shape[0] if kind == "image" else shape[1]
        spec = make_spec(shape=shape, input_mean=(3.0,) * num_channels, input_std=(2.0,) * num_channels)
    pictures = make(spec).exhibits((inputs, torch.zeros(8)))
    assert ("reliability" in pictures) is (kind != "language"), "those of any classifier too"
    shown = pictures["attention_maps"]
    size = 30 if kind == "image" else inputs.shape[1]
    assert shown["weights"].shape == (6, 2, size, size)
    torch.testing.assert_close(shown["weights"].sum(dim=-1), torch.ones(6, 2, size, dtype=torch.float64))
    if kind == "image":
        torch.testing.assert_close(shown["inputs"], inputs[:6] * 2 + 3)
        assert shown["grid"].tolist() == [5, 6]
    if kind == "language":
        assert bool((shown["weights"].triu(1) == 0).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "positive width.*got width=0"),
        ({"num_layers": 0}, "positive.*num_layers=0"),
        ({"stem": [4, 0]}, r"positive.*stem=\[4, 0\]"),
        ({"width": 15}, r"family\.width needs a multiple of 2 for 2 heads on image data, got 15; try 1[46]"),
        ({"patch_size": 9}, r"needs a multiple of 2 from 2 to 8 for images of 8x9 \(made\) and 1 conv.* got 9; try 8"),
        ({"patch_size": 5}, r"needs a multiple of 2 from 2 to 8 .* got 5; try 4"),
        ({"patch_size": 0, "stem": []}, r"needs a multiple of 1 from 1 to 8 .* got 0; try 1"),
        ({"stem": [4] * 4}, r"4 need images of at least 16 pixels a side, got 8 \(made\); .* at most 3 entries"),
        ({"activation": "swish"}, "needs a known activation"),
        ({"dropout": 1.0}, r"family\.dropout needs"),
        ({"augmentation": {}}, r"family\.augmentation needs the keys"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(1, 8, 9)), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 18}, r"multiple of 4 for 2 heads on text data, got 18; try 16"),
        ({"ngrams": [1, 2]}, r"family\.ngrams needs different lengths of at least 2, got \[1, 2\]"),
        ({"ngrams": [3, 3]}, r"family\.ngrams needs different lengths"),
        ({"ngram_buckets": 0}, r"family\.ngram_buckets needs at least 1, got 0"),
    ],
)
def test_impossible_settings_for_texts_are_refused(settings: dict[str, Any], message: str, text_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(text_spec(), **settings)


def test_what_does_not_fit_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(MismatchError, match="Transformer needs data of kind image or sequence or text, got made"):
        make(make_spec(shape=(4,)))
    with pytest.raises(MismatchError, match="Transformer learns language from text, got made, which is sequence"):
        make(make_spec(task="language", shape=(5, 3)))
