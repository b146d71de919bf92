from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from neurofleet.data.texts import token_array
from neurofleet.errors import ConfigError
from neurofleet.experiment import build
from neurofleet.transfer import base as bases
from neurofleet.transfer.hugging_face import hugging_face

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "tea", "##s", ".", "bad"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
REVIEWS = ["Good teas.", "bad bad tea", "unheard of"]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` leaves of small models: bert (whole, with a head), electra (of shards), vit, gpt2."""
    top = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **SMALL)
    transformers.BertForMaskedLM(config).save_pretrained(top / "bert")
    tokenizer = transformers.BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})
    tokenizer.save_pretrained(top / "bert")
    electra = transformers.ElectraConfig(vocab_size=len(WORDS), embedding_size=16, **SMALL)
    transformers.ElectraModel(electra).save_pretrained(top / "electra", max_shard_size="10KB")
    (top / "electra" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    vit = transformers.ViTConfig(image_size=8, patch_size=4, **SMALL)
    transformers.ViTForImageClassification(vit).save_pretrained(top / "vit")
    pixels = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8}}
    (top / "vit" / "preprocessor_config.json").write_text(json.dumps(pixels))
    gpt2 = transformers.GPT2Config(vocab_size=10, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2Model(gpt2).save_pretrained(top / "gpt2")
    (top / "gpt2" / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    return top


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of its own, for a test that spoils it."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders / name, tmp_path / name))

    return copy


def change_json(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_a_text_encoder_says_what_transformers_says(name: str, folders: Path) -> None:
    """Tokens and mean states, of a whole model with its head and of one in shards."""
    base = hugging_face(str(folders / name))
    encoder = build(base.encoder, spec=base.spec)
    encoder.load_state_dict(base.weights)
    own = transformers.AutoModel.from_pretrained(folders / name).eval()
    tokenizer = transformers.BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})
    there = tokenizer(REVIEWS, padding=True, return_tensors="pt")
    states, mask = own(**there).last_hidden_state, there["attention_mask"].unsqueeze(2)
    expected = (states * mask).sum(dim=1) / mask.sum(dim=1)
    features = encoder.features(torch.from_numpy(token_array(REVIEWS, base.spec, "reviews")))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert base.spec.vocabulary == tuple(WORDS)
    assert (base.spec.kind, base.spec.tokenizer, base.name) == ("text", "wordpieces", name)
    assert base.spec.shape == {"bert": (12,), "electra": (512,)}[name]
    assert len(base.spec.targets) == 16
    assert base.uri == f"hf/{folders / name}"


def test_an_image_encoder_takes_pixels_as_its_folder_says(folders: Path) -> None:
    base = hugging_face(str(folders / "vit"))
    encoder = build(base.encoder, spec=base.spec)
    encoder.load_state_dict(base.weights)
    own = transformers.AutoModel.from_pretrained(folders / "vit", add_pooling_layer=False).eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = own(pixel_values=(pixels / 255 - mean) / std).last_hidden_state[:, 0]
    told_mean, told_std = (
        torch.tensor(values)[:, None, None] for values in (base.spec.input_mean, base.spec.input_std)
    )
    torch.testing.assert_close(encoder.features((pixels - told_mean) / told_std), expected, rtol=1e-4, atol=1e-4)
    assert (base.spec.kind, base.spec.shape, base.encoder["pooling"]) == ("image", (3, 8, 8), "cls")


def test_a_base_is_kept_and_its_config_is_small_and_plain(folders: Path) -> None:
    base = hugging_face(str(folders / "bert"))
    kept = bases.weights(bases.keep(base), base.uri)
    assert all(torch.equal(kept[name], value) for name, value in base.weights.items())
    assert json.loads(json.dumps(base.encoder)) == base.encoder
    assert not {"architectures", "id2label", "dtype", "transformers_version"} & set(base.encoder["config"])


def test_sentence_transformers_say_how_to_pool_and_how_long(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    base = hugging_face(str(folder))
    assert base.encoder["pooling"] == "cls"
    assert base.spec.shape == (6,)


def test_weights_in_half_precision_are_read_as_what_they_are(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    halves = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    weights = hugging_face(str(folder)).weights
    name = "encoder.layer.1.output.dense.weight"
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights[f"net.{name}"], halves[f"bert.{name}"].float())


def test_a_pickle_is_refused_with_a_command_that_converts_it(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"as model\.safetensors, got pytorch_model\.bin .*a pickle can run"
    ) as refusal:
        hugging_face(str(folder))
    command = str(refusal.value).partition('python -c "')[2].partition('"')[0]
    exec(command, {})  # what `python -c` does
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(hugging_face(str(folder)).weights[f"net.{name}"], whole[f"bert.{name}"])


def test_a_pickle_under_the_name_of_safetensors_is_not_run(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing or damaged: .*; fetch it again"):
        hugging_face(str(folder))


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.0.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", lambda content: content.update(values))


def pixels(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "preprocessor_config.json", lambda content: content.update(values))


def tokenizer(part: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "tokenizer.json", lambda content: content[part].update(values))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("bert", drop_a_weight, r"lacks 1 of \d+: net\.encoder\.layer\.0\.output\.dense\.bias; save the whole model"),
        ("bert", config(hidden_size=32), "holds weights of another model than its config.json"),
        ("bert", config(auto_map={"AutoModel": "evil.Model"}), r"config\.auto_map names code or another model"),
        ("bert", config(model_type="berrt"), "got 'berrt'; did you mean bert"),
        ("bert", tokenizer("normalizer", lowercase=False), "WordPiece tokenizer in lower case .* with capitals; take"),
        ("bert", tokenizer("model", vocab={"[PAD]": 0, "tea": 2}), "a vocabulary of ids from 0 on, with"),
        ("bert", lambda folder: (folder / "config.json").write_text("{"), "config.json needs to be JSON"),
        ("bert", lambda folder: (folder / "config.json").write_text("[]"), "needs to be a JSON object, got list"),
        ("bert", lambda folder: (folder / "config.json").unlink(), "needs config.json: it says which model this is"),
        ("bert", lambda folder: (folder / "tokenizer.json").unlink(), "got no tokenizer.json and no vocab.txt"),
        ("bert", lambda folder: (folder / "model.safetensors").unlink(), "got none"),
        ("bert", config(hidden_size="big"), "transformers refuses the config of this bert: .*hidden_size"),
        ("bert", config(num_attention_heads=0), "transformers cannot build a bert from its config: .*zero"),
        ("bert", tokenizer("model", vocab=[1]), "needs its tokenizer or pixels described as transformers does"),
        ("vit", pixels(image_mean=0.5), "needs its tokenizer or pixels described as transformers does"),
        ("vit", pixels(image_std=[0.5]), "preprocessor_config.json needs image_mean and image_std of 3 numbers each"),
        ("electra", lambda folder: next(folder.glob("*-00001-*")).unlink(), "00001-of.* is missing or damaged"),
        ("vit", lambda folder: (folder / "preprocessor_config.json").unlink(), "needs preprocessor_config.json: it"),
        ("gpt2", lambda folder: None, "WordPiece tokenizer in lower case .*, got BPE behind"),
    ],
    ids=[
        "weight", "sizes", "code", "type", "capitals", "ids", "no_json", "list", "no_config", "no_tokenizer",
        "no_weights", "word_for_number", "no_heads", "no_pieces", "one_mean", "one_std", "no_shard", "no_pixels", "bpe",
    ],
)  # fmt: skip
def test_a_folder_that_will_not_do_says_why(
    name: str, spoil: Callable[[Path], object], message: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        hugging_face(str(folder))


def test_a_folder_that_is_not_there_names_the_nearest(folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*/berd; did you mean bert\?"):
        hugging_face(str(folders / "berd"))
    with pytest.raises(ConfigError, match=r"hf/a/b/c needs a folder with config\.json, or the id of a repository"):
        hugging_face("a/b/c")


def test_a_repository_out_of_reach_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError,
        match=r"hf/owner/small is no folder here, and the repository 'owner/small' could not be had from the Hugging "
        r"Face Hub \(HF_HUB_OFFLINE is set, .*\): .*; check the name and the network, or download it elsewhere and "
        r"name its folder: base=hf//path/to/small$",
    ):
        hugging_face("owner/small")


def test_a_repository_is_fetched_without_pickles_and_names_its_revision(
    monkeypatch: pytest.MonkeyPatch, folders: Path, tmp_path: Path
) -> None:
    """Only the download itself is stood in for: it needs the network."""
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(shutil.copytree(folders / "bert", tmp_path / "0123abc"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    base = hugging_face("owner/small")
    assert asked == [("owner/small", ["*.json", "*.txt", "*.safetensors"])]
    assert (base.uri, base.name, base.tags) == ("hf/owner/small", "small", {"base.revision": "0123abc"})
