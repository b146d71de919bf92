from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.experiment import build
from neurofleet.spec import DataSpec
from neurofleet.steps import Context
from neurofleet.transfer.backbones import Backbone, EfficientNetLite0, HuggingFace, SpeakerLSTM, takes

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh")
BERT = {
    "model_type": "bert", "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 10, "hidden_dropout_prob": 0.5,
    "attention_probs_dropout_prob": 0.5,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 12, "n_positions": 10, "n_embd": 16, "n_layer": 2, "n_head": 2}
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 8, "patch_size": 4, "hidden_dropout_prob": 0.5,
}  # fmt: skip
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
TEXTS = torch.tensor([[4, 6, 7, 8, 5, 0, 0, 0], [4, 9, 5, 0, 0, 0, 0, 0], [4, 10, 11, 12, 13, 1, 5, 0]])


def text_spec(**others: Any) -> DataSpec:
    return takes("pieces", "text", (8,), 16, "made", tokenizer="wordpieces", **{"vocabulary": PIECES} | others)


def image_spec(size: int) -> DataSpec:
    return takes("images", "image", (3, size, size), 16, "made", input_mean=(127.0,) * 3, input_std=(128.0,) * 3)


def sequence_spec() -> DataSpec:
    return takes("mels", "sequence", (160, 40), 256, "made", input_mean=(0.0,) * 40, input_std=(1.0,) * 40)


def made(name: str) -> tuple[Backbone, Tensor]:
    """A backbone with weights of its own, in training mode, and inputs of three rows."""
    torch.manual_seed(1)
    module: Backbone
    match name:
        case "efficientnet":
            module, inputs = EfficientNetLite0(spec=image_spec(224)), torch.randn(3, 3, 224, 224)
        case "speaker":
            module, inputs = SpeakerLSTM(spec=sequence_spec()), torch.rand(3, 160, 40)
            inputs[1, 30:] = torch.nan
        case "bert" | "gpt2":
            config = BERT if name == "bert" else GPT2
            module, inputs = HuggingFace(spec=text_spec(), config=config, pooling="mean"), TEXTS
        case _:
            config = VIT if name == "vit" else RESNET
            module, inputs = HuggingFace(spec=image_spec(8), config=config, pooling="mean"), torch.randn(3, 3, 8, 8)
    return module.train(), inputs


NAMES = ("efficientnet", "speaker", "bert", "gpt2", "vit", "resnet")


