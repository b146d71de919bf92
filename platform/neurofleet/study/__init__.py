"""Study: many trials over one search space; those of one architecture train as one stacked model.

    space of values ──sampler──> trials ──stacking──> stacks ──fused──> scores ──scheduler──> fewer trials

    session.py     what one call of `neurofleet tune` does
    engine.py      asks for trials, has them trained, judges them, and writes down what became of each
    storage.py     the study's journal; record.py: its run in MLflow
    schedulers.py  which trials are given up
    lane.py        a place that trains trials
    cohort.py      trials that advance together: single.py one, fused.py many as one stacked model
    stacking.py    which trials stand in one stack, and whether stacking pays
    settings.py    numbers in which trials of one architecture differ, put in place under `torch.func.vmap`
    optimizers.py  torch's optimizers for a stack: each row has settings of its own

The last five work where Ray, Optuna and MLflow are not installed.
"""
