#!/bin/sh
# Step 2: Tip-Adapter-F on the weights of step 1 (configs/Tip-Adapter-F.yaml). Give it the data.… settings of step 1.
set -eu
caller=$PWD
cd "$(dirname "$0")"
project=$PWD
. scripts/env.sh
cd "$caller"
if [ ! -e "$project/runs/train1/result.json" ]; then
    (
        for setting; do # only what both steps know
            shift
            case $setting in data.*) set -- "$@" "$setting" ;; esac
        done
        exec sh "$project/train1.sh" "$@"
    )
fi
"$PYTHON" -m finetune train "$project/configs/Tip-Adapter-F.yaml" --runs "$project/runs" --link "$project/runs/train2" "$@"
exec "$PYTHON" -m finetune compare "$project/runs/train1" "$project/runs/train2"
