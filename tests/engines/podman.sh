# podman 4, rootless, over slirp4netns: its defaults, every option of `--network slirp4netns:`, both
# port handlers, a pod.
. "$(dirname "$0")/lib.sh"
configure_containers "$CONTRIB/containers.conf.d/tapway-slirp4netns.conf"
as_lab podman --version

run() { as_lab podman run --rm localhost/lab sh -c "$1"; }
with() {
    local option=$1
    shift
    as_lab podman run --rm --network "slirp4netns:$option" "$@"
}

check "the path is taken from containers.conf" "^$HELPERS/slirp4netns$" \
    as_lab podman info --format '{{.Host.Slirp4NetNS.Executable}}'
check "address" '10\.0\.2\.100/24' run 'ip -4 -o address show dev tap0'
check "the resolver's address" '10\.0\.2\.3' run 'cat /etc/resolv.conf'
container_checks defaults run
check "ping the gateway" ' 0% packet loss' \
    as_lab podman run --rm --cap-add NET_RAW localhost/lab ping -c 1 -W 5 10.0.2.2

echo secret > /run/secret
busybox httpd -p 127.0.0.1:9099 -h /run
ask_host='timeout 20 wget -qO- http://10.0.2.2:9099/secret 2> /dev/null || echo refused'
check "the host's loopback is closed" '^refused$' run "$ask_host"
check "allow_host_loopback" secret with allow_host_loopback=true localhost/lab sh -c "$ask_host"
check "mtu" 'mtu 1400' with mtu=1400 localhost/lab ip link show dev tap0
check "cidr" '10\.9\.8\.100/24.*peer=203\.0\.113\.1' with cidr=10.9.8.0/24 localhost/lab \
    sh -c 'ip -4 -o address show dev tap0; socat -t 20 - TCP4:203.0.113.10:8081 < /dev/null'
check "enable_ipv6" 'peer=.*2001:0*db8:0*77:.*1' with enable_ipv6=true localhost/lab sh -c '
    for i in $(seq 200); do
        ip -6 -o address show dev tap0 | grep fd00 | grep -qv tentative && break; sleep 0.1
    done
    place="TCP6:[2001:db8:77::10]:8081,connect-timeout=10"
    for i in $(seq 100); do
        socat -t 20 - "$place" < /dev/null 2> /dev/null && break; sleep 0.1
    done'
ask_peer='socat -t 20 - TCP4:203.0.113.10:8081'
for source in 203.0.113.1 eth0; do
    check "outbound_addr=$source" 'peer=203\.0\.113\.1' \
        with "outbound_addr=$source" localhost/lab sh -c "$ask_peer < /dev/null"
done

for handler in rootlesskit slirp4netns; do
    word=served-by-$handler
    as_lab podman run --detach --name web --network "slirp4netns:port_handler=$handler" \
        -p 127.0.0.1:18080:80 -p 0.0.0.0:18081:80 -p 18090:7001/udp \
        localhost/lab sh -c "$(serve $word)" > /dev/null
    until_served http://127.0.0.1:18080/ $word
    check "$handler: published at the loopback" "^$word$" fetch http://127.0.0.1:18080/
    check "$handler: and nowhere else" '^failed: 7$' outside \
        bash -c 'curl -s --max-time 20 http://203.0.113.1:18080/ || echo "failed: $?"'
    check "$handler: published everywhere" "^$word$" outside curl -s -m 20 http://203.0.113.1:18081/
    check "$handler: published UDP" '^ping$' udp 203.0.113.1 18090 outside
    check "$handler: the helper" runs helper_runs
    as_lab podman rm --force --time 0 web > /dev/null
    check "$handler: the helper ends with the container" gone helper_gone
    check "$handler: the port is closed" '^failed: 7$' fetch http://127.0.0.1:18081/
done

as_lab podman pod create --name pod -p 127.0.0.1:18082:80 --infra-image localhost/lab \
    --infra-command /bin/pause > /dev/null
as_lab podman run --detach --pod pod localhost/lab sh -c "$(serve of-the-pod)" > /dev/null
until_served http://127.0.0.1:18082/ of-the-pod
check "pod: published" '^of-the-pod$' fetch http://127.0.0.1:18082/
check "pod: containers share the network" '^of-the-pod$' \
    as_lab podman run --rm --pod pod localhost/lab timeout 20 wget -qO- http://127.0.0.1/
as_lab podman pod rm --force --time 0 pod > /dev/null 2>&1
check "pod: the helper ends" gone helper_gone
finish
