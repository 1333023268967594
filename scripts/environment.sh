# Sourced by scripts/demo and scripts/test: makes or reuses .venv with the package installed in place.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one (Debian, Ubuntu: apt install python3 python3-venv python3-dev)"
}

# What the compiled part and the dependencies depend on; Python files are read in place.
fingerprint() {
    (cd "$root" && echo "$root" && cat pyproject.toml && find csrc -type f ! -path 'csrc/tests/*' | sort | xargs cat) | sha256sum
}

# prepare_venv [EXTRAS]: EXTRAS as in pip, "[dev]".
prepare_venv() {
    local extras=${1:-} python stamp
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python) || exit 1
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
        echo "making $venv with $("$python" --version)" >&2
        rm -rf "$venv"
        "$python" -m venv "$venv" || fail "could not make $venv"
    fi
    stamp="$(fingerprint)"
    for done in "$venv/installed" "$venv/installed$extras"; do
        [ -z "$extras" ] || [ "$done" != "$venv/installed" ] || continue
        [ "$(cat "$done" 2>/dev/null)" != "$stamp" ] || return 0
    done
    command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
        fail "no C compiler; install one (Debian, Ubuntu: apt install gcc)"
    [ -f "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "Python.h is missing; install it (Debian, Ubuntu: apt install python3-dev)"
    echo "installing tmac-llm into .venv (the first time takes about a minute)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root$extras" >"$venv/install.log" 2>&1 || {
        cat "$venv/install.log" >&2
        fail "installation failed; the lines above are also in $venv/install.log"
    }
    echo "$stamp" >"$venv/installed"
    echo "$stamp" >"$venv/installed$extras"
}
