"""`python -m neurofleet.cluster [--until-idle]`: the keeper of jobs."""

import sys

from neurofleet.cluster.keeper import main

main(until_idle="--until-idle" in sys.argv)
