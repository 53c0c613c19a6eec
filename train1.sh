#!/bin/sh
# Step 1: tunes the towers (configs/no_finetune.yaml). Settings come behind it: data.root=FOLDER model=ViT-B/32 data.shots=4
# ROOT_PATH=FOLDER, the Jittor challenge's folder, in front of it: step 1 of configs/challenge.yaml (docs/challenge.md).
set -eu
. "$(dirname "$0")/scripts/env.sh"
if [ -n "${ROOT_PATH:-}" ]; then
    exec "$PYTHON" -m finetune challenge "$PROJECT/configs/challenge.yaml" data.root="$ROOT_PATH" --runs "$PROJECT/runs" --until tune "$@"
fi
"$PYTHON" -m finetune train "$PROJECT/configs/no_finetune.yaml" --runs "$PROJECT/runs" --link "$PROJECT/runs/train1" "$@"
exec "$PYTHON" -m finetune compare "$PROJECT/runs/train1"
