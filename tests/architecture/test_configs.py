"""Every shipped config composes and builds, and the allow-list of targets holds what the configs use and no more."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from omegaconf import OmegaConf

from neurofleet import experiment, paths
from neurofleet.data import EnvironmentDataModule
from neurofleet.data.catalog import NEEDS
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.experiment.check import GRID, SEARCH_SECTIONS
from neurofleet.experiment.compose import composed as composed_config
from neurofleet.experiment.compose import plain
from neurofleet.spec import DataSpec

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """A config as Hydra reads it (plain YAML takes 1e-3 for text)."""
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def targets_in(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)


def spec_of(name: str) -> DataSpec:
    path = paths.data() / name / "spec.json"
    if name in NEEDS and not path.exists():
        pytest.skip(f"{name} is not prepared: it needs {NEEDS[name]}")
    return DataSpec.load(path)


CHOICES = [
    (folder.name, option) for folder in sorted(CONFIGS.iterdir()) if folder.is_dir() for option in options(folder.name)
]

# An experiment that names what it starts from is for `neurofleet finetune`.
FINETUNINGS = [
    ("experiment", one) for one in options("experiment") if "base" in read(CONFIGS / f"experiment/{one}.yaml")
]


def assert_holds(composed: dict[str, Any], own: dict[str, Any]) -> None:
    """Each value that a file gives is there; what it builds upon may have more."""
    for key, value in own.items():
        if isinstance(value, dict) and value:
            assert_holds(composed[key], value)
        elif "${" not in str(value):
            assert composed[key] == value


@pytest.mark.parametrize(("group", "option"), CHOICES, ids=lambda part: part)
def test_each_choice_composes(group: str, option: str) -> None:
    if group in SEARCH_SECTIONS:
        composed = experiment.check_search(plain(composed_config("tune", [f"{group}={option}"])))
    elif group == "method" or (group, option) in FINETUNINGS:
        composed = plain(composed_config("finetune", [f"{group}={option}"]))
    elif group == "finder":
        composed = plain(composed_config("tune", [f"{group}={option}"]))
    else:
        composed = experiment.compose([f"{group}={option}"])
        assert set(composed) == set(experiment.SECTIONS)
    if group in (*experiment.SECTIONS, *SEARCH_SECTIONS, "method", "finder"):
        own = read(CONFIGS / group / f"{option}.yaml")
        said = own.get(group, own)  # one that also chooses from another group stands at the top
        assert_holds(composed[group], {key: value for key, value in said.items() if key != "defaults"})


@pytest.mark.parametrize("option", [option for _, option in FINETUNINGS])
def test_each_finetuning_holds_what_its_file_says(option: str) -> None:
    own = {key: value for key, value in read(CONFIGS / f"experiment/{option}.yaml").items() if key != "defaults"}
    assert_holds(plain(composed_config("finetune", [f"experiment={option}"])), own)


@pytest.mark.parametrize("option", options("experiment"))
def test_the_other_verb_says_whose_experiment_it_is(option: str) -> None:
    verb, other = ("finetune", "train") if ("experiment", option) in FINETUNINGS else ("train", "finetune")
    with pytest.raises(ConfigError, match=f"^experiment={option} is .* type: neurofleet {verb} experiment={option}$"):
        composed_config(other, [f"experiment={option}"])


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("family", options("family"))
def test_each_family_builds_for_each_dataset_that_fits(family: str, data: str) -> None:
    composed, spec = experiment.compose([f"family={family}", f"data={data}"]), spec_of(data)
    fitting = experiment.fitting_families(spec)
    assert fitting, f"no family fits {data}"
    if family in fitting:
        network = experiment.build_family(composed, spec)
        assert sum(parameter.numel() for parameter in network.parameters()) > 0
    else:
        with pytest.raises(MismatchError, match=f"families that fit: {', '.join(fitting)}"):
            experiment.build_family(composed, spec)


@pytest.mark.parametrize("data", options("data"))
def test_each_dataset_builds(data: str) -> None:
    spec = spec_of(data)
    module = experiment.build_data(experiment.compose([f"data={data}"]))
    assert module.spec.name == data
    assert module.spec == spec


@pytest.mark.parametrize("name", options("data/env"))
def test_each_environment_builds_with_the_families_that_fit(name: str) -> None:
    module = experiment.build_data(experiment.compose([f"data=env/{name}"]))
    assert isinstance(module, EnvironmentDataModule)
    assert module.spec.name == name
    fitting = experiment.fitting_families(module.spec)
    assert fitting == (["dqn", "ppo"] if module.spec.classes else ["ppo"])
    for family in options("family"):
        composed = experiment.compose([f"family={family}", f"data=env/{name}"])
        if family in fitting:
            experiment.build_family(composed, module.spec)
        else:
            with pytest.raises(MismatchError, match=f"families that fit: {', '.join(fitting)}"):
                experiment.build_family(composed, module.spec)


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_each_optimizer_builds(optimizer: str) -> None:
    composed = experiment.compose([f"optimizer={optimizer}"])
    recipe = experiment.build_recipe(composed, num_steps=10, log_every_n_steps=1, gradient_clip_val=None)
    weight = torch.nn.Parameter(torch.ones(3))
    made = recipe.optimizer([weight])
    weight.square().sum().backward()
    made.step()
    assert bool((weight.detach() < 1).all()), "a step on the square of the weights has to shrink them"


@pytest.mark.parametrize("schedule", options("schedule"))
def test_each_schedule_builds(schedule: str) -> None:
    composed = experiment.compose([f"schedule={schedule}"])
    recipe = experiment.build_recipe(composed, num_steps=10, log_every_n_steps=1, gradient_clip_val=None)
    factors = [recipe.schedule(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert max(factors) > 0


@pytest.mark.parametrize("trainer", options("trainer"))
def test_each_trainer_builds(trainer: str) -> None:
    assert experiment.build(experiment.compose([f"trainer={trainer}"])["trainer"]) is not None


@pytest.mark.parametrize("search", options("search"))
def test_each_sampler_draws(search: str) -> None:
    section = experiment.check_search(plain(composed_config("tune", [f"search={search}"])))["search"]
    given = {"search_space": {"lr": [0.1, 0.2]}} if section["sampler"]["_target_"] == GRID else {}
    sampler = experiment.build(section["sampler"], "search.sampler", seed=section["seed"], **given)
    directions = ["minimize" for _ in section["metric"]] if isinstance(section["metric"], list) else ["minimize"]
    study = optuna.create_study(sampler=sampler, directions=directions)
    lr = optuna.distributions.FloatDistribution(0.1, 0.2, step=0.1)
    assert study.ask({"lr": lr}).params["lr"] in (0.1, 0.2)


@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_each_scheduler_builds(scheduler: str) -> None:
    config = read(CONFIGS / "scheduler" / f"{scheduler}.yaml")
    assert type(experiment.build(config, "scheduler")).__name__ == config["_target_"].rpartition(".")[2]


def test_the_allow_list_is_what_the_configs_use() -> None:
    used = {target for path in CONFIGS.rglob("*.yaml") for target in targets_in(read(path))}
    # Ray Tune's own schedulers are for whoever names one in a scheduler section of theirs; we ship translations.
    # What `neurofleet.transfer` holds is written into an experiment by `finetune base=...`, which no config can spell.
    elsewhere = ("ray.tune.schedulers.", "neurofleet.transfer.")
    assert used == {target for target in experiment.TARGETS if not target.startswith(elsewhere)}


@pytest.mark.parametrize("target", sorted(name for name in experiment.TARGETS if name.startswith("neurofleet.")))
def test_values_live_in_configs_alone(target: str) -> None:
    """A constructor's signature is the schema: keyword-only, without defaults."""
    module, name = target.rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    assert [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY] == []
    assert [one.name for one in parameters if one.default is not one.empty] == []
