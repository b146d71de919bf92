"""Tracking: what a run is and does goes to MLflow, without the training process waiting for it.

    training process                        child process (neurofleet.tracking.child)
    Tracker.log_many ── one write ──> spool file ── tail ──> MLflow, 1,000 metrics a batch
                                        (JSON lines)          offset saved after each batch

The training process never imports mlflow: it appends records to a file in the run's folder.  The child ships them in
order and remembers how far it came; a batch that is sent twice (a crash between sending and remembering) changes
nothing, since MLflow's rows are keyed by name, step, time and value, and the record fixed all four.  So every metric
arrives exactly once, whether the server, the child or the training process dies and comes back.
"""

from neurofleet.tracking.client import RUNS, Tracker
from neurofleet.tracking.lineage import code_tags, flatten
from neurofleet.tracking.store import artifact_root, prepare_store, store_uri, ui_address
from neurofleet.tracking.warm import warm_up

__all__ = ["RUNS", "Tracker", "artifact_root", "code_tags", "flatten", "prepare_store", "store_uri", "ui_address"]
__all__ += ["warm_up"]
