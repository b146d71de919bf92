from __future__ import annotations

import numpy as np
import pytest

from neurofleet.data.splits import assign, default_sizes, keys, statistics, strata
from neurofleet.data.write import Raw, divide

SIZES = {"train": 700, "val": 100, "test": 200}


def test_the_keys_are_those_of_splitmix64() -> None:
    # The published first outputs of SplitMix64 for seed 1234567 are mix(seed + n * golden); a row's key is
    # mix(row + mix(golden)) for split 0, checked here in Python's own integers.
    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    assert mix((1234567 + golden) % 2**64) == 6457827717110365317
    expected = [mix((row + mix((split + 1) * golden % 2**64)) % 2**64) for split in (0, 3) for row in (0, 1, 4999)]
    rows = np.array([0, 1, 4999])
    assert [*keys(rows, 0).tolist(), *keys(rows, 3).tolist()] == expected


def test_no_two_rows_share_a_key() -> None:
    assert len(np.unique(keys(np.arange(100_000), 0))) == 100_000


@pytest.mark.parametrize("split", [0, 1, 17])
def test_sizes_are_exact_and_no_row_is_lost_or_doubled(split: int) -> None:
    parts = assign(np.arange(1000), np.arange(1000) % 7, SIZES, split)
    assert {stage: len(part) for stage, part in parts.items()} == SIZES
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))


def test_every_stage_and_every_prefix_of_one_holds_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    parts = assign(np.arange(1000), labels, SIZES, split=5)
    for stage, part in parts.items():
        for length in (SIZES[stage], SIZES[stage] // 2):
            counts = np.bincount(labels[part[:length]], minlength=3)
            np.testing.assert_allclose(counts, np.array([0.8, 0.15, 0.05]) * length, atol=2)


def test_a_split_is_a_function_of_row_and_split_number_alone() -> None:
    labels = np.arange(1000) % 3
    shuffled = np.random.default_rng(0).permutation(1000)
    np.random.seed(1)  # the global generator must not matter
    first = assign(np.arange(1000), labels, SIZES, split=2)
    np.random.seed(2)
    second = assign(shuffled, labels[shuffled], SIZES, split=2)
    for stage in SIZES:
        assert first[stage].tolist() == shuffled[second[stage]].tolist()


def test_splits_differ_as_independent_draws_would() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    tests = [set(assign(np.arange(1000), labels, SIZES, split)["test"].tolist()) for split in range(6)]
    overlaps = [len(a & b) for index, a in enumerate(tests) for b in tests[:index]]
    assert min(overlaps) > 20  # 200 of 1000 twice: 40 expected, standard deviation 5
    assert max(overlaps) < 60


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to the rows"):
        assign(np.arange(10), np.zeros(10), SIZES, split=0)


def test_default_sizes() -> None:
    assert default_sizes(1797) == {"train": 1257, "val": 180, "test": 360}
    assert default_sizes(1000) == SIZES


def test_strata() -> None:
    labels = np.array([[0, 1], [1, 1], [0, 1], [0, 0]])
    assert strata(labels, "multilabel").tolist() == [1, 2, 1, 0]
    assert strata(labels[:, :1], "binary").tolist() == [0, 1, 0, 0]
    amounts = np.random.default_rng(0).normal(size=(100, 1))
    tenths = strata(amounts, "regression")
    assert np.bincount(tenths).tolist() == [10] * 10
    assert max(amounts[tenths == 3]) < min(amounts[tenths == 4])
    ties = np.random.default_rng(0).integers(0, 5, (100, 1)).astype(np.float64)
    assert strata(ties[::-1], "regression").tolist() == strata(ties, "regression")[::-1].tolist()


def test_statistics_of_a_table_are_those_of_numpy_and_a_constant_has_std_1() -> None:
    table = np.random.default_rng(0).normal([5, -1e6], [2, 1e-3], (1000, 2))
    table = np.concatenate([table, np.full((1000, 1), 0.1)], axis=1)
    mean, std = statistics(table, "tabular")
    np.testing.assert_allclose(mean, table.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std[:2], table[:, :2].std(axis=0), rtol=1e-9)
    assert (mean[2], std[2]) == (0.1, 1.0)


def test_statistics_of_images_are_per_channel_in_raw_units() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 6, 7)).astype(np.uint8)
    images[:, 1] = 9
    mean, std = statistics(images, "image")
    np.testing.assert_allclose(mean, [images[:, 0].mean(), 9], rtol=1e-12)
    np.testing.assert_allclose(std, [images[:, 0].std(), 1], rtol=1e-12)


def test_statistics_do_not_depend_on_the_order_of_rows() -> None:
    table = np.random.default_rng(0).lognormal(size=(3000, 1))
    assert statistics(table, "tabular")[0] == statistics(table[::-1], "tabular")[0]


def faces(stages: dict[str, np.ndarray] | None) -> Raw:
    return Raw(
        kind="image",
        task="verification",
        inputs={"image": np.zeros((6, 1, 2, 2), dtype=np.uint8)},
        targets={"person": np.arange(6) // 2},
        classes=("a", "b", "c"),
        stages=stages,
        source="test",
    )


def test_identities_are_never_divided_by_a_hash() -> None:
    with pytest.raises(ValueError, match="verification needs `stages`, divided by identity, got none"):
        divide(faces(None))


def test_no_row_stands_in_two_stages() -> None:
    rows = np.arange(6)
    parts = divide(faces({"train": rows[:2], "val": rows[2:4], "test": rows[4:]}))
    assert {stage: part.tolist() for stage, part in parts.items()} == {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    for stages in ({"train": rows[:3], "val": rows[2:4]}, {"train": rows[[0, 1, 2, 2]], "val": rows[3:4]}):
        with pytest.raises(ValueError, match="`stages` need to share no row, got row 2 2 times"):
            divide(faces(stages | {"test": rows[4:]}))
