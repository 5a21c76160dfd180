#!/usr/bin/env bash
# sandbox.sh SCENARIO: a machine for one engine, made of namespaces; runs SCENARIO in it as root.
#
#   container ── engine, helper: user "lab" on `host` ── veth ── `outside` (HTTP, UDP echo, DNS)
#                                203.0.113.1                     203.0.113.2, .10
#                                2001:db8:77::1                  2001:db8:77::2, ::10
#
# Mounts, processes, network, IPC and host name are the sandbox's own; so are /run, /dev, the user
# with its subordinate ids, and a cgroup2 tree. With ROOT, the scenario runs in an overlay over that
# root directory (pivot_root: in a chroot the kernel refuses user namespaces). When the scenario
# ends, the first process of the sandbox ends, and the kernel ends all others with it.
#
# In the environment: WORK, a directory on a disk, for storage; HELPERS, a directory in it with the
# helpers under test; LAB_UID, the user's number.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ "${1:-}" != --inside ]; then
    # Engines give helpers descriptors by number: none of ours may be in the way.
    for descriptor in /proc/self/fd/*; do
        number=${descriptor##*/}
        case $number in 0 | 1 | 2 | 255) ;; *) eval "exec $number>&-" ;; esac
    done 2>/dev/null
    tree=$(findmnt -rn -t cgroup2 -o TARGET | head -1)
    [ -n "$tree" ] || { echo "sandbox.sh: no cgroup2 is mounted" >&2; exit 2; }
    export CGROUP=tapway-engine-$$
    mkdir "$tree/$CGROUP"
    unshare --mount --pid --net --ipc --uts --fork --kill-child --mount-proc \
        "$0" --inside "$@" &
    inside=$!
    trap 'kill "$inside" 2>/dev/null' INT TERM
    status=0
    wait "$inside" || status=$?
    for _ in $(seq 20); do
        find "$tree/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$tree/$CGROUP" ] || break
        sleep 0.1
    done
    exit "$status"
fi
shift
scenario=$1

hostname engine-lab
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock "/run/user/$LAB_UID"

# The two networks.
ip link set lo up
ip netns add outside
out() { nsenter --net=/run/netns/outside "$@"; }
for namespace in "" out; do
    $namespace sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad' 2>/dev/null || true
done
ip link add eth0 type veth peer name eth0 netns outside
ip address add 203.0.113.1/24 dev eth0
ip address add 2001:db8:77::1/64 dev eth0 nodad
ip link set eth0 up
out ip link set lo up
for number in 2 10; do
    out ip address add "203.0.113.$number/24" dev eth0
    out ip address add "2001:db8:77::$number/64" dev eth0 nodad
done
out ip link set eth0 up
ip route add default via 203.0.113.2
ip route add default via 2001:db8:77::2
echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range

# What is outside: HTTP with a file, a port that tells the client's address, UDP echo, names.
mkdir -p /run/outside
echo outside > /run/outside/index.html
head -c 4194304 /dev/urandom > /run/outside/big
out busybox httpd -p 8080 -h /run/outside
tell='SYSTEM:echo peer=$SOCAT_PEERADDR'
out socat TCP4-LISTEN:8081,fork,reuseaddr "$tell" &
out socat TCP6-LISTEN:8081,fork,reuseaddr,ipv6only=1 "$tell" &
# At one address: an answer from another would not be one.
out socat UDP4-RECVFROM:7001,bind=203.0.113.10,fork EXEC:cat &
out dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root \
    --pid-file= --address=/www.test/203.0.113.10 --address=/www.test/2001:db8:77::10 \
    > /run/dnsmasq.log 2>&1 &
# All are up before anybody asks.
for place in tcp:8080 tcp:8081 udp:7001 udp:53; do
    for _ in $(seq 300); do
        out ss -Hln --"${place%:*}" sport = ":${place#*:}" | grep -q . && continue 2
        sleep 0.1
    done
    echo "sandbox.sh: nobody serves $place" >&2
    exit 2
done
printf 'nameserver 203.0.113.2\n' > /run/resolv.conf

# The devices that engines need.
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
mkdir /run/dev/net /run/dev/pts /run/dev/shm /run/dev/mqueue
while read -r name major minor; do
    mknod -m 666 "/run/dev/$name" c "$major" "$minor"
done <<EOF
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
fuse 10 229
EOF
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs /run/dev/shm
mount -t mqueue mqueue /run/dev/mqueue
ln -s /proc/self/fd /run/dev/fd
ln -s fd/0 /run/dev/stdin
ln -s fd/1 /run/dev/stdout
ln -s fd/2 /run/dev/stderr

new=
if [ -n "${ROOT:-}" ]; then
    new=/run/new
    mkdir -p $new /run/over
    mount -t tmpfs -o mode=755 tmpfs /run/over
    mkdir /run/over/upper /run/over/work
    mount -t overlay -o "lowerdir=$ROOT,upperdir=/run/over/upper,workdir=/run/over/work" \
        overlay $new
    mount -t tmpfs -o mode=755 tmpfs $new/run
    mkdir -p $new/run/netns $new/run/lock "$new/run/user/$LAB_UID" $new/run/outside
    mount --rbind /run/netns $new/run/netns
    mount --bind /run/outside $new/run/outside
    cp /run/resolv.conf $new/run/
    mount -t tmpfs -o mode=1777 tmpfs $new/tmp
    mount -t proc proc $new/proc
    # A helper of the system's is that of the root.
    for directory in "$WORK" "$(dirname "$(readlink "$HELPERS/pasta")")"; do
        case $directory in /bin | /usr/*) continue ;; esac
        mkdir -p "$new$directory"
        mount --rbind "$directory" "$new$directory"
    done
fi
umount -l $new/dev 2>/dev/null || true
mount --rbind /run/dev $new/dev
mount -t sysfs sysfs $new/sys
mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
mkdir "$new/sys/fs/cgroup/$CGROUP/leaf"
echo $$ > "$new/sys/fs/cgroup/$CGROUP/leaf/cgroup.procs"
chown -R "$LAB_UID" "$new/sys/fs/cgroup/$CGROUP"

# The user: root's files plus one line. All of /etc is a copy, since a mount over a single file goes
# when the machine replaces that file, as whatever adds a user does.
mkdir $new/run/etc
cp -a $new/etc/. $new/run/etc/
mount --bind $new/run/etc $new/etc
own_line() {
    sed -i '/^lab:/d' "$new/etc/$1"
    printf '%s\n' "$2" >> "$new/etc/$1"
}
touch $new/etc/subuid $new/etc/subgid
own_line passwd "lab:x:$LAB_UID:$LAB_UID::$WORK/home:/bin/sh"
own_line group "lab:x:$LAB_UID:"
own_line subuid "lab:200000:65536"
own_line subgid "lab:200000:65536"
# It may be a link to below /run, which is empty now.
rm -f $new/etc/resolv.conf
cp $new/run/resolv.conf $new/etc/resolv.conf

if [ -n "$new" ]; then
    cd $new
    mkdir -p .old
    pivot_root . .old
    cd /
    # Else the namespaces' files would be unmounted here as well.
    mount --make-rprivate /
    umount -l /.old
fi
# Engines warn without.
mount --make-rshared /
chown "$LAB_UID:$LAB_UID" "/run/user/$LAB_UID"
chmod 700 "/run/user/$LAB_UID"
mkdir -p "$WORK/home"
chown "$LAB_UID:$LAB_UID" "$WORK/home"
cd /
status=0
bash "$here/$scenario" || status=$?
# All others end with this process, the first of its namespace.
exit "$status"
