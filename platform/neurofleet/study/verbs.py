"""Which verb's settings a study searches: those of `neurofleet train`, or of `neurofleet finetune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment import TRAIN, Verb
from neurofleet.experiment.compose import as_text, parsed
from neurofleet.experiment.space import bare, plain_value
from neurofleet.transfer.base import Base
from neurofleet.transfer.order import Start

VERBS = ("train", "finetune")
Find = Callable[[str], Base]  # a base by its uri


def chosen(overrides: Sequence[str], known: Sequence[str], find: Find | None) -> tuple[list[str], Verb]:
    """The overrides with a base that will name the same weights tomorrow, and the verb.

    known: those of a study that goes on

    Raises:
        ConfigError: a pipeline that makes no trials; a base that is not there, or several.
    """
    asked = {
        key: one for one in parsed([*known, *overrides]) if (key := bare(one.get_key_element())) in ("base", "pipeline")
    }
    pipeline = str(plain_value(asked["pipeline"].value())) if "pipeline" in asked else "train"
    if pipeline not in VERBS:
        raise ConfigError(
            f"a study trains by pipeline={' or '.join(VERBS)}, got {pipeline!r}; {nearest(pipeline, VERBS)}"
        )
    if pipeline == "train":
        return list(overrides), TRAIN
    base = asked.get("base")
    if base is None or base.is_sweep_override() or find is None:
        raise ConfigError("tune pipeline=finetune needs one base=..., as in base=models:/mnist5k-cnn/1")
    found = find(str(plain_value(base.value())))
    plain = parsed([f"base={found.uri}"])[0].value() == found.uri  # no quotes where Hydra needs none
    uri = found.uri if plain else as_text(found.uri)
    pinned = [f"base={uri}" if bare(one.partition("=")[0]) == "base" else one for one in overrides]
    return pinned, Verb(pipeline, Start(found).experiment)
