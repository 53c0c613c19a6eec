#!/bin/sh
# Labels photos with step 2 and writes results/result.txt: the test photos of its data, or those named behind it.
set -eu
caller=$PWD
cd "$(dirname "$0")"
project=$PWD
. scripts/env.sh
cd "$caller"
[ -e "$project/runs/train2/result.json" ] || sh "$project/train2.sh"
"$PYTHON" -m finetune predict "$project/runs/train2" --out "$project/results/result.txt" --sheet "$project/results/sheet.jpg" "$@"
exec "$PYTHON" -m finetune compare "$project/runs/train1" "$project/runs/train2"
