# Makes a private place for libvirt and sshd out of fresh namespaces, then holds it until standard input ends.
# Runs as the child of the namespaces' PID 1: when this returns the kernel ends whatever else still runs in here.
# Everything that those programs write is on tmpfs in this mount namespace: the machine's own files stay as they are.
set -eu

# A sysfs of this network namespace: libvirt looks for its bridges in it.
mount -t sysfs sysfs /sys
for directory in /run /var/log /var/lib/libvirt /var/cache/libvirt /etc/libvirt; do
	mount -t tmpfs -o mode=755 lab "$directory"
done
mkdir -p /run/lab/home /run/netns /run/sshd /var/lib/libvirt/images
# Where libvirt keeps the locks of consoles, and reads none without: a link into /run.
mkdir -p "$(readlink -m /var/lock)"

# At its first use libvirt asks every QEMU it finds what it can do, up to a minute in all: let it find the one that we need (0.4 s).
for emulator in /usr/bin/qemu-system-*; do
	[ "$emulator" = /usr/bin/qemu-system-s390x ] || mount --bind /dev/null "$emulator"
done

# root gets a home of its own (ssh goes by passwd, not by HOME), a plain shell, and is not locked: sshd refuses locked accounts.
sed 's|^root:.*|root:x:0:0:root:/run/lab/home:/bin/sh|' /etc/passwd >/run/lab/passwd
sed 's|^root:[^:]*|root:*|' /etc/shadow >/run/lab/shadow
chmod 600 /run/lab/shadow
mount --bind /run/lab/passwd /etc/passwd
mount --bind /run/lab/shadow /etc/shadow

ip link set lo up
ip netns attach kvmhost $$

echo ready >&2
exec cat >/dev/null
