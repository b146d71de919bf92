"""Fine-tune a network: `neurofleet finetune base=models:/mnist5k-cnn/1 data=digits [overrides]`.

base=  models:/NAME/VERSION  models:/NAME@ALIAS  runs:/ID  FOLDER  FILE.safetensors  pretrained/NAME  hf/REPOSITORY
Every flag of Hydra works: --cfg job shows the settings, --help lists the choices.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import exit_on_error


@hydra.main(version_base="1.3", config_path=str(paths.shipped("configs")), config_name="finetune")
@exit_on_error()
def main(config: DictConfig) -> None:
    settings = experiments.plain(config)
    begun = config.resume or f"from {settings['base']} to {settings['data'].get('name')}"
    print(f"starting {begun} ...", flush=True)  # what follows imports for seconds

    from neurofleet import tracking

    tracking.warm_up()
    from neurofleet import launch
    from neurofleet.launch import comparison
    from neurofleet.launch.record import recorded, resumed
    from neurofleet.release import bases
    from neurofleet.run import plan
    from neurofleet.transfer import order as orders

    if config.resume is not None:
        overrides = list(HydraConfig.get().overrides.task)
        order = orders.resumed(resumed(str(config.resume), {"launcher": settings["launcher"]}, overrides))
    else:
        order = orders.Start(bases.named(settings["base"])).order(settings)
    experiment = order.experiment
    planned = plan(experiment, order.data)  # whatever is wrong shows here, before anything is written
    launch.check(experiment)
    comparison.introduce(planned, order.reason)
    print("opening the run in MLflow ...", flush=True)
    with recorded(planned, resume=config.resume, pipeline="finetune", tags=order.tags) as (tracker, folder):
        wanted = comparison.remembered(settings, folder)
        result = launch.launch(experiment, tracker=tracker, folder=folder, resume=config.resume is not None)
        for name, value in result.metrics.items():
            print(f"{name:24} {value:.4f}", flush=True)
        comparison.advise(planned, folder)
        comparison.compare(planned, tracker, folder, **wanted)
        print("drawing figures ...", flush=True)
    if planned.config.register:
        from neurofleet.release import register

        name = planned.config.model_name(f"{experiments.data_name(experiment)}-{orders.architecture(experiment)}")
        print(f"registering {name} ...", flush=True)
        version = register(tracker.run_id, folder, name, {"data.digest": planned.data.digest, **order.tags})
        print(f"{'model':24} {name} version {version}")
    print(f"{'run':24} {tracking.ui_address(tracker.run_id)}")
    print(f"{'folder':24} {folder}")


if __name__ == "__main__":
    with exit_on_error(), experiments.helped("finetune"):
        main()
