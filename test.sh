#!/bin/sh
# Labels photos with step 2 and writes results/result.txt: the test photos of its data, or those named behind it.
# ROOT_PATH=FOLDER, the Jittor challenge's folder, in front of it: the last step of configs/challenge.yaml, results/resultMMDD.txt.
set -eu
. "$(dirname "$0")/scripts/env.sh"
if [ -n "${ROOT_PATH:-}" ]; then
    exec "$PYTHON" -m finetune challenge "$PROJECT/configs/challenge.yaml" data.root="$ROOT_PATH" out="$PROJECT/results" --runs "$PROJECT/runs" "$@"
fi
[ -e "$PROJECT/runs/train2/result.json" ] || sh "$PROJECT/train2.sh"
"$PYTHON" -m finetune predict "$PROJECT/runs/train2" --out "$PROJECT/results/result.txt" --sheet "$PROJECT/results/sheet.jpg" "$@"
exec "$PYTHON" -m finetune compare "$PROJECT/runs/train1" "$PROJECT/runs/train2"
