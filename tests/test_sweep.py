"""Search spaces: what is searched, in Hydra's own syntax, and the experiment of each point, exactly Hydra's own."""

from __future__ import annotations

import copy
import json
import math
import time
from itertools import pairwise
from typing import Any

import pytest

from neurofleet import experiment
from neurofleet.errors import ConfigError
from neurofleet.experiment import compose, sweep
from neurofleet.experiment.check import check_search
from neurofleet.experiment.compose import as_text, composed, parsed, plain
from neurofleet.experiment.sweep import Composer, Dimension, grid_size, parse

# What is searched.


def dimension(text: str) -> Dimension:
    _, space = parse([f"family.key={text}"], {})
    return space["family.key"]


def categorical(*choices: Any) -> Dimension:
    return Dimension("categorical", choices=choices)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3", categorical(1, 2, 3)),
        ("choice(relu, tanh)", categorical("relu", "tanh")),
        ("null,true,1.5,'a b',\"1\"", categorical(None, True, 1.5, "a b", "1")),
        ("[64],[128,64],[]", categorical([64], [128, 64], [])),
        ("choice({a: 1}, {a: x})", categorical({"a": 1}, {"a": "x"})),
        ("range(1,10,2)", Dimension("int", low=1, high=9, step=2)),
        ("range(1,9,2)", Dimension("int", low=1, high=7, step=2)),
        ("range(3)", Dimension("int", low=0, high=2, step=1)),
        ("range(10,1,-3)", Dimension("int", low=4, high=10, step=3)),
        ("range(0,0.3,0.1)", Dimension("float", low=0.0, high=0.2, step=0.1)),
        ("float(range(1,4))", Dimension("float", low=1.0, high=3.0, step=1.0)),
        ("tag(log, range(1,9))", Dimension("int", low=1, high=8, log=True, step=1)),
        ("interval(0,1)", Dimension("float", low=0.0, high=1.0)),
        ("interval(-1e-3,1e-1)", Dimension("float", low=-1e-3, high=1e-1)),
        ("tag(log, interval(1e-4, 1e-1))", Dimension("float", low=1e-4, high=1e-1, log=True)),
        ("int(interval(1,5))", Dimension("int", low=1, high=5, step=1)),
        ("tag(log, int(interval(1,512)))", Dimension("int", low=1, high=512, log=True, step=1)),
        ("int(tag(log, interval(1,512)))", Dimension("int", low=1, high=512, log=True, step=1)),
    ],
)
def test_hydras_sweep_syntax(text: str, expected: Dimension) -> None:
    found = dimension(text)
    assert found == expected
    assert [type(value) for value in (found.low, found.high, found.step)] == [
        type(value) for value in (expected.low, expected.high, expected.step)
    ]
    assert [type(value) for value in found.choices] == [type(value) for value in expected.choices]
    assert Dimension.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("text", ["range(1,10,2)", "range(10,1,-3)", "range(3)", "range(0,1,0.25)", "a,b", "[1],[2,3]"])
def test_a_grid_is_what_hydras_multirun_would_run(text: str) -> None:
    [override] = parsed([f"key={text}"])
    grid = dimension(text).grid()
    assert grid is not None
    assert sorted(map(str, grid)) == sorted(str(value) for value in override.sweep_iterator())
    assert dimension(text).size == len(grid)


def test_tenths_are_tenths() -> None:
    grid = dimension("range(0,1,0.1)").grid()
    assert grid == tuple(number / 10 for number in range(10))


def test_the_size_of_a_grid() -> None:
    _, space = parse(["a.b=1,2,3", "a.c=range(0,1,0.1)", "a.d=int(interval(1,1000000000))"], {})
    assert grid_size(space) == 3 * 10 * 10**9
    assert grid_size(space | {"a.e": dimension("interval(0,1)")}) is None
    assert dimension("interval(0,1)").grid() is None


