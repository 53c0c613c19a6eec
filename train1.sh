#!/bin/sh
# Step 1: tunes the towers (configs/no_finetune.yaml). Settings come behind it: data.root=FOLDER model=ViT-B/32 data.shots=4
set -eu
. "$(dirname "$0")/scripts/env.sh"
"$PYTHON" -m finetune train "$PROJECT/configs/no_finetune.yaml" --runs "$PROJECT/runs" --link "$PROJECT/runs/train1" "$@"
exec "$PYTHON" -m finetune compare "$PROJECT/runs/train1"
