"""Adapters stand beside the layers that are used, and beside no others."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from neurofleet.errors import ConfigError
from neurofleet.transfer import adapters

pytest.importorskip("peft")


class Net(nn.Module):
    """A convolution, two linear layers of which one is never called, and many numbers that no adapter stands beside."""

    def __init__(self, table: int = 1) -> None:
        super().__init__()
        self.table = nn.Embedding(table, 4)
        self.convolution = nn.Conv2d(1, 3, 2)
        self.linear = nn.Linear(3, 4)
        self.linear2 = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convolution(images).mean(dim=(2, 3))) + self.table.weight[0]


IMAGES = torch.randn(5, 1, 4, 4)


@pytest.mark.parametrize(("method", "adapted"), [("lora", {"convolution", "linear"}), ("ia3", {"linear"})])
def test_layers_that_are_called_have_one_each_and_begin_as_nothing(method: str, adapted: set[str]) -> None:
    network = Net()
    before, generator = network(IMAGES), torch.random.get_rng_state()
    adapters.put_in(network, method, rank=2, seed=3, run=lambda: network(IMAGES))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(network(IMAGES), before)
    learning = [name for name, one in network.named_parameters() if one.requires_grad]
    assert {name.split(".")[0] for name in learning} == adapted
    assert all(adapters.is_adapter(name) for name in learning)


def test_the_seed_decides_how_they_begin() -> None:
    made = []
    for seed in (3, 3, 4):
        network = Net()
        adapters.put_in(network, "lora", rank=2, seed=seed, run=lambda network=network: network(IMAGES))
        made.append(dict(network.named_parameters())["linear.lora_A.default.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_weights_say_what_adapted_ones_said(method: str) -> None:
    network = Net().double()
    images, start = IMAGES.double(), {name: one.clone() for name, one in network.state_dict().items()}
    before = network(images)
    adapters.put_in(network, method, rank=2, seed=0, run=lambda: network(images))
    network.double()
    with torch.no_grad():
        for one in network.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one))
    said = network(images)
    assert not torch.allclose(said, before)
    with adapters.switched_off(network):
        assert torch.equal(network(images), before)
    assert torch.equal(network(images), said)
    state = {f"encoder.{name}": one for name, one in network.state_dict().items()} | {"head": torch.ones(1)}
    plain = adapters.merged(network, state, "encoder.")
    served = Net().double()
    served.load_state_dict({name.removeprefix("encoder."): one for name, one in plain.items() if name != "head"})
    torch.testing.assert_close(served(images), said, rtol=1e-10, atol=1e-10)
    assert torch.equal(plain["encoder.linear2.weight"], start["linear2.weight"])
    assert torch.equal(plain["head"], torch.ones(1))


def test_it_is_known_beforehand_whether_they_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Net(), Net(table=100)
    assert adapters.adaptable(small, lambda: small(IMAGES))
    assert not adapters.adaptable(large, lambda: large(IMAGES))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not adapters.adaptable(small, lambda: small(IMAGES))


def test_what_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Embedding(3, 2))
    with pytest.raises(ConfigError, match=r"needs linear layers to adapt, got Sequential"):
        adapters.put_in(network, "lora", rank=2, seed=0, run=lambda: network(torch.zeros(1, dtype=torch.int64)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"method=ia3 needs peft; install it with"):
        adapters.put_in(Net(), "ia3", rank=2, seed=0, run=lambda: None)


def test_a_method_of_the_same_name_is_left_alone() -> None:
    """transformers' models have an `enable_adapters` without arguments."""

    class Model(torch.nn.Module):
        def enable_adapters(self) -> None:
            raise AssertionError

    with adapters.switched_off(Model()):
        pass
