# podman 5, rootless, over pasta: its defaults, options, published ports of both families, bridge
# networks, a restart.
. "$(dirname "$0")/lib.sh"
configure_containers "$CONTRIB/containers.conf.d/tapway-pasta.conf"
as_lab podman --version

run() { as_lab podman run --rm localhost/lab sh -c "$1"; }
with() {
    local options=$1
    shift
    as_lab podman run --rm --network "pasta:$options" localhost/lab sh -c "$1"
}

check "the path is taken from containers.conf" "$HELPERS/pasta" \
    as_lab podman info --format '{{.Host.Pasta.Executable}}'
check "the host's address" '203\.0\.113\.1/24' run 'ip -4 -o address show dev eth0'
check "the host's IPv6 address" '2001:db8:77::1/64' run 'ip -6 -o address show dev eth0'
check "the resolver's address" '169\.254\.1\.1' run 'cat /etc/resolv.conf'
container_checks defaults run
check "TCP over IPv6" 'peer=.*2001:0*db8:0*77:.*1' \
    run 'socat -t 20 - "TCP6:[2001:db8:77::10]:8081" < /dev/null'
check "ping" ' 0% packet loss' \
    as_lab podman run --rm --cap-add NET_RAW localhost/lab ping -c 1 -W 5 203.0.113.10

logged() { as_lab podman logs "$1" 2>&1 | grep -q "$2"; }

echo secret > /run/secret
busybox httpd -p 127.0.0.1:9099 -h /run
busybox httpd -p 203.0.113.1:9098 -h /run
ask() { echo "timeout 20 wget -qO- http://$1/secret 2> /dev/null || echo refused"; }
check "host.containers.internal is not the loopback" 'refused$' \
    run "$(ask host.containers.internal:9099)"
check "host.containers.internal is the host" 'secret$' run "$(ask host.containers.internal:9098)"
check "--map-gw" 'secret$' with --map-gw "$(ask 203.0.113.2:9099)"
check "-T" 'secret$' with -T,9099 "$(ask 127.0.0.1:9099)"
check "--mtu, -I" 'mtu 1400' with --mtu,1400,-I,net0 'ip link show dev net0'

as_lab podman run --detach --name web -p 127.0.0.1:18080:80 -p 18081:80 -p 18090:7001/udp \
    localhost/lab sh -c "$(serve over-pasta)" > /dev/null
until_served http://127.0.0.1:18080/ over-pasta
check "published at the loopback" '^over-pasta$' fetch http://127.0.0.1:18080/
check "and nowhere else" '^failed: 7$' outside \
    bash -c 'curl -s --max-time 20 http://203.0.113.1:18080/ || echo "failed: $?"'
check "published, IPv4" '^over-pasta$' outside curl -s -m 20 http://203.0.113.1:18081/
check "published, IPv6" '^over-pasta$' outside curl -s -m 20 'http://[2001:db8:77::1]:18081/'
check "published UDP, from outside" '^ping$' udp 203.0.113.1 18090 outside
check "published UDP, from the host" '^ping$' udp 127.0.0.1 18090
check "the helper" runs helper_runs
as_lab podman stop --time 0 web > /dev/null
check "the helper ends with the container" gone helper_gone
as_lab podman start web > /dev/null
until_served http://127.0.0.1:18080/ over-pasta
check "published again after a restart" '^over-pasta$' fetch http://127.0.0.1:18080/
as_lab podman rm --force --time 0 web > /dev/null

# A policy that starts it again: the first run ends by itself, the second says whom it reaches. No
# port is published: podman starts the second helper while the first one still has the port, and
# the original fails there as well ("Address already in use").
as_lab podman run --detach --name again --restart on-failure:3 localhost/lab sh -c \
    '[ -e /again ] || { touch /again; sleep 1; exit 1; }
    socat -t 20 - TCP4:203.0.113.10:8081 < /dev/null; exec sleep 1000' > /dev/null
until_true logged again peer=
check "restarted by its policy" 'peer=203\.0\.113\.1' as_lab podman logs again
as_lab podman rm --force --time 0 again > /dev/null
check "no helper is left" gone helper_gone

as_lab podman network create bridge1 > /dev/null
as_lab podman run --detach --name server --network bridge1 -p 18084:80 localhost/lab \
    sh -c "$(serve on-a-bridge)" > /dev/null
until_served http://127.0.0.1:18084/ on-a-bridge
bridged() { as_lab podman run --rm --network bridge1 localhost/lab sh -c "$1"; }
check "bridge: published" '^on-a-bridge$' outside curl -s -m 20 http://203.0.113.1:18084/
check "bridge: by name" 'on-a-bridge$' bridged 'timeout 20 wget -qO- http://server/'
check "bridge: TCP" 'peer=203\.0\.113\.1$' \
    bridged 'socat -t 20 - TCP4:203.0.113.10:8081 < /dev/null'
check "bridge: names" '203\.0\.113\.10' bridged 'nslookup www.test'
check "bridge: the helper" runs helper_runs
as_lab podman rm --force --time 0 server > /dev/null
check "bridge: the helper ends with the last container" gone helper_gone
finish
