#!/bin/sh
# Sets up what is missing, then runs the whole test-suite; arguments go to pytest. What CI runs.
set -eu
cd "$(dirname "$0")"
JCLIP_EXTRAS=parity,dev
. scripts/env.sh

"$PYTHON" -m jclip.cli doctor
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
