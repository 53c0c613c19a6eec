#!/bin/sh
# Step 2: Tip-Adapter-F on the weights of step 1 (configs/Tip-Adapter-F.yaml). Give it the data.… settings of step 1.
set -eu
. "$(dirname "$0")/scripts/env.sh"
if [ ! -e "$PROJECT/runs/train1/result.json" ]; then
    (
        for setting; do # only what both steps know
            shift
            case $setting in data.*) set -- "$@" "$setting" ;; esac
        done
        exec sh "$PROJECT/train1.sh" "$@"
    )
fi
"$PYTHON" -m finetune train "$PROJECT/configs/Tip-Adapter-F.yaml" --runs "$PROJECT/runs" --link "$PROJECT/runs/train2" "$@"
exec "$PYTHON" -m finetune compare "$PROJECT/runs/train1" "$PROJECT/runs/train2"
