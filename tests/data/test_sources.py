from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from neurofleet.data.sources import coded, columns, packaged, read_columns, read_ts, stacked

TS = """#a comment
@problemName test
@data
1,2,3:4,5,6:up

7,8:9,10:down
"""


def test_a_ts_file_gives_steps_by_channels_and_nan_after_a_short_end(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text(TS)
    values, labels = read_ts(tmp_path / "a.ts")
    nan = np.nan
    np.testing.assert_array_equal(values, [[[1, 4], [2, 5], [3, 6]], [[7, 9], [8, 10], [nan, nan]]])
    assert labels == ["up", "down"]


def test_an_official_division_is_stacked_and_filled_up() -> None:
    values, stages = stacked(np.ones((2, 3, 1)), np.ones((1, 5, 1)))
    assert values.shape == (3, 5, 1)
    assert np.isnan(values).sum() == 4
    assert np.isnan(values[:2, 3:]).all()
    assert {stage: rows.tolist() for stage, rows in stages.items()} == {"train": [0, 1], "test": [2]}


def test_a_file_of_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x;y\n1;2.5\n3;4.5\n"))
    table = read_columns(tmp_path / "a.csv.gz", delimiter=";")
    assert {name: column.tolist() for name, column in table.items()} == {"x": [1, 3], "y": [2.5, 4.5]}


def test_names_and_levels() -> None:
    assert list(columns(np.zeros((2, 2)), ["mean area", "a/b"])) == ["mean_area", "a_b"]
    assert coded(["b", "a"], ("a", "b")).tolist() == [1, 0]
    with pytest.raises(KeyError, match="c"):
        coded(["c"], ("a", "b"))


def test_a_file_of_a_package_is_found_without_an_import() -> None:
    assert packaged("numpy", "__init__.py").is_file()
    with pytest.raises(ModuleNotFoundError, match="no package 'no_such_package'") as raised:
        packaged("no_such_package", "file")
    assert raised.value.name == "no_such_package"
