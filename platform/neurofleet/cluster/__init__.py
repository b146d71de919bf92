"""The local platform: one Ray head, one MLflow server and the keeper of jobs; and the way jobs take.

up ──> servers ── starts ──> Ray head, MLflow server, keeper    state: what was started, in home()/platform.json
down ─> processes: finds everything that carries this platform's mark, and nothing else, and ends it
submit ──> ledger <── keeper ── engine (Ray Jobs) ──> attempts: `python -m neurofleet.cli train resume=RUN_ID`
                        └── causes, retries: what an attempt died of, and what becomes of its job
jobs, board: what users see of it, from the ledger and the logs alone
"""

from neurofleet.cluster.platform import down, up
from neurofleet.cluster.status import status

__all__ = ["down", "status", "up"]
