"""Experiments: what a config may say, what it may not, and how a mistake is answered."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neurofleet import experiment
from neurofleet.errors import ConfigError, MismatchError, UserError
from neurofleet.experiment import build, check, compose


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return compose(["family=cnn", "optimizer=sgd", "schedule=cosine"])


def changed(original: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced, or added, at a dotted place."""
    copied = copy.deepcopy(original)
    *parents, last = place.split(".")
    node = copied
    for name in parents:
        node = node[name]
    node[last] = value
    return copied


# What is misspelt.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("family=mpl", r"there is no family/mpl; did you mean mlp\?.*autoencoder, .*mlp"),
        ("data=digit", r"there is no data/digit; did you mean digits"),
        ("data=cartpole", r"there is no data/cartpole; did you mean env/cartpole\?"),
        ("data=env/cartpol", r"there is no data/env/cartpol; did you mean env/cartpole"),
        ("optimizer=adamW", r"there is no optimizer/adamW; did you mean .*adamw"),
        ("trainer=nosuch_zzz", r"there is no trainer/nosuch_zzz; known: default, early_stopping"),
        ("family.hiden=[3]", r"the config has no key 'family\.hiden'; did you mean family\.hidden\?$"),
        ("family=som family.row=3", r"the config has no key 'family\.row'; did you mean family\.rows\?$"),
        ("family=siamese family.encoder.hiden=[3]", r"did you mean family\.encoder\.hidden\?$"),
        ("family.zzz=1", r"the config has no key 'family\.zzz'; known: family\.activation, family\.\w+, [\w., ]+$"),
        ("family.chanels=[3]", r"the config has no key 'family\.chanels'; did you mean family\.channels"),
        ("optimizer=adamw optimizer.momentun=0.9", r"did you mean optimizer\.momentum\?$"),
        ("hidden=[3]", r"the config has no key 'hidden'; did you mean family\.hidden"),
        ("optimizer=adamw optimizer.beta=[0.9,0.9]", r"did you mean optimizer\.betas\?$"),
        ("trainer.max_epoch=3", r"the config has no key 'trainer\.max_epoch'; did you mean trainer\.max_epochs"),
        ("sede=3", r"the config has no key 'sede'; did you mean seed"),
        ("family=siamese family@family.encoder=som", r"family\.encoder needs a supervised family, got som"),
        ("famly=mlp", r"'famly'.*family"),
        ("optimizer.lr", r"optimizer\.lr"),
        (
            "trainer.checkpoint.keep=1",
            r"the config has no key 'trainer\.checkpoint\.keep'; did you mean trainer\.checkpoint\.keep_last",
        ),
    ],
)
def test_a_misspelt_name_lists_the_nearest(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as info:
        compose(override.split())
    assert info.value.exit_code == 2
    assert len(str(info.value).splitlines()) < 6


@pytest.mark.parametrize("seed", ["-1", "null", "2147483648", "1.5", "true", "abc"])
def test_a_seed_is_a_whole_number(seed: str) -> None:
    with pytest.raises(ConfigError, match="seed needs a whole number from 0 to 2147483647, got"):
        compose([f"seed={seed}"])


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)missing.*optimizer\.lr"):
        compose(["optimizer.lr=???"])


@pytest.mark.parametrize("section", experiment.SECTIONS)
def test_every_section_is_needed(section: str, composed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"lacking .*{section}"):
        check({key: value for key, value in composed.items() if key != section})


def test_no_section_is_added(composed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"unknown .*'callbacks'"):
        check(composed | {"callbacks": []})


# What must not be there.

FORBIDDEN = [
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "subprocess.Popen",
    "torch.load",
    "pickle.loads",
    "hydra.utils.instantiate",
    "neurofleet.experiment.build",
    "neurofleet.families._base.Family",
    "torch.optim.LBFGS",
    "torch.optim.sgd.SGD",
    " torch.optim.SGD",
    "torch.optim.SGD\n",
    "",
    None,
    7,
    ["os.system"],
    {"os": "system"},
]