def test_a_glob_is_a_folder_of_configs() -> None:
    _, space = parse(["family=glob([*n,som],exclude=r*)", "family@family.encoder=glob(m*)"], {})
    assert space["family"].choices == ("cnn", "dbn", "dqn", "gan", "som")
    assert space["family@family.encoder"].choices == ("mlp",)


def test_the_command_line_wins_over_the_file() -> None:
    written = {"optimizer.lr": "interval(0,1)", "family": "mlp,cnn", "+data.settings.g": "5,10", "seed": "range(3)"}
    fixed, space = parse([], written)
    assert (fixed, list(space)) == ([], list(written))
    fixed, space = parse(["optimizer.lr=1,2", "data=wine", "family=som", "++data.settings.g=7"], written)
    assert fixed == ["data=wine", "family=som", "++data.settings.g=7"]
    assert space == {"seed": Dimension("int", low=0, high=2, step=1), "optimizer.lr": categorical(1, 2)}


def test_of_two_values_for_a_key_the_later_counts() -> None:
    assert parse(["seed=1,2", "seed=3"], {}) == (["seed=3"], {})
    assert parse(["seed=3", "seed=1,2"], {}) == ([], {"seed": categorical(1, 2)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interval(1,1)", r"an interval needs two finite numbers, the smaller one first, got family\.key=interval"),
        ("interval(2,1)", r"the smaller one first"),
        ("interval(0,inf)", r"finite"),
        ("tag(log, interval(0,1))", r"a logarithmic scale needs numbers above 0, got .*interval\(0,1\)"),
        ("tag(log, int(interval(0.5,4)))", r"a logarithmic scale needs numbers above 0"),
        ("tag(log, a,b)", r"a, ?b|tag"),
        ("tag(log, choice(1,2))", r"a logarithmic scale needs an interval or a range"),
        ("tag(lgo, interval(1,2))", r"unknown tag.*did you mean log"),
        ("tag(log, range(1,9,2))", r"a logarithmic range needs whole numbers and step 1"),
        ("range(3,3)", r"a range needs at least one value, got family\.key=range\(3,3\); the stop itself is left out"),
        ("range(1,5,0)", r"a step that is not 0"),
        ("range(0,inf)", r"finite"),
        ("1,2,1", r"a choice needs values that differ, got 1 twice"),
        ("glob(*)", r"glob needs a pattern that some config of family\.key has.*no folder"),
        ("intervall(1,2)", r"(?s)Unknown function 'intervall'.*interval"),
        ("interval(1", r"interval"),
    ],
)
def test_values_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as info:
        dimension(text)
    assert info.value.exit_code == 2


