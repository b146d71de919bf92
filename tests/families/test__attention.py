"""Attention, rotary positions and the block around them, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet.families._attention import Block, attend, attention_weights, rotary_turns, rotate


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 2, 1]], ids=str)
def test_attention_is_a_softmax(causal: bool, lengths: list[int] | None) -> None:
    query, key, value = (numbers(3, 2, 5, 4, seed=seed) for seed in range(3))
    valid = None if lengths is None else torch.arange(5) < torch.tensor(lengths)[:, None]
    expected = np.zeros((3, 2, 5, 4))
    for row in range(3):
        for head in range(2):
            for here in range(5):
                seen = [s for s in range(lengths[row] if lengths else 5) if not (causal and s > here)]
                scores = [float(query[row, head, here] @ key[row, head, s]) / math.sqrt(4) for s in seen]
                shares = np.exp(scores) / np.exp(scores).sum()
                expected[row, head, here] = shares @ value[row, head, seen].numpy()
    got = attend(query, key, value, causal=causal, valid_BS=valid)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)
    weights = attention_weights(query, key, causal=causal, valid_BS=valid)
    np.testing.assert_allclose((weights @ value).numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
def test_a_stack_attends_as_each_does_alone(causal: bool) -> None:
    """vmap takes the formula, one network torch's kernel: the same values and gradients."""
    stacked, valid = numbers(3, 2, 2, 5, 4), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def loss(tokens: Tensor) -> Tensor:
        return attend(tokens, tokens * 2, tokens + 1, causal=causal, valid_BS=valid).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(stacked)
    for place in range(3):
        one = stacked[place].clone().requires_grad_()
        loss(one).backward()
        torch.testing.assert_close(gradients[place], one.grad, rtol=1e-11, atol=1e-12)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    turns = rotary_turns(20, 8).double()
    query, key = numbers(1, 1, 1, 8, seed=1), numbers(1, 1, 1, 8, seed=2)
    queries, keys = rotate(query.expand(1, 1, 20, 8), turns)[0, 0], rotate(key.expand(1, 1, 20, 8), turns)[0, 0]
    products = queries @ keys.T
    for distance in (-7, 0, 3):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand(len(along)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(products[0, 0], (query * key).sum())
    assert products[0].std() > 0.1
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(20))


def test_a_new_block_is_the_identity() -> None:
    block = Block(width=8, num_heads=2, feed_forward=12, activation=torch.relu, dropout=0.5, first_site=0).double()
    stream = numbers(2, 5, 8)
    assert torch.equal(block(stream, None, turns_2TK=None, causal=False, valid_BT=None), stream)


def test_a_block_is_attention_and_a_perceptron_on_norms() -> None:
    block = Block(width=8, num_heads=2, feed_forward=12, activation=torch.relu, dropout=0.0, first_site=0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    stream = numbers(2, 5, 8)

    def norm(tokens: Tensor, scale: Tensor) -> Tensor:
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * scale

    parts = norm(stream, block.norm_attention.weight) @ block.query_key_value.weight.T
    heads = []
    for head in range(2):
        query, key, value = (parts[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append((query @ key.transpose(1, 2) / 2).softmax(dim=-1) @ value)
    middle = stream + torch.cat(heads, dim=-1) @ block.mix.weight.T
    inner = (norm(middle, block.norm_feed_forward.weight) @ block.up.weight.T).clamp(min=0)
    expected = middle + inner @ block.down.weight.T
    got = block(stream, None, turns_2TK=None, causal=False, valid_BT=None)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
