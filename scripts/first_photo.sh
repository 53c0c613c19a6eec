#!/bin/sh
# The newcomer's first five minutes, timed: an empty HOME, `pip install .` in a new environment, then photos sorted by
# names with a file of weights that is there. Packages are downloaded before the clock starts. Nothing is written here.
#     sh scripts/first_photo.sh WEIGHTS PHOTOS "cat,dog" [OPTIONS of jclip zero-shot]
set -eu
case "${1:-}" in -h | --help) sed -n '2,4s/^# *//p' "$0" && exit ;; esac
[ $# -ge 3 ] || { echo 'usage: sh scripts/first_photo.sh WEIGHTS PHOTOS "cat,dog"'; exit 2; }
weights=$(realpath "$1") photos=$(realpath "$2") classes=$3
shift 3
cd "$(dirname "$0")/.."
python=${JCLIP_PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
now() { date +%s; }
say() { printf 'first photo: %s\n' "$*"; }

git archive HEAD | (mkdir "$folder/jclip" && tar -x -C "$folder/jclip")
mkdir "$folder/home"
"$python" -m pip download -qq -d "$folder/packages" "$folder/jclip" setuptools wheel
cd "$folder"
began=$(now)
"$python" -m venv environment
environment/bin/pip install -q --no-index --find-links packages ./jclip
installed=$(now)
say "installed in $((installed - began)) s"
env -i HOME="$folder/home" PATH="$folder/environment/bin:/usr/bin:/bin" LANG=C.UTF-8 \
    jclip zero-shot "$photos" --classes "$classes" --model "$weights" --out "$folder/results.csv" "$@"
say "photos sorted $(($(now) - installed)) s later: $(($(now) - began)) s from nothing, downloads excluded"
