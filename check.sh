#!/bin/sh
# Sets up what is missing, then runs the whole test-suite; arguments go to pytest. What CI runs.
# `JCLIP_EXTRAS=dev sh check.sh` does without the optional packages: what needs one is skipped with a reason.
# Two processes of one thread each: most of the work is Python's and the compiler's. `-n 0` runs all in one.
set -eu
JCLIP_EXTRAS=${JCLIP_EXTRAS:-parity,dev,mpi,cluster,app}
began=$(date +%s)
. "$(dirname "$0")/scripts/env.sh"
cd "$PROJECT"

"$PYTHON" -m jclip.cli doctor
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
unset PYTHONDONTWRITEBYTECODE # the tests start some hundred processes, which need not compile every module anew
ready=$(date +%s)
status=0
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "$@" || status=$?
say "set up in $((ready - began)) s, tested in $(($(date +%s) - ready)) s"
exit "$status"
