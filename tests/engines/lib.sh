# What the scenarios share. Sourced inside the sandbox, as root.
#
# A scenario is a list of checks that all are made; it fails if one of them did. HELPER is the file
# that has to be seen running, whatever link the engine used.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checks=0
failures=0
HELPER=$(realpath "$HELPER")

# check NAME PATTERN COMMAND...: what COMMAND prints, errors included, matches the regex.
check() {
    local name=$1 pattern=$2 printed
    shift 2
    printed=$("$@" 2>&1)
    checks=$((checks + 1))
    if [[ $printed =~ $pattern ]]; then
        echo "ok   $name"
    else
        failures=$((failures + 1))
        echo "FAIL $name: no /$pattern/ in: ${printed:0:600}"
    fi
}

# Ends the scenario.
finish() {
    echo "$checks checks, $failures failed"
    [ "$checks" -gt 0 ] && [ "$failures" -eq 0 ]
    exit
}

# until_true COMMAND...: waits for COMMAND, half a minute at least.
until_true() {
    for _ in $(seq 300); do
        "$@" > /dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

as_lab() {
    setpriv --reuid "$LAB_UID" --regid "$LAB_UID" --clear-groups -- \
        env -i HOME="$WORK/home" USER=lab LOGNAME=lab LANG=C.UTF-8 \
        XDG_RUNTIME_DIR="/run/user/$LAB_UID" PATH="${LAB_PATH:-/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin}" \
        "$@"
}

outside() { nsenter --net=/run/netns/outside "$@"; }

# The processes that run HELPER.
helpers() {
    local process running
    for process in /proc/[0-9]*; do
        running=$(readlink "$process/exe")
        # The original pasta runs a build for the processor at hand.
        [ "${running%.avx2}" = "$HELPER" ] && echo "${process#/proc/}"
    done 2> /dev/null
}
helper_runs() { [ -n "$(helpers)" ] && echo runs; }
helper_gone() { until_true test_no_helper && echo gone; }
test_no_helper() { [ -z "$(helpers)" ]; }

fetch() { curl -s --max-time 20 "$@" || echo "failed: $?"; }
# udp ADDRESS PORT [PREFIX...]: what comes back for "ping". A datagram that comes before its server
# is up is nobody's, so it is sent again.
udp() {
    local address=$1 port=$2 answer=
    shift 2
    for _ in 1 2 3 4 5; do
        answer=$(echo ping | "$@" socat -t 5 - "UDP4:$address:$port,readbytes=5") && break
    done
    echo "$answer"
}
# until_served URL TEXT: a server is up when it says TEXT.
served() { [ "$(curl -s --max-time 10 "$1")" = "$2" ]; }
until_served() { until_true served "$1" "$2"; }

sum() { md5sum < /run/outside/big | cut -d' ' -f1; }

# What every container has to be able to do. container_checks NAME COMMAND...: COMMAND runs `sh -c`
# of its last argument in a container.
container_checks() {
    local name=$1
    shift
    check "$name: TCP, under the host's address" 'peer=203\.0\.113\.1$' \
        "$@" 'socat -t 20 - TCP4:203.0.113.10:8081 < /dev/null'
    check "$name: names" '203\.0\.113\.10' "$@" 'nslookup www.test'
    check "$name: UDP" '^ping$' "$@" 'echo ping | socat -t 20 - UDP4:203.0.113.10:7001,readbytes=5'
    check "$name: 4 MiB" "$(sum)" "$@" 'wget -qO- http://203.0.113.10:8080/big | md5sum'
}

# The servers of a container, as one command: HTTP that says $1, UDP echo.
serve() {
    echo "socat UDP4-RECVFROM:7001,fork EXEC:cat & echo $1 > /tmp/index.html; \
        exec busybox httpd -f -p 80 -h /tmp"
}

# Makes $WORK/image.tar: a root directory with busybox and socat, of this machine's own programs.
make_image() {
    local image=$WORK/image applet library
    [ -s "$WORK/image.tar" ] && return
    mkdir -p "$image"/{bin,lib,lib64,etc,tmp,proc,sys,dev,run,root,var/tmp}
    chmod 1777 "$image/tmp" "$image/var/tmp"
    cp "$(command -v busybox)" "$image/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$image/bin/$applet"
    done
    cp "$(command -v socat)" "$image/bin/socat"
    for library in $(ldd "$(command -v socat)" | grep -o '/[^ ]*'); do
        mkdir -p "$image$(dirname "$library")"
        cp -L "$library" "$image$library"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' > "$image/etc/passwd"
    echo 'root:x:0:' > "$image/etc/group"
    printf '#!/bin/sh\nexec sleep 1000\n' > "$image/bin/pause"
    chmod 755 "$image/bin/pause"
    tar -C "$image" --owner=0 --group=0 -cf "$WORK/image.tar" .
    chmod 644 "$WORK/image.tar"
    rm -r "$image"
}

# Configures podman and buildah for lab, with $1, a file of contrib/containers.conf.d, and imports
# the image as localhost/lab.
configure_containers() {
    local directory=$WORK/home/.config/containers
    mkdir -p "$directory/containers.conf.d"
    cat > "$directory/containers.conf" << EOF
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
EOF
    sed "s,/usr/local/libexec/tapway,$HELPERS," "$1" > "$directory/containers.conf.d/tapway.conf"
    cat > "$directory/storage.conf" << EOF
[storage]
driver = "overlay"
runroot = "/run/user/$LAB_UID/containers"
graphroot = "$WORK/home/storage"
EOF
    chown -R "$LAB_UID:$LAB_UID" "$WORK/home"
    make_image
    as_lab podman import --quiet "$WORK/image.tar" localhost/lab > /dev/null || exit 1
}
