"""What agents share: networks of the shape of what is seen, and scores of episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from neurofleet import experiment as experiments
from neurofleet.data import decode, encode
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.experience import Episodes
from neurofleet.families._agent import NETWORKS, network_spec
from neurofleet.spec import DataSpec

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "family"


@pytest.mark.parametrize(("shape", "kind"), [((4,), "tabular"), ((3, 8, 8), "image")], ids=["row", "picture"])
def test_a_network_sees_observations_as_what_has_their_shape(
    shape: tuple[int, ...], kind: str, make_spec: Callable[..., DataSpec]
) -> None:
    spec = make_spec("control", shape, kind="environment", targets=(), classes=("left", "right"))
    inner = network_spec(spec, 3)
    assert (inner.kind, inner.task, inner.shape, inner.num_outputs) == (kind, "regression", shape, 3)


@pytest.mark.parametrize("family", ["dqn", "ppo"])
def test_the_network_may_be_any_that_fits(family: str, make_spec: Callable[..., DataSpec]) -> None:
    spec = make_spec("control", (1, 8, 8), kind="environment", targets=(), classes=("left", "right"))
    for name in sorted(path.stem for path in CONFIGS.glob("*.yaml")):  # by the command's own words
        overrides = [f"family={family}", "data=env/cartpole", f"family@family.network={name}"]
        if name in NETWORKS:
            agent = experiments.build_family(experiments.compose(overrides), spec)
            assert agent(torch.zeros(5, 1, 8, 8)).shape == (5, 2)
        else:
            with pytest.raises((ConfigError, MismatchError)):
                experiments.build_family(experiments.compose(overrides), spec)


@pytest.mark.parametrize("family", ["dqn", "ppo"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("autoencoder", r"family\.network needs a supervised family, got Autoencoder; set .* to one of mlp$"),
        ("spiking", r"family\.network needs a network that starts without training rows, .*, got Spiking; set family@"),
        ("rbf", r"family\.network needs a network that starts without training rows, .*, got RBF; set family@"),
    ],
)
def test_what_cannot_decide_is_refused(
    family: str, name: str, message: str, make_spec: Callable[..., DataSpec]
) -> None:
    spec = make_spec("control", (4,), kind="environment", targets=(), classes=("left", "right"))
    composed = experiments.compose([f"family={family}", "data=env/cartpole", f"family@family.network={name}"])
    with pytest.raises(ConfigError, match=message):
        experiments.build_family(composed, spec)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("cartpole", ["prediction", "probability_left", "probability_right"]), ("pendulum", ["prediction"])],
)
def test_what_is_said_at_serving_time_is_in_the_environments_terms(name: str, columns: list[str]) -> None:
    experiment = experiments.compose(["family=ppo", f"data=env/{name}"])
    spec = experiments.build_data(experiment).spec
    agent: Any = experiments.build_family(experiment, spec)
    table = pd.DataFrame([[0.1] * len(spec.inputs)], columns=list(spec.inputs))
    outputs = agent(encode(table, spec))
    said = decode(outputs, spec, agent.output_names)
    assert list(said.columns) == columns
    if name == "pendulum":  # a torque between -2 and 2
        assert said["prediction"][0] == pytest.approx(2 * outputs.item())


def test_episodes_are_scored_by_what_they_brought(make_spec: Callable[..., DataSpec]) -> None:
    spec = make_spec("control", (4,), kind="environment", targets=(), classes=("left", "right"))
    agent: Any = experiments.build_family(experiments.compose(["family=ppo", "data=env/cartpole"]), spec)
    for returns, lengths in (([1.0, 2.0], [10, 20]), ([6.0], [30])):
        agent._evaluate(Episodes(torch.tensor(returns), torch.tensor(lengths)), "val")
    assert {name: value.item() for name, value in agent._means("val").items()} == {
        "return": 3.0,
        "episode_length": 20.0,
    }
    assert agent.score_names == ["return", "episode_length"]
