"""The setting `augmentation` that families share which take more than images."""

from __future__ import annotations

from collections.abc import Mapping

from neurofleet.errors import ConfigError
from neurofleet.families._layers import RandomAffine
from neurofleet.spec import DataSpec


def image_distortion(augmentation: Mapping[str, float], spec: DataSpec, site: int) -> RandomAffine:
    """The distortion that `augmentation` asks for; what is no image is left as it is.

    Raises ConfigError for a wrong key or number, and where anything but images is to be distorted.
    """
    distortion = RandomAffine.from_config(augmentation, site=site)
    if spec.kind != "image" and any(augmentation.values()):
        raise ConfigError(
            f"family.augmentation needs images, got {spec.name}, which is {spec.kind}; set its numbers to 0.0"
        )
    return distortion
