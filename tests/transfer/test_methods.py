"""Which blocks an encoder has, in which order they learn, and which method is chosen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import ConfigError
from neurofleet.spec import DataSpec
from neurofleet.transfer import methods
from neurofleet.transfer.backbones import EfficientNetLite0, HuggingFace, takes


def blocks_of(family: str, overrides: list[str]) -> tuple[list[list[str]], list[str]]:
    experiment = experiments.compose([f"family={family}", *overrides])
    spec = experiments.build_data(experiment).spec
    network = experiments.build_family(experiment, spec)
    indices = spec.kind in ("text", "categorical")
    rows = torch.ones(2, *spec.shape, dtype=torch.int64 if indices else torch.float32)
    for name in network.heads:
        parent, _, attribute = name.rpartition(".")
        delattr(network.get_submodule(parent), attribute)
    return methods.blocks(network, lambda: network.features(rows)), [name for name, _ in network.named_parameters()]


FAMILIES = {
    "autoencoder": "digits",
    "capsule": "digits",
    "cnn": "digits",
    "dbn": "digits",
    "gan": "digits",
    "mlp": "movielens",
    "rbf": "wine",
    "rnn": "japanese_vowels",
    "siamese": "digits",
    "som": "wine",
    "spiking": "digits",
    "transformer": "food_reviews",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_one_block_and_each_block_holds_a_matrix(family: str) -> None:
    blocks, names = blocks_of(family, [f"data={FAMILIES[family]}"])
    assert sorted(name for block in blocks for name in block) == sorted(names)
    assert all(blocks)


def test_blocks_stand_in_the_order_of_use() -> None:
    blocks, _ = blocks_of("mlp", ["data=digits", "family.hidden=[8,6,4]"])
    assert [sorted({name.rpartition(".")[0] for name in block}) for block in blocks] == [
        ["layers.0"],
        ["layers.1"],
        ["layers.2"],
    ]
    blocks, _ = blocks_of("cnn", ["data=digits", "family.channels=[4,6]", "family.hidden=8"])
    firsts = [block[0].rpartition(".")[0] for block in blocks]
    assert firsts == sorted(firsts, key=lambda name: (not name.startswith("convolutions"), name))
    for block in blocks:  # a norm goes with the convolution before it
        numbers = {name.split(".")[1] for name in block if name.split(".")[1].isdecimal()}
        assert len(numbers) <= 1, block
    blocks, _ = blocks_of("transformer", ["data=food_reviews", "family.num_layers=3", "family.ngram_buckets=8"])
    deep = [next((part for part in block[0].split(".") if part.isdecimal()), "") for block in blocks]
    assert deep[-3:] == ["0", "1", "2"]


class Backwards(torch.nn.Module):
    """Registered in another order than used, with a parameter of its own and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(3, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.first = torch.nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(inputs)))