@pytest.mark.parametrize("target", FORBIDDEN, ids=str)
@pytest.mark.parametrize("place", ["family", "optimizer", "launcher", "nested", "listed", "deep"])
def test_a_target_outside_the_list_is_refused(target: Any, place: str, composed: dict[str, Any]) -> None:
    bad = {"_target_": target}
    config = {
        "nested": changed(composed, "trainer.checkpoint", bad),
        "listed": changed(composed, "family.channels", [8, bad]),
        "deep": changed(composed, "family.channels", [[{"a": (bad,)}]]),
    }.get(place) or changed(composed, f"{place}._target_", target)
    with pytest.raises(ConfigError, match=r"_target_ needs an allowed target, got"):
        check(config)
    with pytest.raises(ConfigError, match=r"_target_ needs an allowed target, got"):
        build(bad)


@pytest.mark.parametrize(
    "override",
    [
        "family._target_=os.system",
        "+family.extra={_target_:os.system}",
        "+family.extra=[{_target_:builtins.eval}]",
        "family._target_=[a,b]",
        "+trainer.checkpoint._target_=torch.load",
        "family._target_=${name}",
    ],
)
def test_a_target_outside_the_list_is_refused_on_the_command_line(override: str) -> None:
    with pytest.raises(ConfigError, match="needs an allowed target"):
        compose([override])


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("family", "torch.optim.SGD"),
        ("family.encoder", "neurofleet.data.ParquetDataModule"),
        ("data", "neurofleet.families.mlp.MLP"),
        ("trainer.checkpoint", "neurofleet.schedule.Cosine"),
    ],
)
def test_a_target_stays_in_the_room_of_its_section(place: str, target: str) -> None:
    config = changed(compose(["family=siamese"]), f"{place}._target_", target)
    with pytest.raises(ConfigError, match=rf"^{place}\._target_ needs something of [\w.]+\*, got '{target}'"):
        check(config)


def test_no_list_is_said_twice() -> None:
    with pytest.raises(ConfigError) as info:
        compose(["data=nothing_like_it"])
    assert str(info.value).count("movielens") == 1


@pytest.mark.parametrize("directive", ["_partial_", "_args_", "_recursive_", "_convert_", "hydra"])
@pytest.mark.parametrize("place", ["family", "trainer.checkpoint"])
def test_directives_are_refused(directive: str, place: str, composed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{place}.{directive} is not allowed in an experiment"):
        check(changed(composed, f"{place}.{directive}", True))
    with pytest.raises(ConfigError, match="not allowed"):
        compose([f"+{place}.{directive}=true"])


@pytest.mark.parametrize(
    "override",
    ["hydra.run.dir=/tmp/x", "+hydra.x=1", "hydra/job_logging=default", "~hydra.job", "++hydra.searchpath=[/tmp]"],
)
def test_hydras_own_settings_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="hydra's own settings cannot be part of an experiment"):
        compose([override])


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:SECRET}",
        "${ oc.env : SECRET}",
        "a${oc.env:NOTHING,x}b",
        "${oc.decode:'${oc.env:SECRET}'}",
        "${oc.create:{a:1}}",
        "${hydra:runtime.cwd}",
        "${oc.${data.name}:SECRET}",
        "${${data.name}:SECRET}",
        "${family.${oc.env:SECRET}}",
    ],
)
def test_a_config_cannot_read_the_environment(
    text: str, monkeypatch: pytest.MonkeyPatch, composed: dict[str, Any]
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    for name in ("env", "oc.env"):
        with pytest.raises(ConfigError) as info:
            compose([f"data.name={name}", f"name='{text}'" if "'" not in text else f'name="{text}"'])
        assert "hidden" not in str(info.value)
    for place in ("name", "family.channels"):
        with pytest.raises(ConfigError, match="may not read the environment or stay unresolved"):
            check(changed(composed, place, [text]))


def test_a_plain_interpolation_is_resolved() -> None:
    assert compose(["name='${data.name}-${seed}'", "seed=4"])["name"] == "digits-4"


def test_a_users_own_family_is_allowed_by_the_platform_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="NEUROFLEET_TARGETS"):
        build({"_target_": "string.Template", "template": "x"})
    monkeypatch.setenv("NEUROFLEET_TARGETS", "other.Thing, string.Template")
    assert build({"_target_": "string.Template", "template": "x"}).template == "x"
    with pytest.raises(ConfigError):
        build({"_target_": "string.Formatter"})


