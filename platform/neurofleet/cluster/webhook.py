"""Notices of jobs that have ended, to the address in NEUROFLEET_WEBHOOK (a Slack-compatible incoming webhook)."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request

from neurofleet.cluster.job import Job

VARIABLE = "NEUROFLEET_WEBHOOK"
TIMEOUT = 10.0  # seconds


def text(job: Job) -> str:
    """One line of Slack's own markup."""
    lasted = f" after {(job.ended or 0) - job.submitted:.0f} s" if job.ended else ""
    why = f": {job.cause['text']}" if job.state in ("FAILED", "TIMED_OUT") and job.cause else ""
    line = f"*{job.id}* {job.state}{lasted} ({job.order.what or job.order.pipeline}){why}"
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def notify(job: Job) -> threading.Thread | None:
    """Send the notice, in a thread of its own; what goes wrong is printed and nothing more."""
    address = os.environ.get(VARIABLE)
    if not address:
        return None
    sending = threading.Thread(target=_send, args=(address, text(job), job.id), daemon=True)
    sending.start()
    return sending


def _send(address: str, words: str, job_id: str) -> None:
    body = json.dumps({"text": words}).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:  # never the address: it is a secret
        reason = getattr(error, "code", None) or type(getattr(error, "reason", error)).__name__
        print(f"the notice of {job_id} was not taken by the address in {VARIABLE}: {reason}", flush=True)
