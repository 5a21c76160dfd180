#!/usr/bin/env bash
# Installs tapway, and links to it under the names by which container engines know a helper.
#
#   contrib/install.sh                       /usr/local/bin/tapway; links in /usr/local/libexec/tapway
#   contrib/install.sh --prefix ~/.local     without root
#   contrib/install.sh --links /usr/local/bin    for every engine that looks in PATH, at once
#   contrib/install.sh --uninstall           with the same options as before: removes all of it
#
#   --prefix DIR    where bin/ and libexec/ are (default /usr/local)
#   --links DIR     where the links go (default PREFIX/libexec/tapway)
#   --binary FILE   what to install (default target/release/tapway, from `cargo build --release`)
#   DESTDIR         in the environment: a root directory in front of every path, for packages
#
# The links are in a directory of their own, so that nothing changes until an engine is told of it:
# contrib/engines.md says how, for each engine. Files that are not ours are neither replaced nor
# removed.
set -euo pipefail

names=(slirp4netns pasta pesto passt)

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{/^#/!d; s/^# \{0,1\}//; p}' "$0"
}

prefix=/usr/local
links=
binary="$(dirname "$0")/../target/release/tapway"
uninstall=no
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --links | --binary)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --prefix) prefix=$2 ;;
        --links) links=$2 ;;
        --binary) binary=$2 ;;
        esac
        shift 2
        ;;
    --uninstall)
        uninstall=yes
        shift
        ;;
    -h | --help)
        usage
        exit
        ;;
    *) fail "$1 is no option: see install.sh --help" ;;
    esac
done
links=${links:-$prefix/libexec/tapway}
for directory in "$prefix" "$links"; do
    # A link leads to the same file wherever it is read from.
    [ "${directory#/}" != "$directory" ] || fail "$directory is no absolute path"
done
installed=$prefix/bin/tapway
root=${DESTDIR:-}

# Whether the link $1 is one of ours.
is_ours() {
    [ -L "$1" ] && [ "$(readlink "$1")" = "$installed" ]
}

if [ "$uninstall" = yes ]; then
    for name in "${names[@]}"; do
        if is_ours "$root$links/$name"; then rm "$root$links/$name"; fi
    done
    rm -f "$root$installed"
    if [ "$links" = "$prefix/libexec/tapway" ]; then
        rmdir "$root$links" 2>/dev/null || true
    fi
    echo "removed: $installed and its links in $links"
    exit
fi

[ -f "$binary" ] || fail "there is no $binary: build it (cargo build --release) or name it (--binary)"
for name in "${names[@]}"; do
    link=$root$links/$name
    if [ -e "$link" ] || [ -L "$link" ]; then
        is_ours "$link" || fail "$link is not tapway's: remove it, or choose other --links"
    fi
done
# install(1) replaces the file, so that instances that run keep theirs.
install -D -m 0755 "$binary" "$root$installed"
install -d "$root$links"
for name in "${names[@]}"; do
    ln -sfn "$installed" "$root$links/$name"
done
echo "installed: $installed, as ${names[*]} in $links"
