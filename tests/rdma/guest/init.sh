#!/bin/sh
# Start of a test guest: kernel modules, addresses, then kvx_guest as process 1. The harness gives
# kvx.name=, kvx.number= and kvx.nics= on the kernel's command line.
export PATH=/usr/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts /run /tmp /root /var/lib/kvxfer
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp

while read -r module; do
	insmod "/modules/$module" || echo "kvx-init: cannot load $module"
done </modules/order

for word in $(cat /proc/cmdline); do
	case $word in
	kvx.name=*) name=${word#*=} ;;
	kvx.number=*) number=${word#*=} ;;
	kvx.nics=*) nics=${word#*=} ;;
	esac
done

hostname "$name"
ip link set lo up
nic=0
while [ "$nic" -lt "$nics" ]; do
	ip link set "eth$nic" mtu 4200 up
	ip addr add "10.77.$nic.$number/24" dev "eth$nic"
	nic=$((nic + 1))
done
# No segment larger than a packet on the wire: faults then hit single packets.
ulimit -l unlimited
ulimit -c 0
dmesg -n 7
exec kvx_guest /dev/vport0p1
