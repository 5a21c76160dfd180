#!/usr/bin/env bash
# Checks everything: what CI runs, and what README tells people to run.
#
#   contrib/check.sh          install what is missing (Debian, as root), then all checks and tests
#   contrib/check.sh --quick  formatting, lints, documentation and unit tests only
#
# The integration tests make network namespaces and an unprivileged account, so they need root. As
# an ordinary user the script runs the rest and says loudly what it left out.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=no
[ "${1:-}" = --quick ] && quick=yes

# program:package
needs=(
    gcc:gcc ip:iproute2 nft:nftables newuidmap:uidmap setpriv:util-linux curl:curl dig:dnsutils
    ping:iputils-ping tracepath:iputils-tracepath traceroute:traceroute mtr:mtr-tiny socat:socat
    iperf3:iperf3 nginx:nginx-light python3:python3 dnsmasq:dnsmasq-base busybox:busybox-static
    tcpdump:tcpdump openssl:openssl rdisc6:ndisc6 pgrep:procps
    # the engines of tests/engines, and the helpers that tapway stands in for
    podman:podman crun:crun buildah:buildah rootlesskit:rootlesskit dockerd:docker.io
    slirp4netns:slirp4netns pasta:passt
    # the virtual machine of tests/passt
    qemu-system-x86_64:qemu-system-x86
)

install_packages() {
    local missing=() need
    for need in "${needs[@]}"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "== installing: ${missing[*]}"
        # A machine that has just started may be busy with packages of its own.
        local patient=(-qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
        apt-get "${patient[@]}" update
        # Services stay stopped: engines are started by their tests, in sandboxes.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get "${patient[@]}" install -y \
            --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "missing packages (Debian names): ${missing[*]}" >&2
        echo "install them, or run this script as root on Debian" >&2
        exit 1
    fi
}

step() {
    echo "== $*"
    "$@"
}

[ "$quick" = yes ] || install_packages
PATH="$PATH:/usr/sbin:/sbin"

step cargo fmt --check
step cargo clippy --quiet --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --quiet --no-deps --document-private-items

if [ "$quick" = yes ]; then
    step cargo test --quiet --lib
    exit
fi
if [ "$(id -u)" -ne 0 ]; then
    step cargo test --quiet --lib --test cli --test sim --test architecture
    echo "NOT RUN: the integration tests, which make network namespaces; run this script as root" >&2
    exit 1
fi
# Users' machines have it so (udev: static_node=net/tun, mode 0666).
if [ ! -e /dev/net/tun ]; then
    mkdir -p /dev/net
    mknod /dev/net/tun c 10 200
fi
chmod 0666 /dev/net/tun
# With TAPWAY_ENGINES_TRIXIE=1 also podman 5, in a root directory of Debian 13. Tests send signals, which
# whoever starts this with nohup, or in the background, has all its descendants ignore.
step env --default-signal=HUP,INT,QUIT cargo test --no-fail-fast