# What does not fit.


def built(override: str) -> Any:
    """All parts of an experiment, as a run builds them."""
    config = compose(override.split())
    build(config["trainer"], "trainer")
    data = experiment.build_data(config)
    experiment.build_family(config, data.spec)
    return experiment.build_recipe(config, num_steps=1, log_every_n_steps=1, gradient_clip_val=None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+family.depth=3", r"MLP has no setting 'depth'; known: activation, "),
        ("~family.dropout", r"MLP needs dropout; got"),
        ("family.dropout=lots", r"^family\.dropout needs float, got 'lots'"),
        ("family.dropout=true", r"^family\.dropout needs float, got True"),
        ("family.hidden=64", r"^family\.hidden needs a list, got 64; write \[64\]"),
        ("family.hidden=[64,1.5]", r"^family\.hidden needs int, got 1\.5"),
        ("data.batch_size=1.5", r"^data\.batch_size needs int, got 1\.5"),
        ("family=siamese family.encoder.dropout=lots", r"^family\.encoder\.dropout needs float, got 'lots'"),
        ("optimizer.lr=abc", r"^optimizer\.lr needs float, got 'abc'"),
        ("family.dropout=1.0", r"family\.dropout needs 0 <= dropout < 1, got 1"),
        ("family.hidden=[a]", r"^family\.hidden needs int, got 'a'"),
        ("family.hidden=[0]", r"family\.hidden needs layers of at least one unit"),
        ("family.activation=rellu", r"needs a known activation, got 'rellu'; did you mean relu"),
        ("+family.spec=null", r"MLP"),
        ("optimizer.lr=-1", r"AdamW refuses optimizer\.lr=-1: Invalid learning rate: -1"),
        ("optimizer.lr=nan", r"AdamW refuses optimizer\.lr=nan"),
        ("+optimizer.momentum=0.9", r"AdamW has no setting 'momentum'"),
        ("optimizer.betas=[0.9,2]", r"AdamW refuses optimizer\.betas=\[0\.9, 2\]: Invalid beta"),
        ("schedule.warmup=1.5", r"schedule\.warmup"),
        ("data.batch_size=0", r"data\.batch_size needs a whole number of at least 1, got 0"),
        ("data.name=digts", r"digits"),
        ("trainer.max_epochs=abc", r"^trainer\.max_epochs needs int, got 'abc'"),
        ("trainer.max_epochs=1.5", r"^trainer\.max_epochs needs int, got 1\.5"),
        ("trainer.gradient_clip_val=big", r"^trainer\.gradient_clip_val needs float or NoneType, got 'big'"),
        ("trainer.register=3", r"^trainer\.register needs bool or str, got 3"),
    ],
)
def test_a_wrong_value_is_a_config_error(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        built(override)
    assert info.value.exit_code == 2


def test_data_that_does_not_fit_names_the_families_that_do() -> None:
    config = compose(["family=cnn", "data=breast_cancer"])
    with pytest.raises(
        MismatchError,
        match=r"CNN needs data of kind image, got breast_cancer, which is tabular; families that fit: .*\bmlp\b",
    ):
        experiment.build_family(config, experiment.build_data(config).spec)


# What identifies an experiment.


def test_the_digest_is_of_what_decides_the_result(composed: dict[str, Any]) -> None:
    digest = experiment.digest(composed)
    assert digest == experiment.digest(copy.deepcopy(composed))
    assert digest == experiment.digest(dict(reversed(composed.items())))
    for place, value in [("launcher", {"name": "ray", "num_workers": 2}), ("name", "other")]:
        assert experiment.digest(changed(composed, place, value)) == digest
    for place, value in [("seed", 1), ("optimizer.lr", 0.06), ("data.split", 1), ("family.channels", [32, 65])]:
        assert experiment.digest(changed(composed, place, value)) != digest
    assert len(digest) == 64


def test_what_is_saved_is_loaded(tmp_path: Path, composed: dict[str, Any]) -> None:
    experiment.save(composed, tmp_path / "experiment.yaml")
    loaded = experiment.load(tmp_path / "experiment.yaml")
    assert loaded == composed
    assert experiment.digest(loaded) == experiment.digest(composed)


TAMPERED = """
import sys
from pathlib import Path
from neurofleet import experiment
from neurofleet.errors import ConfigError
try:
    experiment.load(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
heavy = {"torch", "pytorch_lightning", "antigravity", "mlflow", "hydra"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("neurofleet.families.cnn.CNN", "antigravity.geohash", "needs an allowed target, got 'antigravity.geohash'"),
        ("max_epochs:", "_partial_: true\n  max_epochs:", "trainer._partial_ is not allowed"),
        ("name: digits", "name: ${oc.env:HOME}", "may not read the environment"),
        ("seed: 0", "seed: !!python/object/apply:os.system ['true']", "needs to hold an experiment as YAML"),
        ("seed: 0", "sede: 0", "lacking ['seed'], unknown ['sede']"),
    ],
)
def test_a_tampered_experiment_is_refused_before_anything_is_imported(
    old: str, new: str, message: str, tmp_path: Path, composed: dict[str, Any]
) -> None:
    path = tmp_path / "experiment.yaml"
    text = yaml.safe_dump(composed, sort_keys=False)
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    done = subprocess.run([sys.executable, "-c", TAMPERED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout


@pytest.mark.parametrize("content", [b"", b"- 1", b"a: [", b"\xff\xfe\x00", b"text"])
def test_a_file_that_is_no_experiment_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="needs to hold an experiment"):
        experiment.load(tmp_path / "experiment.yaml")
    with pytest.raises(ConfigError, match="needs to hold an experiment"):
        experiment.load(tmp_path / "missing.yaml")


# What is built.


def test_the_seed_alone_decides_the_weights(composed: dict[str, Any]) -> None:
    spec = experiment.build_data(composed).spec

    def weights(seed: int) -> list[torch.Tensor]:
        return list(experiment.build_family(changed(composed, "seed", seed), spec).parameters())

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator is left alone"
    torch.rand(7)
    assert all(torch.equal(left, right) for left, right in zip(first, weights(1), strict=True))
    assert not torch.equal(first[0], weights(2)[0])


def test_the_families_that_fit_a_spec() -> None:
    images = experiment.fitting_families(experiment.build_data(compose([])).spec)
    numbers = experiment.fitting_families(experiment.build_data(compose(["data=wine"])).spec)
    assert {"cnn", "mlp", "capsule"} <= set(images)
    assert {"mlp", "som"} <= set(numbers)
    assert not {"cnn", "capsule", "rnn", "dqn"} & set(numbers)


def test_names_of_family_and_data(composed: dict[str, Any]) -> None:
    assert experiment.family_name(composed) == "cnn"
    assert experiment.data_name(composed) == "digits"


HELP = """train is powered by Hydra.

== Configuration groups ==
Compose your configuration from those groups (group=option)

data: digits, wine
data/env: cartpole
experiment: digits_mlp, food_reviews_minilm, textures_cnn, textures_efficientnet
family: cnn, mlp
method: auto, frozen
search: grid


== Config ==
Override anything in the config (foo.bar=value)

search: stays
"""


@pytest.mark.parametrize(
    ("verb", "choices"),
    [
        ("train", ["data", "data/env", "experiment: digits_mlp, textures_cnn", "family"]),
        ("finetune", ["data", "data/env", "experiment: food_reviews_minilm, textures_efficientnet", "method"]),
    ],
)
def test_help_names_the_choices_of_its_own_verb(verb: str, choices: list[str]) -> None:
    shown = experiment.choices_of(verb, HELP)
    listing, _, settings = shown.partition("== Config ==")
    lines = [line for line in listing.splitlines()[5:] if line]
    assert len(lines) == len(choices)
    assert all(line.startswith(choice) for line, choice in zip(lines, choices, strict=True))
    assert lines[2] == choices[2]
    assert settings.endswith("search: stays\n")
    assert experiment.choices_of(verb, "") == ""
