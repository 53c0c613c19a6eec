#!/bin/sh
# Step 1: tunes the towers (configs/no_finetune.yaml). Settings come behind it: data.root=FOLDER model=ViT-B/32 data.shots=4
set -eu
caller=$PWD
cd "$(dirname "$0")"
project=$PWD
. scripts/env.sh
cd "$caller"
"$PYTHON" -m finetune train "$project/configs/no_finetune.yaml" --runs "$project/runs" --link "$project/runs/train1" "$@"
exec "$PYTHON" -m finetune compare "$project/runs/train1"
