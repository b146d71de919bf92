from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from neurofleet.data import ParquetDataModule
from neurofleet.data.digest import folder_digest
from neurofleet.errors import ConfigError, DataError, MismatchError
from neurofleet.spec import DataSpec

NAMES = ["pictures", "yes_no", "tags", "amounts"]
STAGES = ("train", "val", "test")


def module(
    name: str = "yes_no",
    batch_size: int = 8,
    split: int = 0,
    train_splits: tuple[str, ...] = ("train",),
    train_rows: int | None = None,
) -> ParquetDataModule:
    return ParquetDataModule(
        name=name, batch_size=batch_size, split=split, train_splits=list(train_splits), train_rows=train_rows
    )


def row_numbers(data: ParquetDataModule) -> dict[str, list[int]]:
    return {stage: data._tables[stage].column("row").to_pylist() for stage in STAGES}


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def set_value(table: pa.Table, name: str, row: int, value: float | None) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize("name", NAMES)
def test_split_0_is_what_lies_on_disk(name: str, datasets: Path) -> None:
    data = module(name)
    assert data.spec == DataSpec.load(datasets / name / "spec.json")
    assert data.digest == folder_digest(datasets / name)
    for stage, num_rows in (("train", 70), ("val", 10), ("test", 20)):
        on_disk = pyarrow.parquet.read_table(datasets / name / f"{stage}.parquet")
        assert row_numbers(data)[stage] == on_disk.column("row").to_pylist()
        rows = data.rows(stage)
        assert rows.inputs.shape == (num_rows, *data.spec.shape)
        assert len(rows.targets) == num_rows
        assert data.rows(stage) is rows


@pytest.mark.parametrize("name", NAMES)
def test_another_split_divides_the_same_rows_anew_with_the_same_sizes(name: str, datasets: Path) -> None:
    disk, other, again = row_numbers(module(name)), row_numbers(module(name, split=4)), module(name, split=4)
    assert row_numbers(again) == other
    assert {stage: len(rows) for stage, rows in other.items()} == {"train": 70, "val": 10, "test": 20}
    assert sorted(other["train"] + other["val"] + other["test"]) == list(range(100))
    assert set(other["test"]) != set(disk["test"])
    assert dict(again.spec.num_rows) == {"train": 70, "val": 10, "test": 20}


def test_another_split_is_stratified_and_standardised_by_its_own_train_rows(datasets: Path) -> None:
    data = module("yes_no", split=3)
    assert data.spec.input_mean != module("yes_no").spec.input_mean
    np.testing.assert_allclose(data.rows("train").inputs.mean(dim=0), [0, 0, 0], atol=1e-5)
    assert abs(data.rows("test").inputs[:, :2].mean()) > 1e-4
    yes = {stage: int(data.rows(stage).targets.sum()) for stage in STAGES}
    assert yes["train"] + yes["val"] + yes["test"] == 25
    assert (yes["test"], yes["val"]) in {(5, 2), (5, 3)}


@pytest.mark.parametrize("split", [0, 2])
def test_refitting_on_train_and_val_leaves_val_empty(split: int, datasets: Path) -> None:
    plain, refit = module("amounts", split=split), module("amounts", split=split, train_splits=("train", "val"))
    assert row_numbers(refit) == {
        "train": row_numbers(plain)["train"] + row_numbers(plain)["val"],
        "val": [],
        "test": row_numbers(plain)["test"],
    }
    assert dict(refit.spec.num_rows) == {"train": 80, "val": 0, "test": 20}
    np.testing.assert_allclose(refit.rows("train").targets.mean(dim=0), [0, 0], atol=1e-5)
    assert refit.rows("val").inputs.shape == (0, 3)
    assert refit.rows("val").targets.shape == (0, 2)
    assert refit.spec.input_mean != plain.spec.input_mean


