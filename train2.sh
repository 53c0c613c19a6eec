#!/bin/sh
# Step 2: Tip-Adapter-F on the weights of step 1 (configs/Tip-Adapter-F.yaml). Give it the data.… settings of step 1.
# ROOT_PATH=FOLDER, the Jittor challenge's folder, in front of it: step 2 of configs/challenge.yaml, with step 1's settings.
set -eu
. "$(dirname "$0")/scripts/env.sh"
if [ -n "${ROOT_PATH:-}" ]; then
    exec "$PYTHON" -m finetune challenge "$PROJECT/configs/challenge.yaml" data.root="$ROOT_PATH" --runs "$PROJECT/runs" --until members "$@"
fi
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
