# Sourced by the other scripts: makes the virtual environment .venv and installs llmkit with one of its extras.
#
#   ensure_environment EXTRA    afterwards $PYTHON is the environment's interpreter and its bin/ leads PATH
#
# Quick when nothing changed: a stamp in .venv holds the hash of pyproject.toml and the extra it was made for.
# LLMKIT_VENV=DIR uses an environment that is ready already; nothing is installed into it.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$REPOSITORY/.venv
SETUP_LOG=$REPOSITORY/build/setup.log

export PIP_DISABLE_PIP_VERSION_CHECK=1

# Each argument on a line of its own, on standard error.
say() { printf '%s\n' "$@" >&2; }

die() {
    say "error: $*"
    exit 1
}

find_python() {
    local candidate
    for candidate in ${LLMKIT_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed, and none of python3, python3.13, python3.12, python3.11 is that." \
        "Set LLMKIT_PYTHON to an interpreter."
}

# Runs a command with its output in the log; says every 30 seconds that it still works, and shows the log's end if it fails.
logged() {
    local title=$1 started=$SECONDS spoken=$SECONDS process
    shift
    say "$title ..."
    "$@" >>"$SETUP_LOG" 2>&1 &
    process=$!
    # An interrupt ends the work in the background too.
    trap 'kill "$process" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$process" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS - spoken >= 30)); then
            spoken=$SECONDS
            say "  still working, $((SECONDS - started)) s so far (details: $SETUP_LOG)"
        fi
    done
    trap - INT TERM
    if ! wait "$process"; then
        say "--- the end of $SETUP_LOG:"
        tail -n 25 "$SETUP_LOG" >&2
        die "$title: failed"
    fi
}

make_environment() {
    local python
    python=$(find_python) || exit 1
    # Debian ships ensurepip, which venv needs, in a package of its own.
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments with pip; on Debian and Ubuntu: apt install python3-venv"
    logged "making .venv with $("$python" --version 2>&1)" "$python" -m venv --clear "$VENV"
}

has_compiler() {
    local compiler
    for compiler in "${CXX:-c++}" g++ clang++; do
        command -v "$compiler" >/dev/null && return
    done
    return 1
}

install_extra() {
    local extra=$1
    if ! "$VENV/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llama_cpp") is None)'; then
        has_compiler || die "llama-cpp-python is built from source: a C++ compiler is needed (apt install g++ cmake)"
        say "llama.cpp is built from source the first time: about ten minutes on two cores, then pip keeps the result."
    fi
    logged "installing llmkit[$extra]" "$VENV/bin/python" -m pip install --editable "$REPOSITORY[$extra]"
}

# Whether .venv works and was made for this extra, or for the tests, which include the others, from this pyproject.toml.
stamped() {
    local stamp
    "$VENV/bin/python" -c '' 2>/dev/null || return 1
    for stamp in "$VENV/.llmkit-$1" "$VENV/.llmkit-test"; do
        if [[ -f $stamp && $(<"$stamp") == "$2" ]]; then return 0; fi
    done
    return 1
}

ensure_environment() {
    local extra=$1 wanted
    if [[ -n ${LLMKIT_VENV:-} ]]; then
        VENV=$LLMKIT_VENV
        [[ -x $VENV/bin/python ]] || die "LLMKIT_VENV=$VENV holds no virtual environment"
    else
        mkdir -p "$REPOSITORY/build"
        wanted=$(cksum <"$REPOSITORY/pyproject.toml")
        if ! stamped "$extra" "$wanted"; then
            : >"$SETUP_LOG"
            "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || make_environment
            install_extra "$extra"
            printf '%s' "$wanted" >"$VENV/.llmkit-$extra"
        fi
    fi
    # shellcheck disable=SC2034  # used by the scripts that source this one
    PYTHON=$VENV/bin/python
    export PATH=$VENV/bin:$PATH
}