@pytest.mark.parametrize("name", NAMES)
def test_a_row_s_features_are_its_own_and_never_random(name: str) -> None:
    """In training too: no statistics of a batch, no dropout; and nothing is remembered of a batch."""
    module, inputs = made(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    together = module.features(inputs, Context(3, 0, 0.0, torch.arange(3, dtype=torch.int32), True, measure=False))
    alone = torch.cat([module.features(row) for row in inputs.split(1)])
    with torch.no_grad():
        unlearnt = module.features(inputs)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, unlearnt, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], rtol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(part.training for part in module.modules())  # else Lightning warns of each run
    assert module.heads == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns(name: str) -> None:
    module, inputs = made(name)
    module.features(inputs).square().sum().backward()
    idle = [key for key, weight in module.named_parameters() if weight.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", ["speaker", "bert", "gpt2", "vit"])
def test_a_stack_of_backbones_is_each_by_itself(name: str) -> None:
    """Two sets of weights at once, each with rows of its own, and their gradients."""
    module, inputs = made(name)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    stack = {key: torch.stack([value, value * 1.1]) for key, value in weights.items()}
    rows = torch.stack([inputs, inputs.flip(0)])

    def loss(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(module, weights, (rows,)).square().mean()

    gradients = vmap(grad(loss))(stack, rows)
    for index in range(2):
        one = {key: value[index].clone().requires_grad_() for key, value in stack.items()}
        loss(one, rows[index]).backward()
        for key, value in one.items():
            torch.testing.assert_close(gradients[key][index], value.grad, rtol=1e-3, atol=1e-6)


def test_efficientnet_is_the_package_s_own_without_its_classes() -> None:
    module, inputs = made("efficientnet")
    assert isinstance(module, EfficientNetLite0)
    maps = module.net.eval().extract_features(inputs)
    torch.testing.assert_close(module.features(inputs), nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1))
    assert module.features(inputs).shape == (3, 1280)
    assert not any("_fc" in name for name in module.state_dict())


def test_without_a_base_efficientnet_keeps_the_size_of_signals() -> None:
    """Its norms use no statistics of a batch, so that the weights' own size decides whether anything arrives."""
    module, inputs = made("efficientnet")
    with torch.no_grad():
        assert 0.1 < module.features(inputs).std() < 2


def test_the_speaker_lstm_is_torch_s_own_up_to_the_end_of_a_sequence() -> None:
    module, inputs = made("speaker")
    reference = nn.LSTM(40, 256, 3, batch_first=True)
    names = {key: key.removeprefix("lstm.") for key in module.state_dict() if key.startswith("lstm.")}
    reference.load_state_dict({f"{name[2:-1]}{name[0]}": module.state_dict()[key] for key, name in names.items()})
    for row, length in ((0, 160), (1, 30)):
        _, (hidden, _) = reference(inputs[row : row + 1, :length])
        expected = torch.relu(module.get_submodule("linear")(hidden[-1]))
        torch.testing.assert_close(
            module.features(inputs)[row], (expected / expected.norm(dim=1, keepdim=True))[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_is_pooled_over_its_own_tokens_by_the_model_s_own_ids(pooling: str) -> None:
    module, _ = made("bert")
    assert isinstance(module, HuggingFace)
    module.pooling = pooling
    module.eval()
    states = module.net(input_ids=torch.tensor([[2, 4, 5, 6, 3]])).last_hidden_state[0]  # the first text, unpadded
    unknown = module.net(input_ids=torch.tensor([[2, 8, 9, 10, 11, 1, 3]])).last_hidden_state[0]  # [UNK] is the id 1
    features = module.features(TEXTS)
    for row, expected in ((0, states), (2, unknown)):
        pooled = expected.mean(dim=0) if pooling == "mean" else expected[0]
        torch.testing.assert_close(features[row], pooled, rtol=1e-4, atol=1e-5)


def test_many_texts_come_back_in_their_order() -> None:
    """More than go through together, of all lengths."""
    module, _ = made("bert")
    rows = torch.randint(2, 14, (80, 8)).where(torch.arange(8) < torch.randint(1, 9, (80, 1)), 0)
    with torch.no_grad():
        features = module.features(rows)
    torch.testing.assert_close(features, module.features(rows), rtol=1e-4, atol=1e-5)


def test_a_config_builds_it() -> None:
    config = {"_target_": "neurofleet.transfer.backbones.HuggingFace", "config": BERT, "pooling": "cls"}
    assert build(config, spec=text_spec()).features(TEXTS).shape == (3, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, r"config\.auto_map names code or another model"),
        ({"nested": [{"trust_remote_code": True}]}, r"config\.nested\[0\]\.trust_remote_code names code"),
        ({"quantization_config": {"load_in_8bit": True}}, r"config\.quantization_config"),
        ({"backbone": "someone/model"}, r"config\.backbone"),
        ({"model_type": "brt"}, "needs one that transformers has, got 'brt'; did you mean"),
        ({"model_type": None}, "needs one that transformers has, got None"),
        ({"num_attention_heads": 3}, "transformers cannot build a bert from its config: .*multiple"),
        ({"hidden_act": "nothing"}, "transformers cannot build a bert from its config: .*nothing"),
    ],
    ids=["auto_map", "nested", "quantized", "backbone", "type", "no_type", "heads", "activation"],
)
def test_what_a_config_may_not_say_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HuggingFace(spec=text_spec(), config=BERT | change, pooling="mean")


def test_attention_that_would_be_fetched_is_not() -> None:
    config = BERT | {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    module = HuggingFace(spec=text_spec(), config=config, pooling="mean")
    assert module.net.config._attn_implementation == "sdpa"


def test_data_that_a_backbone_does_not_take_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"takes image of shape \(3, 224, 224\), got images, which is image of"):
        EfficientNetLite0(spec=image_spec(32))
    with pytest.raises(MismatchError, match=r"takes sequence of shape .* got images, which is image"):
        SpeakerLSTM(spec=image_spec(8))
    with pytest.raises(MismatchError, match="HuggingFace takes image, got mels, which is sequence"):
        HuggingFace(spec=sequence_spec(), config=VIT, pooling="cls")
    with pytest.raises(MismatchError, match="the model knows 12 tokens, got a vocabulary of 13"):
        HuggingFace(spec=text_spec(vocabulary=(*PIECES, "i")), config=BERT, pooling="cls")
    with pytest.raises(ConfigError, match="pooling needs one of mean, cls, got 'max'"):
        HuggingFace(spec=text_spec(), config=BERT, pooling="max")


def test_a_library_that_lacks_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("transformers", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    command = r"install it with: pip install -c requirements.lock 'neurofleet\[pretrained\]'$"
    with pytest.raises(ConfigError, match="this needs the package 'transformers'; " + command):
        HuggingFace(spec=text_spec(), config=BERT, pooling="mean")
    with pytest.raises(ConfigError, match="this needs the package 'efficientnet_lite_pytorch'; " + command):
        EfficientNetLite0(spec=image_spec(224))
