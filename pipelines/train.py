"""Train a network: `neurofleet train family=cnn data=mnist5k [overrides]`, or `python pipelines/train.py ...`.

Every flag of Hydra works: --cfg job shows the experiment, --multirun runs several, --help lists the choices.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import exit_on_error


@hydra.main(version_base="1.3", config_path=str(paths.shipped("configs")), config_name="train")
@exit_on_error()
def main(config: DictConfig) -> None:
    experiment = experiments.from_config(config)
    begun = config.resume or f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}"
    print(f"starting {begun} ...", flush=True)  # what follows imports for seconds

    from neurofleet import tracking

    tracking.warm_up()  # MLflow and Lightning take seconds to import: side by side
    from neurofleet import launch
    from neurofleet.launch.record import recorded, resumed
    from neurofleet.run import plan

    if config.resume is not None:
        experiment = resumed(str(config.resume), experiment, list(HydraConfig.get().overrides.task))
    planned = plan(experiment)  # whatever is wrong shows here, before anything is written
    launch.check(experiment)
    print("opening the run in MLflow ...", flush=True)
    with recorded(planned, resume=config.resume) as (tracker, folder):
        result = launch.launch(experiment, tracker=tracker, folder=folder, resume=config.resume is not None)
        for name, value in result.metrics.items():
            print(f"{name:24} {value:.4f}", flush=True)
        print("drawing figures ...", flush=True)
    if planned.config.register:
        from neurofleet.release import register

        name = planned.config.model_name(f"{experiments.data_name(experiment)}-{experiments.family_name(experiment)}")
        tags = {"data.digest": planned.data.digest}
        print(f"registering {name} ...", flush=True)
        print(f"{'model':24} {name} version {register(tracker.run_id, folder, name, tags)}")
    print(f"{'run':24} {tracking.ui_address(tracker.run_id)}")
    print(f"{'folder':24} {folder}")


if __name__ == "__main__":
    with exit_on_error(), experiments.helped("train"):
        main()