class Linear(LightningModule):
    """The smallest model that a stock Trainer fits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.batch_sizes: list[int] = []
        self.num_validated = 0

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        self.batch_sizes.append(len(inputs))
        return torch.nn.functional.binary_cross_entropy_with_logits(self.layer(inputs), targets)

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.num_validated += len(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")  # advice that suits files, not memory
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")  # refitting on train and val
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.13
@pytest.mark.parametrize(
    ("train_splits", "num_batches", "num_validated"), [(("train",), 9, 10), (("train", "val"), 10, 0)]
)
def test_a_stock_trainer_fits_through_stock_loaders(
    train_splits: tuple[str, ...], num_batches: int, num_validated: int, datasets: Path, tmp_path: Path
) -> None:
    model = Linear()
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=module(train_splits=train_splits))
    assert model.batch_sizes == [8] * (num_batches - 1) + ([6] if num_validated else [8])
    assert model.num_validated == num_validated


def test_loaders_give_every_row_once_and_only_train_is_shuffled(datasets: Path) -> None:
    data = module("pictures", batch_size=16)
    loaded = torch.cat([inputs for inputs, _ in data.test_dataloader()])
    assert torch.equal(loaded, data.rows("test").inputs)
    torch.manual_seed(0)
    loaded = torch.cat([inputs for inputs, _ in data.train_dataloader()])
    assert not torch.equal(loaded, data.rows("train").inputs)
    assert torch.equal(loaded.flatten(1).sum(1).sort()[0], data.rows("train").inputs.flatten(1).sum(1).sort()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "data.batch_size needs a whole number of at least 1, got 0; set data.batch_size=1 or more"),
        ({"batch_size": -3}, "at least 1, got -3"),
        ({"batch_size": 2.5}, "at least 1, got 2.5"),
        ({"batch_size": True}, "at least 1, got True"),
        ({"split": -1}, "data.split needs a whole number of at least 0, got -1"),
        ({"split": "test"}, "data.split needs a whole number of at least 0, got 'test'"),
        ({"train_splits": ("train", "test")}, r"\[train\] or \[train, val\], got \['train', 'test'\]"),
        ({"train_splits": ()}, r"\[train\] or \[train, val\], got \[\]"),
    ],
    ids=["zero", "negative", "fraction", "boolean", "negative_split", "text_split", "test_rows", "nothing"],
)
def test_impossible_values_are_refused(change: dict[str, object], message: str, datasets: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        module(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tale", "tracks", "faces"])
def test_a_division_of_the_source_s_own_is_kept(name: str, datasets: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.split needs to be 0 for '{name}', got 3: .*; set data.split=0$"):
        module(name, split=3)
    refit = module(name, train_splits=("train", "val"))
    assert len(refit.rows("train").inputs) == sum(refit.spec.num_rows.values()) - len(refit.rows("test").inputs)
    assert row_numbers(refit)["test"] == row_numbers(module(name))["test"]


def test_without_a_val_of_the_source_s_own_an_eighth_of_train_is_set_aside(datasets: Path) -> None:
    data = module("tracks")
    numbers = row_numbers(data)
    assert sorted(numbers["train"] + numbers["val"]) == list(range(80))
    assert sorted(numbers["test"]) == list(range(80, 100))
    for stage, size in (("train", 70), ("val", 10), ("test", 20)):
        counts = torch.bincount(data.rows(stage).targets, minlength=4)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
        first = torch.bincount(data.rows(stage).targets[:8], minlength=4)  # classes are mixed
        assert first.tolist() == [2, 2, 2, 2]


def test_indices_are_divided_anew_like_numbers(datasets: Path) -> None:
    disk, other = module("places"), module("places", split=2)
    assert sorted(row for rows in row_numbers(other).values() for row in rows) == list(range(100))
    assert row_numbers(other)["test"] != row_numbers(disk)["test"]
    assert other.rows("train").inputs.dtype == torch.int64


def test_texts_keep_the_split_of_their_vocabulary(datasets: Path) -> None:
    with pytest.raises(ConfigError, match=r"split needs to be 0 for 'notes', got 2: its vocabulary .*data.split=0$"):
        module("notes", split=2)
    refit = module("notes", train_splits=("train", "val"))
    assert refit.spec.vocabulary == module("notes").spec.vocabulary


def test_an_unknown_stage_is_refused(datasets: Path) -> None:
    with pytest.raises(ConfigError, match="a stage out of train, val, test, got 'validation'"):
        module().rows("validation")


def test_an_unknown_name_lists_the_nearest(datasets: Path) -> None:
    with pytest.raises(DataError, match="needs a known dataset, got 'mnist50k'; did you mean mnist5k"):
        module("mnist50k")


def test_a_known_dataset_that_is_not_prepared_names_the_command(datasets: Path) -> None:
    with pytest.raises(
        DataError, match=r"'wine' is not prepared: .* lacks spec.json, .*: neurofleet data prepare wine$"
    ):
        module("wine")
    (datasets / "yes_no" / "val.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks val.parquet; make it with: neurofleet data prepare yes_no$"):
        module("yes_no")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop_columns(["wide"]),
            r"train.parquet .*lacks 1 of them: 'wide'; make the dataset again",
        ),
        (lambda table: table.drop_columns(["answer"]), r"lacks 1 of them: 'answer'; make .*data prepare yes_no$"),
        (lambda table: set_value(table, "wide", 31, float("nan")), r"train.parquet: column 'wide' .* in row 31 "),
        (lambda table: set_value(table, "wide", 31, None), r"train.parquet: column 'wide' .* got 1 .* in row 31 "),
        (lambda table: set_value(table, "answer", 5, 2), r"train.parquet: column 'answer' .*, got 2 in row 5 "),
        (lambda table: table.slice(1), "needs the 70 rows that spec.json says, got 69; make it again with"),
    ],
    ids=["no_input", "no_target", "nan", "null", "label", "rows"],
)
@pytest.mark.parametrize("split", [0, 1])
def test_a_spoilt_file_is_named(
    change: Callable[[pa.Table], pa.Table], message: str, split: int, datasets: Path
) -> None:
    change_table(datasets / "yes_no" / "train.parquet", change)
    with pytest.raises(DataError, match=message):
        module("yes_no", split=split).rows("train")


def test_a_file_that_is_no_parquet_is_named(datasets: Path) -> None:
    (datasets / "tags" / "test.parquet").write_text("row,wide\n")
    with pytest.raises(DataError, match=r"test.parquet needs to be a readable Parquet file: .*data prepare tags$"):
        module("tags").rows("train")


def test_a_spec_that_is_no_json_is_named(datasets: Path) -> None:
    (datasets / "tags" / "spec.json").write_text("{")
    with pytest.raises(DataError, match=r"spec.json needs to be JSON: .*data prepare tags$"):
        module("tags")


@pytest.mark.slow
def test_reading_a_dataset_imports_neither_pandas_nor_dvc(datasets: Path) -> None:
    code = (
        "import sys; from neurofleet.data import ParquetDataModule as M;"
        "[M(name=n, batch_size=1, split=0, train_splits=['train'], train_rows=None).rows('train')"
        " for n in ('tags', 'pictures')];"
        "print([name for name in ('pandas', 'dvc', 'mlflow', 'ray', 'hydra', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_training_rows_is_what_is_trained_on_and_measured(name: str, datasets: Path) -> None:
    whole, part = module(name), module(name, train_rows=20)
    rows, kept = row_numbers(whole), row_numbers(part)
    assert len(kept["train"]) == 20
    assert set(kept["train"]) < set(rows["train"])
    assert [row for row in rows["train"] if row in kept["train"]] == kept["train"]
    assert (kept["val"], kept["test"]) == (rows["val"], rows["test"])
    assert part.spec.num_rows == {"train": 20, "val": 10, "test": 20}
    smaller = row_numbers(module(name, train_rows=10))["train"]
    assert set(smaller) < set(kept["train"])


def test_a_part_has_each_class_in_proportion(datasets: Path) -> None:
    targets = [module("pictures", train_rows=size).rows("train").targets for size in (70, 35)]
    counts = [torch.bincount(labels).double() for labels in targets]
    assert ((counts[0] / 2 - counts[1]).abs() <= 1).all()


def test_more_training_rows_than_there_are_are_refused(datasets: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_rows needs at most the 70 training rows of 'yes_no', got 71"):
        module(train_rows=71).rows("train")
    with pytest.raises(ConfigError, match=r"data\.train_rows needs a whole number of at least 1, got 0"):
        module(train_rows=0)


@pytest.fixture
def foreign(specs: dict[str, DataSpec]) -> DataSpec:
    """What an encoder was trained on: other words in another order, and shorter texts."""
    words = ("tea", "good", "bad")
    return dataclasses.replace(specs["notes"], name="elsewhere", vocabulary=words, shape=(4,), targets=("other",))


@pytest.mark.parametrize("train_rows", [None, 20])
@pytest.mark.parametrize("train_splits", [("train",), ("train", "val")])
def test_texts_speak_the_tokens_of_what_is_trained_on_them(
    train_splits: tuple[str, ...], train_rows: int | None, foreign: DataSpec, datasets: Path
) -> None:
    own, data = (module("notes", train_splits=train_splits, train_rows=train_rows) for _ in range(2))
    before = data.spec  # which reads the rows where they are not those on disk
    data.speak(foreign)
    taken_over = {"tokenizer": foreign.tokenizer, "vocabulary": foreign.vocabulary, "shape": foreign.shape}
    assert data.spec == dataclasses.replace(before, **taken_over)
    for stage in STAGES:
        assert torch.equal(data.rows(stage).targets, own.rows(stage).targets)
        words = ("<padding>", "<unknown>", *before.vocabulary)
        for theirs, ours in zip(data.rows(stage).inputs.tolist(), own.rows(stage).inputs.tolist(), strict=True):
            known = [foreign.vocabulary.index(words[token]) + 2 if words[token] in foreign.vocabulary else 1
                     for token in ours[:4] if token]  # fmt: skip
            assert theirs == known + [0] * (4 - len(known))


def test_what_cannot_be_spoken_is_refused(foreign: DataSpec, specs: dict[str, DataSpec], datasets: Path) -> None:
    with pytest.raises(MismatchError, match=r"trained on elsewhere \(text\) cannot take yes_no \(tabular\)"):
        module("yes_no").speak(foreign)
    with pytest.raises(MismatchError, match=r"trained on faces \(image\) cannot take notes \(text\)"):
        module("notes").speak(specs["faces"])
    pieces = dataclasses.replace(foreign, tokenizer="wordpieces", vocabulary=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"))
    with pytest.raises(MismatchError, match="tale asks for the next token; take a base that learnt a language task"):
        module("tale").speak(pieces)
    read = module("notes")
    read.rows("test")
    with pytest.raises(RuntimeError, match="call speak first"):
        read.speak(foreign)


def test_the_next_letter_is_told_in_the_letters_of_a_base(specs: dict[str, DataSpec], datasets: Path) -> None:
    letters = tuple(reversed(specs["tale"].vocabulary))
    data = module("tale")
    data.speak(dataclasses.replace(specs["tale"], vocabulary=letters))
    inputs, targets = data.rows("test")
    assert torch.equal(inputs, 2 + len(letters) + 1 - module("tale").rows("test").inputs)
    assert targets.tolist() == [1] * 20
