"""Neurofleet trains, tunes, tracks and transfers every neural-network family."""

import os

# Read by OpenMP when torch is loaded: idle threads sleep. Spinning ones take the cores from whoever else needs them:
# an MLP on digits took 33 s instead of 15 s beside a busy process (LOG.md).
for _name, _value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
    os.environ.setdefault(_name, _value)
