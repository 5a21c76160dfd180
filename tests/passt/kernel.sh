#!/bin/sh
# Puts a kernel for a virtual machine, and the modules of its network card, into the directory $1,
# unless they are there: those of Debian's package for machines in clouds, which is not installed.
set -eu
[ -e "$1/vmlinuz" ] && exit
mkdir -p "$1"
work=$(mktemp -d "$1/half.XXXXXX")
trap 'rm -rf "$work"' EXIT
package() {
    apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p'
}
cd "$work"
download() { apt-get -qq -o Acquire::Retries=5 download "$(package)"; }
{ [ -n "$(package)" ] && download; } ||
    { apt-get -qq -o Acquire::Retries=5 update && download; }
dpkg-deb -x ./linux-image-*.deb .
mkdir modules
for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
    failover net_failover virtio_net; do
    # Where it is no file, the kernel has it.
    find lib usr -name "$module.ko*" -exec cp {} modules/ \; 2>/dev/null || true
done
rm -rf ../modules
mv modules ../modules
# Last, so that half of it is never taken for the whole.
mv boot/vmlinuz-* ../vmlinuz
