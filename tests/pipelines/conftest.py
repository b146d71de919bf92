from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def prepare(project_root: Path) -> ModuleType:
    """pipelines/prepare.py"""
    spec = importlib.util.spec_from_file_location("prepare", project_root / "pipelines" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
