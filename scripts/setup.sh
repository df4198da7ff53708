#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh - from nothing to .venv/bin/mint; what `make setup` runs. Safe to repeat: each of the
# three steps does only what is missing.
#
#   1. Debian packages (scripts/debian-packages.txt), by apt-get, with sudo where not root
#   2. the virtual environment .venv, made by $PYTHON
#   3. the package with its development tools, built and installed when its sources changed
#
# Step 3 is keyed on a hash of the sources, not on their times: a checkout, a copy or a clock step
# neither forces a build nor hides a change.
#
# Environment:
#   PYTHON  the interpreter that makes .venv (default /usr/bin/python3)
#   VENV    where it goes (default .venv)
set -euo pipefail
umask 022 # workers of other users execute what is installed here
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-/usr/bin/python3}
VENV=${VENV:-.venv}
LOG=build/setup.log
STAMP=$VENV/.mint-setup # line 1: hash of what decides the dependencies; line 2: of all sources

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Run a command into the log; show the log's end when it fails.
logged() {
    printf '\n$ %s\n' "$*" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1 </dev/null; then
        tail -n 30 "$LOG" >&2
        die "failed: $1 ${2-}; the whole output is in $LOG"
    fi
}

as_root=() # what to put before a command that needs root
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi

# ------------------------------------------------------------------------------ Debian packages

wanted_packages() { sed -e 's/#.*//' scripts/debian-packages.txt | awk 'NF { print $1 }'; }

missing_packages() {
    local package
    for package in $(wanted_packages); do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            echo "$package"
    done
}

# Installing openssh-server would start an sshd that listens on all of this machine's addresses,
# now and at each boot. A lab needs the program only. So, when it is we who install it:
#   - SYSTEMD_OFFLINE=1 makes every systemctl of the maintainer scripts leave the service manager
#     alone (as in a chroot), and RUNLEVEL=1 does the same for System V's invoke-rc.d. Both hold for
#     this one command: no policy-rc.d is written, none of the machine's own is replaced.
#   - then its units are disabled. An sshd that was installed before is never touched.
install_packages() {
    local fresh_sshd=no
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive)
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "there is neither root nor sudo; as root, run: apt-get install $*; then repeat"
    fi
    case " $* " in *" openssh-server "*) fresh_sshd=yes ;; esac
    [ "$fresh_sshd" = no ] || apt+=(SYSTEMD_OFFLINE=1 RUNLEVEL=1)
    apt+=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    logged "${apt[@]}" update
    logged "${apt[@]}" install -y --no-install-recommends "$@"
    [ "$fresh_sshd" = no ] || disable_sshd
}

disable_sshd() {
    if command -v systemctl >/dev/null; then
        logged "${as_root[@]}" env SYSTEMD_OFFLINE=1 systemctl --quiet disable ssh.service ssh.socket
    elif command -v update-rc.d >/dev/null; then
        logged "${as_root[@]}" update-rc.d ssh disable
    fi
    say "openssh-server is new here: its sshd was neither started nor enabled"
}

setup_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "this is no Debian: I trust that it has what scripts/debian-packages.txt lists"
        return
    fi
    missing=$(missing_packages | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    say "installing Debian packages: $missing"
    # shellcheck disable=SC2086 # a list of names
    install_packages $missing
}

# ------------------------------------------------------------------------- virtual environment

setup_venv() {
    [ -x "$PYTHON" ] || command -v "$PYTHON" >/dev/null ||
        die "there is no $PYTHON; give another interpreter: make setup PYTHON=/path/to/python3"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$PYTHON is older than Python 3.11; give another: make setup PYTHON=/path/to/python3"
    # Made anew when it does not run (its interpreter is gone or was upgraded), when the checkout
    # was moved or copied, and when another PYTHON is asked for.
    local base="import sys; print(sys.base_prefix, *sys.version_info[:2])"
    local prefix="import sys, pip; print(sys.prefix)"
    if [ "$("$VENV/bin/python" -c "$base" 2>/dev/null)" = "$("$PYTHON" -c "$base")" ] &&
        [ "$("$VENV/bin/python" -c "$prefix" 2>/dev/null)" = "$(realpath -m "$VENV")" ]; then
        return
    fi
    say "making the virtual environment $VENV"
    rm -rf "$VENV"
    logged "$PYTHON" -m venv "$VENV"
}

# ------------------------------------------------------------------------------------- package

hash_files() { xargs -0 sha256sum | sha256sum | cut -d' ' -f1; }

dependencies_hash() {
    printf '%s\0' pyproject.toml scripts/constraints.txt "$VENV/pyvenv.cfg" | hash_files
}

sources_hash() {
    find meson.build README.md LICENSE native src -type f ! -name '*.pyc' -print0 |
        LC_ALL=C sort -z | hash_files
}

pip_install() {
    logged "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint scripts/constraints.txt "$@"
}

# The build requirements are installed beside the rest and the build runs without isolation, in a
# directory that stays: a changed source then costs seconds, and no registry is asked.
setup_package() {
    local dependencies sources build=build/wheel
    dependencies=$(dependencies_hash)
    sources=$(sources_hash)
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$dependencies"$'\n'"$sources" ]; then
        return
    fi
    PATH="$(realpath "$VENV")/bin:$PATH"
    export PATH
    if [ "$(head -n 1 "$STAMP" 2>/dev/null)" = "$dependencies" ]; then
        say "building mint-vni: its sources changed"
        rm -f "$STAMP"
        pip_install --no-build-isolation --config-settings=build-dir="$build" \
            --no-deps --force-reinstall .
    else
        say "installing the build tools"
        rm -rf "$STAMP" "$build"
        # shellcheck disable=SC2046 # a list of requirements, none with a space
        pip_install $("$VENV/bin/python" -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
        say "building mint-vni; installing it with its development tools"
        # pip would keep a mint-vni of the same version that was built from other sources.
        logged "$VENV/bin/python" -m pip uninstall --quiet --yes mint-vni
        pip_install --no-build-isolation --config-settings=build-dir="$build" --upgrade '.[dev]'
    fi
    printf '%s\n%s\n' "$dependencies" "$sources" >"$STAMP"
}

mkdir -p build
exec 9>build/setup.lock
flock -n 9 || {
    say "waiting for another setup of this checkout"
    flock 9
}
: >"$LOG"
setup_packages
setup_venv
setup_package
say "ready: $VENV/bin/mint"
