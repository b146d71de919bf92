"""Experiment: a resolved plain dict that names family, data, optimizer, schedule, trainer, launcher and seed.

It alone decides a result.

    compose.py   configs and overrides -> experiment (Hydra)
    check.py     refuses what must not be built; names, digest, reading and writing
    build.py     experiment -> data, family, recipe
    space.py     what a study searches, from Hydra's sweep grammar
    sweep.py     a point of that space -> experiment
"""

from neurofleet.experiment.build import build, build_data, build_family, build_recipe, fitting_families
from neurofleet.experiment.check import (
    SECTIONS,
    TARGETS,
    Experiment,
    check,
    check_search,
    data_name,
    digest,
    family_name,
    load,
    save,
)
from neurofleet.experiment.compose import choices_of, compose, composed, explained, from_config, helped, plain
from neurofleet.experiment.space import Dimension, Space, grid_size
from neurofleet.experiment.sweep import TRAIN, Composer, Verb

__all__ = [
    "SECTIONS",
    "TARGETS",
    "TRAIN",
    "Composer",
    "Dimension",
    "Experiment",
    "Space",
    "Verb",
    "build",
    "build_data",
    "build_family",
    "build_recipe",
    "check",
    "check_search",
    "choices_of",
    "compose",
    "composed",
    "data_name",
    "digest",
    "explained",
    "family_name",
    "fitting_families",
    "from_config",
    "grid_size",
    "helped",
    "load",
    "plain",
    "save",
]
