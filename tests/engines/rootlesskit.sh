# rootlesskit by itself, over slirp4netns: both port drivers, sandbox and seccomp, IPv6.
. "$(dirname "$0")/lib.sh"
rootlesskit --version
echo secret > /run/secret
busybox httpd -p 127.0.0.1:9099 -h /run

cat > /run/guest.sh << 'EOF'
#!/bin/sh
# What is under rootlesskit: says what it reaches, then serves.
echo "tcp $(socat -t 20 - TCP4:203.0.113.10:8081 < /dev/null 2>&1)"
echo "name $(busybox nslookup www.test 2>&1 | tr '\n' ' ')"
echo "udp $(echo ping | socat -t 20 - UDP4:203.0.113.10:7001,readbytes=5 2>&1)"
echo "loopback $(curl -s -m 20 http://10.0.2.2:9099/secret || echo refused)"
if [ "$IPV6" = yes ]; then
    # Before it has been tried for doubles nobody may use it, and ::1 would be taken instead.
    for i in $(seq 200); do
        ip -6 -o address show dev tap0 | grep fd00 | grep -qv tentative && break; sleep 0.1
    done
    place='TCP6:[2001:db8:77::10]:8081,connect-timeout=10'
    for i in $(seq 100); do
        peer=$(socat -t 20 - "$place" < /dev/null 2> /dev/null) && break
        sleep 0.1
    done
    echo "tcp6 $peer"
fi
mkdir -p /run/served
echo "$WORD" > /run/served/index.html
socat UDP4-RECVFROM:7001,fork EXEC:cat &
echo ready
exec busybox httpd -f -p 80 -h /run/served
EOF
chmod 755 /run/guest.sh

# session NAME LOOPBACK OPTIONS...: LOOPBACK is what the guest gets from the host's.
session() {
    local name=$1 loopback=$2 word=word-$RANDOM said=/run/said.$RANDOM kit inner
    shift 2
    as_lab WORD=$word IPV6="${IPV6:-no}" rootlesskit --net=slirp4netns \
        --slirp4netns-binary="$HELPERS/slirp4netns" --copy-up=/etc --copy-up=/run \
        --state-dir="/run/user/$LAB_UID/kit" "$@" \
        -p 0.0.0.0:18080:80/tcp -p 0.0.0.0:18090:7001/udp /run/guest.sh > $said 2>&1 &
    kit=$!
    until_true grep -q '^ready' $said
    until_served http://127.0.0.1:18080/ $word
    check "$name: TCP" 'tcp peer=203\.0\.113\.1' cat $said
    check "$name: names" 'name .*203\.0\.113\.10' cat $said
    check "$name: UDP" 'udp ping' cat $said
    check "$name: the host's loopback" "loopback $loopback" cat $said
    if [ "${IPV6:-no}" = yes ]; then check "$name: TCP over IPv6" 'tcp6 peer=' cat $said; fi
    check "$name: published, from the host" "^$word$" fetch http://127.0.0.1:18080/
    check "$name: published, from outside" "^$word$" outside curl -s -m 20 http://203.0.113.1:18080/
    check "$name: published UDP" '^ping$' udp 203.0.113.1 18090 outside
    check "$name: the helper" runs helper_runs
    # The guest ends, and rootlesskit has to end its helper.
    for inner in $(pgrep -u "$LAB_UID" -f 'httpd -f -p 80'); do kill -9 "$inner"; done
    wait $kit 2> /dev/null
    check "$name: the helper ends" gone helper_gone
    # In this PID namespace the user has no other processes.
    for inner in $(pgrep -u "$LAB_UID"); do kill -9 "$inner" 2> /dev/null; done
    rm -rf "/run/user/$LAB_UID/kit"
}

session builtin secret --port-driver=builtin
session slirp4netns secret --port-driver=slirp4netns
session "sandbox and seccomp" refused --port-driver=builtin --disable-host-loopback \
    --slirp4netns-sandbox=true --slirp4netns-seccomp=true
# As k3s has it: its own network, no sandbox.
session "k3s's options" refused --port-driver=builtin --disable-host-loopback \
    --cidr=10.41.0.0/16 --slirp4netns-sandbox=false --slirp4netns-seccomp=false
IPV6=yes session "IPv6, MTU 1500" secret --port-driver=slirp4netns --ipv6 --mtu=1500
finish