@pytest.mark.parametrize(
    "override",
    [
        "search.num_trials=8,16",
        "scheduler=asha,none",
        "study=a,b",
        "launcher=local,ray",
        "name=a,b",
        "~family.dropout=1,2",
    ],
)
def test_what_decides_no_result_is_not_searched(override: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be searched and needs one value.*a list is written \[a,b\]"):
        parse([override], {})


@pytest.mark.parametrize("text", ["0.1", 0.1, "[1,2]", {"lr": "1,2"}, None], ids=repr)
def test_a_file_gives_several_values(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"search\.space\.optimizer\.lr needs several values"):
        parse([], {"optimizer.lr": text})


# The experiment of a point.


def assert_same(left: Any, right: Any) -> None:
    """Equal, types included: 1 is not 1.0 and not True."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right or (left != left and right != right)


POINTS: list[tuple[list[str], dict[str, str], list[dict[str, Any]]]] = [
    (
        ["data=wine", "trainer.max_epochs=3"],
        {"optimizer.lr": "tag(log, interval(1e-9, 1e16))", "trainer.log_every_n_steps": "range(1,99)"},
        [
            {"optimizer.lr": rate, "trainer.log_every_n_steps": number}
            for rate, number in [(1e-9 / 3, 7), (1e16, 1), (3.0, 98), (math.pi, 2), (1e-05, 3), (123456789.125, 4)]
        ],
    ),
    (
        [],
        {
            "family.hidden": "[64],[32,16],[]",
            "trainer.gradient_clip_val": "null,1.0,2",
            "trainer.register": "true,false",
        },
        [
            {"family.hidden": hidden, "trainer.gradient_clip_val": value, "trainer.register": flag}
            for hidden, value, flag in [([64], None, True), ([32, 16], 1.0, False), ([], 2, True)]
        ],
    ),
    (
        ["seed=4"],
        {"family.activation": "relu,tanh"},
        [
            {"family.activation": text}
            for text in [
                "relu",
                "a b",
                "1",
                "1e5",
                "null",
                "True",
                "",
                "it's",
                'say "so"',
                "a,b",
                "[x]",
                "back\\",
                "é",
                "x=y",
            ]
        ],
    ),
    (
        ["trainer.max_epochs=2"],
        {"family": "mlp,som,cnn,siamese,ppo", "optimizer.lr": "interval(0,1)", "seed": "range(9)"},
        [{"family": one, "optimizer.lr": 0.125, "seed": 8} for one in ["mlp", "som", "cnn", "siamese", "ppo"]],
    ),
    (
        ["family=siamese", "data=mnist5k"],
        {
            "family@family.encoder": "mlp,cnn",
            "optimizer": "adam,sgd",
            "schedule": "cosine,constant",
            "data.split": "0,1",
        },
        [
            {"family@family.encoder": encoder, "optimizer": rule, "schedule": schedule, "data.split": 1}
            for encoder, rule, schedule in [
                ("mlp", "adam", "cosine"),
                ("cnn", "sgd", "constant"),
                ("cnn", "adam", "cosine"),
            ]
        ],
    ),
    (
        [],
        {"experiment": "digits_mlp,digits_som", "data": "digits,wine", "optimizer.lr": "1e-2,1e-3"},
        [
            {"experiment": "digits_som", "data": "wine", "optimizer.lr": 0.01},
            {"experiment": "digits_mlp", "data": "digits", "optimizer.lr": 0.001},
            {"experiment": "digits_som", "data": "digits", "optimizer.lr": 1},
        ],
    ),
    (
        [],
        {
            "trainer.early_stopping": "null,{monitor: val/loss, mode: min, patience: 3, min_delta: 0.0}",
            "trainer.checkpoint": "{keep_last: 3},{every_n_minutes: 1.0}",
        },
        [
            {"trainer.early_stopping": None, "trainer.checkpoint": {"keep_last": 3}},
            {
                "trainer.early_stopping": {"monitor": "val/loss", "mode": "min", "patience": 3, "min_delta": 0.0},
                "trainer.checkpoint": {"every_n_minutes": 1.0},
            },
        ],
    ),
    (
        ["name='${data.name}-${seed}-${optimizer.lr}'"],
        {"seed": "range(5)", "optimizer.lr": "interval(0,1)"},
        [{"seed": 3, "optimizer.lr": 0.5}],
    ),
    (
        [],
        {"data.name": "digits,'${family.activation}'"},
        [{"data.name": "${family.activation}"}, {"data.name": "digits"}],
    ),
    (
        ["data=env/pendulum", "family=ppo"],
        {"+data.settings.g": "9.81,1.6", "family.network.hidden": "[8],[16,16]"},
        [
            {"+data.settings.g": 9.81, "family.network.hidden": [8]},
            {"+data.settings.g": 1.6, "family.network.hidden": [16, 16]},
        ],
    ),
]


@pytest.mark.parametrize(("fixed", "written", "points"), POINTS, ids=[" ".join(written) for _, written, _ in POINTS])
def test_a_point_is_the_experiment_that_train_would_run(
    fixed: list[str], written: dict[str, str], points: list[dict[str, Any]]
) -> None:
    composer = Composer(["search=tpe", "scheduler=asha", "study=s", *fixed], parse([], written)[1])
    assert composer.fixed == fixed
    for params in points:
        found = composer.experiment(params)
        assert_same(found, compose([*fixed, *composer.overrides(params)]))
        assert experiment.check(found) == found
        for key, value in params.items():
            node: Any = found
            for name in key.lstrip("+").split(".") if "." in key and "@" not in key else []:
                node = node[name]
            if node is not found and not isinstance(value, dict) and "${" not in str(value):
                assert_same(node, value)


def test_a_key_that_is_added_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = ["data=env/pendulum", "family=ppo"]
    composer = Composer(fixed, parse(["+data.settings.g=interval(1,10)", "++seed=range(9)"], {})[1])
    points = [{"+data.settings.g": 1.5 + place, "++seed": place} for place in range(4)]
    expected = [compose([*fixed, *composer.overrides(point)]) for point in points]
    monkeypatch.setattr(sweep, "composed", None)
    for point, one in zip(points, expected, strict=True):
        assert_same(composer.experiment(point), one)


def test_points_do_not_share_anything() -> None:
    composer = Composer([], parse(["family.hidden=[64],[32]", "seed=1,2"], {})[1])
    hidden = [64]
    one, other = (composer.experiment({"family.hidden": hidden, "seed": 1}) for _ in range(2))
    one["family"]["hidden"].append(1)
    one["family"]["augmentation"]["degrees"] = 5.0
    assert hidden == [64]
    assert other == composer.experiment({"family.hidden": [64], "seed": 1})


def test_hydra_composes_once_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of trials have to begin at once: a composition takes longer than many a trial."""
    composer = Composer([], parse(["family=mlp,som", "optimizer.lr=interval(0,1)", "seed=range(99)"], {})[1])
    monkeypatch.setattr("neurofleet.experiment.sweep.composed", lambda *_: pytest.fail("composed again"))
    began = time.perf_counter()
    made = [composer.experiment({"family": "som", "optimizer.lr": seed / 99, "seed": seed}) for seed in range(99)]
    assert time.perf_counter() - began < 99 * 10e-3, "ten milliseconds each, on however busy a machine"
    assert [one["seed"] for one in made] == list(range(99))
    assert all(one["optimizer"]["lr"] < other["optimizer"]["lr"] for one, other in pairwise(made))


VALUES = [
    None,
    True,
    False,
    0,
    -3,
    10**12,
    0.1,
    -1e-300,
    1e300,
    math.inf,
    "null",
    "NaN",
    "a/b.c-d",
    "-x",
    "\t",
    "\\'",
    "$x",
]
VALUES += [[], [[1], ["a, b"]], {"a": [1, {"b c": None}]}, "é", "${", "a'\\\\'b", '"', "{a:1}", "1_000", "_", "a:b"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_written_as_hydra_reads_it(value: Any) -> None:
    for written, expected in ((value, value), ([value, value], [value, value])):
        [override] = parsed([f"key={as_text(written)}"])
        assert not override.is_sweep_override()
        assert_same(override.value(), expected)


# How a study searches.


@pytest.fixture(scope="module")
def tune() -> dict[str, Any]:
    return plain(composed("tune", []))


@pytest.fixture
def sections(tune: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(tune)


def test_the_space_of_a_file_and_of_the_command_line() -> None:
    composer = Composer.of(
        ["+search.space={seed: 'range(3)', family.hidden: '[1],[2]'}", "seed=7", "family.dropout=0.1,0.2"]
    )
    assert composer.space == {"family.hidden": categorical([1], [2]), "family.dropout": categorical(0.1, 0.2)}
    assert composer.fixed == ["seed=7"], "what stands in `search` is not for train"
    assert "space" not in composer.search


@pytest.mark.parametrize("scheduler", ["none", "asha", "hyperband", "median", "pbt"])
@pytest.mark.parametrize("search", ["random", "grid", "tpe", "cmaes"])
def test_each_search_goes_with_each_scheduler(search: str, scheduler: str) -> None:
    composer = Composer(
        [f"search={search}", f"scheduler={scheduler}", "study=my study"],
        parse(["seed=range(7)", *(["optimizer.lr=interval(0,1)"] if search == "cmaes" else [])], {})[1],
    )
    assert composer.search["sampler"]["_target_"].startswith("optuna.samplers.")
    assert composer.scheduler["_target_"].startswith("neurofleet.study.schedulers.")
    assert composer.search["num_trials"] == {"grid": 7, "cmaes": 64}.get(search, 16)
    assert (composer.search["metric"], composer.search["mode"]) == ("val/loss", "min")
    assert composer.study == "my study"
    assert composer.fixed == []


def test_bohb_is_tpe_in_the_brackets_of_hyperband() -> None:
    overrides = ["search=bohb", "optimizer.lr=interval(0,1)"]
    bohb, both = (
        Composer.of(one)
        for one in (overrides, ["search=tpe", "scheduler=hyperband", *overrides[1:], "search.num_trials=64"])
    )
    assert (bohb.search, bohb.scheduler) == (both.search, both.scheduler)
    assert Composer.of([*overrides, "scheduler=asha"]).scheduler["_target_"].endswith("SuccessiveHalving")


def test_several_objectives() -> None:
    composer = Composer(["search=nsga2"], parse(["seed=1,2"], {})[1])
    assert len(composer.search["metric"]) == len(composer.search["mode"]) == 2


def test_a_part_of_a_grid() -> None:
    space = parse(["seed=range(7)"], {})[1]
    assert Composer(["search=grid", "search.num_trials=3"], space).search["num_trials"] == 3
    assert Composer(["search=grid", "search.num_trials=9"], space).search["num_trials"] == 7


def test_off_is_a_word(sections: dict[str, Any]) -> None:
    sections["search"]["fuse"] = False  # as YAML reads it in a file
    assert check_search(sections)["search"]["fuse"] == "off"
    assert Composer(["search.fuse=off"], parse(["seed=1,2"], {})[1]).search["fuse"] == "off"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"tune needs something to search, got no key with several values; e\.g\. 'optimizer\.lr=tag\(log,"),
        (["optimizer.lrr=1,2"], r"the config has no key 'optimizer\.lrr'; did you mean optimizer\.lr"),
        (["+family.dropout=0.1,0.2"], r"(?s)family\.dropout"),
        (["optimizer=adam,null"], r"optimizer needs names of config files, got optimizer=adam,null"),
        (["optimizer=adam,sdg"], r"with optimizer=sdg: there is no optimizer/sdg; did you mean sgd"),
        (["optimizer=sdg,adam"], r"there is no optimizer/sdg; did you mean sgd"),
        (["family=cnn,mlp", "family.channels=[1],[2]"], r"with family=mlp: the config has no key 'family\.channels'"),
        (["famly=mlp,cnn"], r"famly"),
        (["seed=-1,2"], r"seed needs a whole number"),
        (["family._target_=os.system,os.popen"], r"needs an allowed target, got 'os"),
        (["seed=1,2", "search=tpo"], r"there is no search/tpo; did you mean tpe"),
        (["seed=1,2", "scheduler=aha"], r"there is no scheduler/aha; did you mean asha"),
        (["seed=1,2", "search.num_trial=3"], r"no key 'search\.num_trial'; did you mean search\.num_trials"),
        (
            ["seed=1,2", "scheduler=asha", "scheduler.grace=3"],
            r"no key 'scheduler\.grace'; known: scheduler\.grace_epochs",
        ),
        (["seed=1,2", "hydra.run.dir=x"], r"hydra's own settings"),
        (["seed=1,2", "search.sampler._target_=os.system"], r"search\.sampler\._target_ needs an allowed target"),
        (["seed=1,2", "scheduler._target_=torch.optim.SGD"], r"_target_ needs something of neurofleet\.study\."),
        (["seed=1,2", "search.sampler._target_=torch.optim.SGD"], r"_target_ needs something of optuna\.samplers\."),
        (["seed=1,2", "search=nsga2", "scheduler=asha"], r"a scheduler judges trials by one metric.*scheduler=none"),
        (["seed=1,2", "search.space=null"], r"search\.space needs keys and their values, got None"),
        (
            ["seed=1,2", "search=cmaes", "search.metric=[val/loss,num_parameters]", "search.mode=[min,min]"],
            r"one metric",
        ),
        (["seed=range(2)", "optimizer=adam,sgd", "search=cmaes"], r"two intervals or ranges, got seed; .* search=tpe"),
        (["optimizer.lr=interval(0,1)", "search=grid"], r"a grid needs values that can be counted.*optimizer\.lr"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_mistake_is_a_config_error(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as info:
        Composer.of(overrides)
    assert info.value.exit_code == 2
    assert len(str(info.value).splitlines()) < 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": None}, r"search\.sampler needs a _target_"),
        ({"sampler": {"seed": 1}}, r"search\.sampler needs a _target_"),
        ({"trials": 3}, r"search has no setting 'trials'; did you mean num_trials"),
        ({"num_trials": 0}, r"search\.num_trials needs a whole number of at least 1, got 0"),
        ({"num_trials": 1.5}, r"search\.num_trials needs a whole number"),
        ({"num_trials": True}, r"search\.num_trials needs a whole number"),
        ({"num_trials": None}, r"search\.num_trials needs a whole number of at least 1, got None"),
        ({"max_concurrent": 0}, r"search\.max_concurrent needs a whole number of at least 1 or null"),
        ({"max_stack": None}, r"search\.max_stack needs a whole number of at least 1, got None"),
        ({"fuse": "stacked"}, r"search\.fuse needs one of auto, stack, compile, pack, off, got 'stacked'"),
        ({"fuse": ["off"]}, r"search\.fuse needs one of"),
        ({"fuse": 0}, r"search\.fuse needs one of"),
        ({"time_limit_minutes": 0}, r"search\.time_limit_minutes needs a number above 0 or null"),
        ({"time_limit_minutes": math.nan}, r"search\.time_limit_minutes needs a number above 0 or null"),
        ({"device_hours": -1}, r"search\.device_hours needs a number above 0 or null, got -1"),
        ({"device_hours": True}, r"search\.device_hours needs a number above 0 or null"),
        ({"seed": -1}, r"search\.seed needs a whole number from 0"),
        ({"space": ["a"]}, r"search\.space needs keys and their values"),
        ({"metric": 3}, r"search\.metric needs the name of a metric or a list"),
        ({"metric": ["val/loss"], "mode": ["min"]}, r"search\.metric needs two names or more that differ"),
        ({"metric": ["a", "a"], "mode": ["min", "max"]}, r"search\.metric needs two names or more"),
        ({"mode": "least"}, r"search\.mode needs min or max"),
        ({"mode": None}, r"search\.mode needs min or max"),
        ({"mode": ["min"]}, r"search\.mode needs one of min and max for each metric"),
        ({"metric": ["a", "b"]}, r"search\.mode needs one of min and max for each metric"),
        ({"metric": ["a", "b"], "mode": ["min"]}, r"search\.mode needs one of min and max for each"),
    ],
    ids=repr,
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str, sections: dict[str, Any]) -> None:
    sections["search"] |= changes
    with pytest.raises(ConfigError, match=message):
        check_search(sections)


@pytest.mark.parametrize("name", ["a/b", "", " ", "-x", ["a"], "a\n"])
def test_a_study_has_a_name(name: Any, sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="study needs a name of letters"):
        check_search(sections | {"study": name})


def test_a_trial_has_a_value_for_each_searched_key() -> None:
    composer = Composer([], parse(["seed=1,2", "optimizer.lr=1,2"], {})[1])
    with pytest.raises(ConfigError, match=r"a trial needs a value for each searched key, lacking optimizer\.lr"):
        composer.experiment({"seed": 1})
    with pytest.raises(ConfigError, match=r"the study does not search 'optimizer\.rl'; did you mean optimizer\.lr"):
        composer.overrides({"seed": 1, "optimizer.rl": 1})


@pytest.mark.parametrize("lacking", ["search", "scheduler", "study"])
def test_a_study_has_its_sections(lacking: str, sections: dict[str, Any]) -> None:
    del sections[lacking]
    with pytest.raises(ConfigError, match=f"lacking {lacking}"):
        check_search(sections)
