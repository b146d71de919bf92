"""Experiment: a resolved plain dict that names family, data, optimizer, schedule, trainer, launcher and seed.

It alone decides a result.

    compose.py   configs and overrides -> experiment (Hydra)
    check.py     refuses what must not be built; names, digest, reading and writing
    build.py     experiment -> data, family, recipe
"""

from neurofleet.experiment.build import build, build_data, build_family, build_recipe, fitting_families
from neurofleet.experiment.check import SECTIONS, TARGETS, Experiment, check, data_name, digest, family_name, load, save
from neurofleet.experiment.compose import compose, explained, from_config

__all__ = [
    "SECTIONS",
    "TARGETS",
    "Experiment",
    "build",
    "build_data",
    "build_family",
    "build_recipe",
    "check",
    "compose",
    "data_name",
    "digest",
    "explained",
    "family_name",
    "fitting_families",
    "from_config",
    "load",
    "save",
]
