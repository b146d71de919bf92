"""Encoders, decoders and pixels on their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.families._coders import ConvolutionalDecoder, ConvolutionalEncoder, Pixels, row_mean
from neurofleet.spec import DataSpec

MakeSpec = Callable[..., DataSpec]
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 11, 8), (1, 28, 28), (1, 56, 46)], ids=str)
def test_convolutions_give_back_images_of_any_size(shape: tuple[int, ...], make_spec: MakeSpec) -> None:
    spec = make_spec(shape=shape)
    encoder = ConvolutionalEncoder(spec, [3, 4, 5], [6], F.gelu)
    decoder = ConvolutionalDecoder(spec, [3, 4, 5], [6], 2, F.gelu)
    features = encoder(torch.randn(3, *shape, generator=GENERATOR))
    assert features.shape == (3, encoder.num_features) == (3, 6)
    assert decoder(features[:, :2]).shape == (3, spec.num_inputs)


def test_images_too_small_for_the_stages_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=r"at least 16 pixels a side, got 4 stages and 8 .* 1 to 3 entries"):
        ConvolutionalEncoder(make_spec(shape=(1, 8, 9)), [4] * 4, [], F.gelu)
    with pytest.raises(ConfigError, match=r"at least one stage"):
        ConvolutionalEncoder(make_spec(shape=(1, 8, 9)), [], [], F.gelu)


def test_white_is_the_brightest_training_pixel(make_spec: MakeSpec) -> None:
    spec = make_spec(shape=(2, 3, 3), input_mean=(5.0, 7.0), input_std=(3.0, 2.0))
    raw = torch.randint(0, 17, (40, 2, 3, 3), generator=GENERATOR).double()
    raw[0, 0, 0, 0] = 16
    mean, std = torch.tensor([5.0, 7.0]).double().view(2, 1, 1), torch.tensor([3.0, 2.0]).double().view(2, 1, 1)
    pixels, inputs = Pixels(spec).double(), (raw - mean) / std
    torch.testing.assert_close(pixels(inputs), raw / 255)
    pixels.start(inputs)
    torch.testing.assert_close(pixels(inputs), raw / 16)
    torch.testing.assert_close(pixels.standardised(raw / 16), inputs)


def test_a_mean_over_what_is_known() -> None:
    values, known = torch.tensor([[1.0, 2.0, 6.0], [5.0, 9.0, 9.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert row_mean(values, known).tolist() == [3, 5]
    assert row_mean(values, None).tolist() == [3, pytest.approx(23 / 3)]
