"""Study: many trials over one search space; those of one architecture train as one stacked model.

    space of values ──sampler──> trials ──stacking──> stacks ──fused──> scores ──scheduler──> fewer trials

    settings.py    numbers in which trials of one architecture differ, put in place under `torch.func.vmap`
    optimizers.py  torch's optimizers for a stack: each row has settings of its own
    fused.py       a stack of trials that trains as one model
    stacking.py    which trials stand in one stack, and whether stacking pays

These work where Ray, Optuna and MLflow are not installed.
"""
