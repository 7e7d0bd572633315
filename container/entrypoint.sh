#!/bin/sh
# The DaemonSet of the operator starts this script. The daemon replaces the shell, so that it is the first process of
# the container and gets the signals. The daemon reads its settings from environment variables, so no flags are passed.
set -eu

# Like the entrypoint of upstream: the provider may be the first argument.
CLOUD_PROVIDER=${1:-${CLOUD_PROVIDER:-libvirt}}
export CLOUD_PROVIDER

# Its default is the address that libvirt assigns to its own host. In a cluster, a missing value is an error.
if [ -z "${LIBVIRT_URI:-}" ]; then
	echo 'cloud-api-adaptor: LIBVIRT_URI is not set. Set it in the secret peer-pods-secret, for example LIBVIRT_URI=qemu+ssh://root@kvm.example.com/system' >&2
	exit 2
fi

exec /usr/local/bin/cloud-api-adaptor libvirt
