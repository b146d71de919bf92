"""The local platform: one Ray head and one MLflow server, and the way jobs reach it.

up ──> servers ── starts ──> Ray head, MLflow server        state: what was started, in home()/platform.json
down ─> processes: finds everything that carries this platform's mark, and nothing else, and ends it
submit ─> jobs ── Ray Jobs ──> `python -m neurofleet.cli train ...` on the cluster; `follow` shows its progress
"""

from neurofleet.cluster.jobs import follow, show_log, submit
from neurofleet.cluster.platform import down, up
from neurofleet.cluster.status import status

__all__ = ["down", "follow", "show_log", "status", "submit", "up"]