def test_use_counts_not_registration_and_norms_follow_what_they_norm() -> None:
    network = Backwards()
    found = methods.blocks(network, lambda: network(torch.zeros(1, 3)))
    assert found == [["first.weight", "first.bias", "norm.weight", "norm.bias"], ["last.weight", "last.bias"]]
    assert not network.last._forward_pre_hooks  # the hooks are gone again
    with pytest.raises(ZeroDivisionError):
        methods.blocks(network, lambda: 1 // 0)
    assert not network.last._forward_pre_hooks


def bert() -> HuggingFace:
    pytest.importorskip("transformers")
    config: dict[str, Any] = {"model_type": "bert", "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 10}
    words = tuple("abcdefghij")
    spec = takes("tiny", "text", (6,), 8, "test", tokenizer="words", vocabulary=words)
    return HuggingFace(spec=spec, config=config, pooling="mean")


def test_blocks_of_a_bert_are_its_layers() -> None:
    network = bert()
    blocks = methods.blocks(network, lambda: network.features(torch.full((2, 6), 2)))
    assert len(blocks) == 3
    assert all(name.startswith("net.embeddings.") for name in blocks[0])
    assert all(name.startswith("net.encoder.layer.0.") for name in blocks[1])
    assert all(name.startswith("net.encoder.layer.1.") for name in blocks[2])


def test_blocks_of_an_efficientnet_are_its_stages() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    spec = takes("tiny", "image", (3, 224, 224), 1280, "test", input_mean=(127.0,) * 3, input_std=(128.0,) * 3)
    network = EfficientNetLite0(spec=spec)
    small = torch.zeros(1, 3, 32, 32)
    blocks = methods.blocks(network, lambda: network.features(small))
    heads = [block[0].rpartition(".")[0].removeprefix("net.").split(".")[:2] for block in blocks]
    assert heads[0] == ["_conv_stem"]
    assert [one[-1] for one in heads[1:-1]] == [str(number) for number in range(16)]
    assert heads[-1] == ["_conv_head"]
    assert any("_bn0" in name for name in blocks[0])
    assert any("_bn1" in name for name in blocks[-1])


def test_turns() -> None:
    assert methods.thaws("full", 0.5, 3) == [0.0, 0.0, 0.0]
    assert methods.thaws("probe_then_full", 0.25, 3) == [0.25, 0.25, 0.25]
    assert methods.thaws("gradual", 0.6, 3) == pytest.approx([0.6, 0.4, 0.2])
    for method in ("frozen", "lora", "ia3"):
        assert methods.thaws(method, 0.5, 2) == [math.inf, math.inf]


def made(task: str, num_rows: int, num_classes: int = 0) -> DataSpec:
    spec = DataSpec.load(paths.data() / "wine" / "spec.json")
    classes = tuple(f"c{index}" for index in range(num_classes))
    return dataclasses.replace(
        spec,
        task=task,
        classes=classes,
        num_rows={"train": num_rows, "val": 1, "test": 1},  # type: ignore[arg-type]
    )


CHOICES: dict[str, tuple[DataSpec, int, bool, str, str]] = {
    "few": (made("multiclass", 640, 10), 10_000, True, "frozen", "64 rows a class are few"),
    "few values": (made("regression", 600), 10_000, True, "frozen", "60 rows in each tenth of the targets are few"),
    "many": (made("multiclass", 650, 10), 10_000, True, "probe_then_full", "65 rows a class are enough for all 10,000"),
    "large": (made("binary", 1000, 2), 2_000_000, True, "lora", "500 rows a class can move an encoder, but 2.0 M"),
    "no layers": (made("binary", 1000, 2), 2_000_000, False, "gradual", "no linear layers for updates of low rank"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_method_is_chosen_and_says_why(case: str) -> None:
    spec, size, adaptable, method, reason = CHOICES[case]
    found = methods.choose(spec, size, lambda: adaptable)
    assert found[0] == method
    assert reason in found[1]


HEEDED = {
    "frozen": {"mixup"},
    "full": {"layer_decay", "l2_sp", "mixup"},
    "probe_then_full": {"share", "layer_decay", "l2_sp", "mixup"},
    "gradual": {"share", "layer_decay", "l2_sp", "mixup"},
    "lora": {"rank", "mixup"},
    "ia3": {"mixup"},
}


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_method_takes_the_settings_that_it_heeds_and_no_others(method: str) -> None:
    nothing = dict.fromkeys(GOOD)
    assert methods.settings(method, nothing).keys() == GOOD.keys()
    methods.check(method, **methods.settings(method, nothing))
    for key, value in GOOD.items():
        if key in HEEDED[method]:
            assert methods.settings(method, nothing | {key: value})[key] == value
        else:
            with pytest.raises(ConfigError, match=rf"method={method} heeds .*, got method.{key}={value}, "):
                methods.settings(method, nothing | {key: value})


def history(*losses: float, val: tuple[float, ...] = ()) -> list[dict[str, float]]:
    rows = [{"epoch": float(place), "train/loss_epoch": loss} for place, loss in enumerate(losses, start=1)]
    return [row | {"val/loss": one} for row, one in zip(rows, val, strict=True)] if val else rows


def test_a_head_that_was_still_learning_is_told_of() -> None:
    falling = history(5.0, 4.0, 3.0, 2.0, 1.5)
    said = methods.unconverged(falling, 5)
    assert said is not None
    assert "from 2.0000 to 1.5000 in the last 1 of 5 epochs" in said
    assert methods.unconverged(falling, 10) is None, "it was stopped early"
    assert methods.unconverged(history(5.0, 4.0, 3.0, 2.0, 1.99), 5) is None
    assert methods.unconverged(history(5.0), 1) is None
    assert methods.unconverged(history(5.0, 4.0, 3.0, 2.0, 1.5, val=(3, 2, 1, 2, 3)), 5) is None, "more would overfit"
    assert methods.unconverged(history(5.0, 4.0, 3.0, 2.0, 1.5, val=(5, 4, 3, 2, 1)), 5) is not None


GOOD: dict[str, Any] = {"share": 0.0, "layer_decay": 1.0, "rank": 1, "l2_sp": 0.0, "mixup": 0.0}


@pytest.mark.parametrize("key", ["share", "layer_decay", "l2_sp", "mixup"])
def test_a_number_that_is_none_is_refused(key: str) -> None:
    methods.check("full", **GOOD)
    with pytest.raises(ConfigError, match=key):
        methods.check("full", **GOOD | {key: math.nan})
