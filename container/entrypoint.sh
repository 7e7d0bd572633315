#!/bin/sh
# What the operator's DaemonSet starts: the daemon in place of this shell, so that it is the container's first process and signals reach it.
# Settings are environment variables, which it reads itself; flags would only repeat them.
set -eu

# As the existing adaptor's entrypoint: the provider may be the first argument.
CLOUD_PROVIDER=${1:-${CLOUD_PROVIDER:-libvirt}}
export CLOUD_PROVIDER

# It has a default, the address that libvirt gives its own host: in a cluster, who forgets it shall hear of it.
if [ -z "${LIBVIRT_URI:-}" ]; then
	echo 'cloud-api-adaptor: LIBVIRT_URI is not set. Set it in the secret peer-pods-secret, for example LIBVIRT_URI=qemu+ssh://root@kvm.example.com/system' >&2
	exit 2
fi

exec /usr/local/bin/cloud-api-adaptor libvirt
