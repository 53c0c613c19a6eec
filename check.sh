#!/bin/sh
# Sets up what is missing, then runs the whole test-suite; arguments go to pytest. What CI runs.
set -eu
JCLIP_EXTRAS=parity,dev
. "$(dirname "$0")/scripts/env.sh"
cd "$PROJECT"

"$PYTHON" -m jclip.cli doctor
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
