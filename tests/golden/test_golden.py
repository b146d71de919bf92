"""Seeded runs end with the losses that are stored; `refresh.py` beside this file says how to renew them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent


def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_refresh", FOLDER / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STORED = json.loads((FOLDER / "losses.json").read_text())


def test_every_golden_run_is_stored() -> None:
    assert set(STORED) == set(refresh().GOLDEN)


@pytest.mark.parametrize("name", STORED)
def test_losses_stay(name: str) -> None:
    found = refresh().losses(name)
    assert set(found) == set(STORED[name])
    for metric, values in STORED[name].items():
        assert found[metric] == pytest.approx(values, rel=1e-9, abs=0), metric
