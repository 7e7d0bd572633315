# Prepares fresh namespaces for libvirt and sshd, then holds them until standard input ends. Runs as the child of PID 1
# of the namespaces: when it returns, the kernel ends all other processes in them. All files that these programs write
# are on tmpfs in this mount namespace, so the files of the machine do not change.
set -eu

# A sysfs for this network namespace: libvirt looks for its bridges there.
mount -t sysfs sysfs /sys
for directory in /run /var/log /var/lib/libvirt /var/cache/libvirt /etc/libvirt; do
	mount -t tmpfs -o mode=755 lab "$directory"
done
mkdir -p /run/lab/home /run/netns /run/sshd /var/lib/libvirt/images
# The directory of console locks, a link into /run. Without it, libvirt cannot read consoles.
mkdir -p "$(readlink -m /var/lock)"

# libvirt queries the capabilities of every installed QEMU when it is first used, which takes up to a minute. So hide
# all except the required one (0.4 s).
for emulator in /usr/bin/qemu-system-*; do
	[ "$emulator" = /usr/bin/qemu-system-s390x ] || mount --bind /dev/null "$emulator"
done

# root gets a separate home directory (ssh reads it from passwd, not from HOME), a plain shell, and an account that is
# not locked, because sshd refuses locked accounts.
sed 's|^root:.*|root:x:0:0:root:/run/lab/home:/bin/sh|' /etc/passwd >/run/lab/passwd
sed 's|^root:[^:]*|root:*|' /etc/shadow >/run/lab/shadow
chmod 600 /run/lab/shadow
mount --bind /run/lab/passwd /etc/passwd
mount --bind /run/lab/shadow /etc/shadow

ip link set lo up
ip netns attach kvmhost $$

echo ready >&2
exec cat >/dev/null
