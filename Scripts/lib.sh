# SPDX-License-Identifier: Apache-2.0

# Pieces shared by Scripts/run and Scripts/test; to be sourced by bash.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# say TEXT… — one line for whoever watches; standard output belongs to the program that is run.
say() { printf '%s\n' "$*" >&2; }

require_swift() {
    command -v swift >/dev/null && return
    say "swift not found: install Swift 6.2 or newer (https://www.swift.org/install/linux) and put its bin folder into PATH."
    exit 1
}

has_apt() { command -v apt-get >/dev/null; }

package_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# install_missing WHY PACKAGE… — installs those of the Debian packages that are not there yet. Fails when it cannot.
install_missing() {
    local why=$1 package missing=() sudo=()
    shift
    for package; do
        [[ " ${missing[*]} " == *" $package "* ]] || package_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ! has_apt; then
        say "No apt-get here to install what is $why: ${missing[*]} (names of Debian)."
        return 1
    fi
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            say "Not root and no sudo: ask for 'apt-get install ${missing[*]}', $why."
            return 1
        fi
        sudo=(sudo)
    fi
    say "Installing ${missing[*]} with ${sudo[*]:+sudo }apt-get, $why."
    {
        "${sudo[@]}" apt-get update -qq &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
    } >&2
}

# Where there are no Debian packages to ask for, the dynamic loader knows whether the library is there.
boost_found() {
    if has_apt; then
        package_installed libboost-context-dev
    else
        [[ $(PATH=$PATH:/sbin ldconfig -p 2>/dev/null) == *libboost_context.so* ]]
    fi
}
