#!/bin/sh
# Sets up a copy of the project with each Python that it promises and runs contract and parity tests there; arguments go
# to pytest instead. A Python that is not installed is skipped with a line that says so. Each first run compiles Jittor
# anew, for minutes; nothing is written to the project.
set -eu
case "${1:-}" in -h | --help) sed -n '2,4s/^# //p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
say() { printf 'pythons: %s\n' "$*"; }

found() { # the interpreter of that version: on the path, or pyenv's
    for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

[ $# -gt 0 ] || set -- tests/contract tests/parity
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
status=0
for version in 3.10 3.11 3.12; do
    python=$(found $version) || { say "$version skipped: no python$version here"; continue; }
    project=$folder/$version/jclip
    mkdir -p "$project"
    tar -c --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=./results . | tar -x -C "$project"
    [ ! -d ../shared ] || ln -s "$(cd ../shared && pwd)" "$folder/$version/shared"
    began=$(date +%s) result=passed
    JCLIP_PYTHON=$python PYTHONPATH= sh "$project/check.sh" "$@" || { result=FAILED status=1; }
    say "$version $result in $(($(date +%s) - began)) s: $("$python" --version), $*"
done
exit $status
