#!/bin/busybox sh
# The first process of the machine in qemu.rs, which reads what is printed here.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# Their order is that of their needs, which a second round gets right.
for round in 1 2 3; do
    for module in /modules/*; do insmod "$module" 2>/dev/null; done
done
for word in $(cat /proc/cmdline); do
    case $word in server=*) port=${word#server=} ;; esac
done
cat >/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
[ -z "$mtu" ] || ip link set eth0 mtu "$mtu"
ip route add default via "$router"
echo "LEASE $ip/$mask router $router mtu $mtu dns $dns search $search"
END
chmod +x /lease
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -s /lease -n -q -t 30 -T 1 || echo "NO LEASE"
mkdir /www
router=$(ip route | sed -n 's/^default via \([^ ]*\).*/\1/p')
wget -q -O /www/file "http://$router:$port/file" && echo "FETCHED $(md5sum </www/file)"
for second in 1 2 3 4 5 6 7 8 9 10; do
    ip -6 addr show dev eth0 | grep -v tentative | grep -q 'scope global' && break
    sleep 1
done
wget -q -O /www/file6 "http://[2001:db8:77::1]:$port/file" && echo "FETCHED6 $(md5sum </www/file6)"
httpd -p 8080 -h /www
echo SERVING
# Whoever connects here has seen enough.
nc -l -p 8081 </dev/null >/dev/null
sync
poweroff -f
