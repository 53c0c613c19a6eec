# Sourced by the scripts of the project's folder: makes or reuses .venv there and installs the project into it.
# Afterwards "$PROJECT" is that folder and "$PYTHON" runs in it; the current folder stays the caller's.
# JCLIP_EXTRAS adds extras (check.sh: parity,dev,mpi,cluster,app); JCLIP_PYTHON names an interpreter.

say() { printf 'jclip: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

caller=$PWD
cd "$(dirname "$0")"
PROJECT=$PWD
VENV=$PROJECT/.venv
if [ -L "$VENV" ]; then VENV=$(readlink -f "$VENV"); fi # under another name Jittor would build itself anew
PYTHON=$VENV/bin/python

alone() { # what only one process may do
    if [ "${OMPI_COMM_WORLD_SIZE:-1}" -gt 1 ]; then fail "run this script once without mpirun first: it installs what is missing"; fi
}
suits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    if [ -n "${JCLIP_PYTHON:-}" ] && ! suits "$JCLIP_PYTHON"; then
        fail "JCLIP_PYTHON must be a Python 3.10 to 3.12, got $JCLIP_PYTHON"
    fi
    for candidate in "${JCLIP_PYTHON:-}" python3 python3.12 python3.11 python3.10; do
        if [ -n "$candidate" ] && suits "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.10 to 3.12 found: sudo apt install python3 python3-venv python3-dev (or set JCLIP_PYTHON)"
}

if ! suits "$PYTHON"; then
    alone
    base=$(find_python) || exit 2
    say "making .venv with $("$base" --version)"
    VENV=$PROJECT/.venv PYTHON=$PROJECT/.venv/bin/python
    rm -rf "$VENV"
    "$base" -m venv "$VENV" || fail "can't make a virtual environment: sudo apt install python3-venv"
elif [ -n "${JCLIP_PYTHON:-}" ] && [ "$("$JCLIP_PYTHON" --version 2>&1)" != "$("$PYTHON" --version)" ]; then
    say "using .venv with $("$PYTHON" --version): JCLIP_PYTHON counts when .venv is made, remove .venv for it"
fi

setup=$(cksum setup.py)
extras=${JCLIP_EXTRAS:-}
installed=$(cat "$VENV/.jclip-installed" 2>/dev/null || true)
if [ "$installed" != "$setup $extras" ] && { [ -n "$extras" ] || [ "${installed#"$setup"}" = "$installed" ]; }; then
    alone
    case ",$extras," in
    *,parity,*)
        say "installing torch 2.13.0, the tests' reference (small where pip knows of a CPU build, else gigabytes)"
        "$PYTHON" -m pip install -q --disable-pip-version-check torch==2.13.0 || fail "pip could not install torch 2.13.0"
        ;;
    esac
    say "installing jclip and what it needs${extras:+ (with $extras)}"
    "$PYTHON" -m pip install -q --disable-pip-version-check -e ".${extras:+[$extras]}" || fail "pip could not install jclip: see above"
    printf '%s\n' "$setup $extras" >"$VENV/.jclip-installed"
fi
cd "$caller"
