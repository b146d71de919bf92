"""Tokens of images and texts by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neurofleet.families._tokens import PatchTokens, TextTokens
from neurofleet.spec import DataSpec

MakeSpec = Callable[..., DataSpec]


@pytest.fixture
def text_spec(make_spec: MakeSpec) -> DataSpec:
    letters = {"vocabulary": tuple("abcdefgh"), "tokenizer": "characters"}
    return make_spec(task="language", kind="text", shape=(9,), targets=("y",), **letters)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def texts(num_rows: int, length: int) -> Tensor:
    return torch.randint(1, 10, (num_rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((1, 8, 8), (4, 4)), ((1, 28, 28), (7, 7)), ((3, 32, 32), (8, 8)), ((1, 56, 46), (10, 8)), ((1, 36, 36), (9, 9))],
    ids=str,
)
def test_patches_fit_every_image_and_see_every_pixel(
    shape: tuple[int, ...], grid: tuple[int, int], make_spec: MakeSpec
) -> None:
    tokens = PatchTokens(spec=make_spec(shape=shape), width=6, patch_size=None, stem=[]).double()
    assert tokens.grid == grid
    image = numbers(1, *shape).requires_grad_()
    patches, valid = tokens(image)
    assert patches.shape == (1, math.prod(grid), 6)
    assert valid is None
    patches.square().sum().backward()
    assert image.grad is not None
    assert bool((image.grad != 0).all())


def test_a_patch_is_a_matrix_times_its_pixels(make_spec: MakeSpec) -> None:
    tokens = PatchTokens(spec=make_spec(shape=(2, 6, 9)), width=6, patch_size=3, stem=[]).double()
    image = numbers(1, 2, 6, 9)
    patch = image[0, :, 3:6, 6:9].flatten()  # the second row's third
    values = tokens.cut.weight.flatten(1) @ patch + tokens.cut.bias
    expected = torch.nn.functional.layer_norm(values, (6,)) + tokens.places_TD[5]
    torch.testing.assert_close(tokens(image)[0][0, 5], expected, rtol=1e-10, atol=1e-10)
    assert len({tuple(place) for place in tokens.places_TD.tolist()}) == 6  # type: ignore[union-attr, operator]


def test_an_ngram_has_its_row_wherever_it_stands(text_spec: DataSpec) -> None:
    embed = TextTokens(spec=text_spec, width=6, ngrams=[3, 2], buckets=1000)
    pairs, triples = embed.places(torch.tensor([[5, 6, 7, 5, 6, 7, 2], [0, 0, 0, 0, 5, 6, 7]]))
    assert pairs[0, 1] == pairs[0, 4] == pairs[1, 5] != pairs[0, 3]
    assert triples[0, 2] == triples[0, 5] == triples[1, 6] != triples[0, 6]
    assert triples[0, 1] == triples[1, 5], "before a text stands padding"
    prime = (1 << 31) - 1
    assert pairs[0, 2] == (7 * 1_000_003 + 6) % prime % 1000
    assert triples[0, 2] == ((7 * 1_000_003 + 6) % prime * 1_000_003 + 5) % prime % 1000 + 1000


def test_ngrams_hardly_share_rows(text_spec: DataSpec) -> None:
    embed = TextTokens(spec=text_spec, width=2, ngrams=[4], buckets=4096)
    grams = torch.cartesian_prod(*[torch.arange(2, 10)] * 4)  # 4,096 of them
    (places,) = embed.places(grams)
    used = places[:, 3].unique().numel() / 4096
    assert used == pytest.approx(1 - 1 / math.e, abs=0.03), "as of a random function"


def test_an_unseen_ngram_says_nothing(text_spec: DataSpec) -> None:
    embed, tokens = TextTokens(spec=text_spec, width=6, ngrams=[2], buckets=50), texts(2, 9)
    plain = torch.nn.functional.layer_norm(embed.table_VD[tokens], (6,))
    torch.testing.assert_close(embed(tokens)[0], plain)
    torch.nn.init.normal_(embed.ngram_table)  # type: ignore[arg-type]
    assert not torch.allclose(embed(tokens)[0], plain)
