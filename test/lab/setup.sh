#!/bin/sh
# Prepares a fresh Debian 12 for `npm test` and `npm run demo`: installs Debian packages, then node modules. Returns
# quickly if everything is installed. Starts no service and does not change the network of the machine.
set -eu
cd "$(dirname "$0")/../.."

# The required programs and their purpose. Apart from these, only Node.js with npm is required.
packages='
qemu-system-misc                        runs s390x virtual machines
qemu-utils                              qemu-img, makes their disks
qemu-user-static                        runs Node.js for s390x, so that our code meets a big-endian machine
libvirt-daemon-system                   libvirtd, virtlogd
libvirt-clients                         virsh
dnsmasq-base                            DHCP of a libvirt network
openssh-server                          sshd, the way to libvirt
openssh-client                          ssh, ssh-keygen
iproute2                                network namespaces, bridges, VXLAN
nftables                                the pods'"'"' packet filter
iptables                                ebtables, which libvirt calls for network filters
util-linux                              unshare, nsenter, setpriv
tini                                    PID 1 of the lab
golang-go                               builds the guest agent
golang-github-containerd-ttrpc-dev      the reference ttrpc, for interoperability tests
lz4                                     compresses the guest'"'"'s initramfs
cpio                                    reads it back
genisoimage                             isoinfo, reads the cloud-init disk back
libxml2-utils                           xmllint, validates domain XML
netcat-openbsd                          nc, one of the ways to libvirt
docker-registry                         a registry to push pod VM images from
openssl                                 reads our certificates, makes an administrator'"'"'s own
python3-yaml                            the YAML parser of cloud-init, as a judge of ours
kubernetes-client                       kubectl, builds the manifests of deploy/
prometheus                              promtool, judges our metrics and alerts
'
# A kubectl from another source works as well, and the one of Debian cannot be installed beside it.
! command -v kubectl >/dev/null || packages="$(printf '%s' "$packages" | sed '/^kubernetes-client /d')
"

started=$(date +%s)
step() {
	printf '» %s\n' "$1"
	step_started=$(date +%s)
}
done_step() {
	printf '✓ %s  %s s\n' "$1" "$(($(date +%s) - step_started))"
}
fail() {
	printf '✗ %s\n  %s\n' "$1" "$2" >&2
	exit 1
}

missing=$(
	printf '%s' "$packages" | while read -r name _; do
		[ -z "$name" ] || printf '%s\n' "$name"
	done | {
		names=$(cat)
		command -v dpkg-query >/dev/null || { printf '%s' "$names"; exit 0; }
		# shellcheck disable=SC2086 # one word a package
		present=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' $names 2>/dev/null | sed -n 's/^ii *//p')
		for name in $names; do
			case "
$present
" in *"
$name
"*) ;; *) printf '%s ' "$name" ;; esac
		done
	}
)

# Packages start their services when they are installed, unless this file forbids it. An existing file is kept.
policy=/usr/sbin/policy-rc.d
mark='# by cloud-api-adaptor test/lab/setup.sh, until it ends'
! grep -qsxF "$mark" "$policy" || rm -f "$policy" # left by a killed run

if [ -n "$missing" ]; then
	# shellcheck disable=SC1091
	release=$(. /etc/os-release 2>/dev/null && printf '%s %s' "$ID" "${VERSION_ID:-}" || printf 'unknown')
	[ "$release" = 'debian 12' ] || fail "These packages are missing: $missing" \
		"This script installs them on Debian 12 only; this is $release. Install what provides the same programs, or use a Debian 12 container (--privileged)."
	[ "$(id -u)" = 0 ] || fail "These packages are missing: $missing" 'Run this as root: they have to be installed, and the lab makes network namespaces.'

	log=$(mktemp)
	made_policy=
	clean_up() {
		[ -z "$made_policy" ] || rm -f "$policy"
		rm -f "$log"
	}
	trap clean_up EXIT
	trap 'exit 130' INT TERM HUP
	if ! [ -e "$policy" ]; then
		made_policy=1
		printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
		chmod 755 "$policy"
	fi

	export DEBIAN_FRONTEND=noninteractive
	apt() {
		apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" </dev/null >>"$log" 2>&1
	}
	# shellcheck disable=SC2086 # one word a package
	{
		download() { apt install --no-install-recommends --download-only $missing; }
		install() { apt install --no-install-recommends $missing; }
	}
	explain() {
		cat "$log" >&2
		fail "$1" "$2"
	}

	# An interrupted run leaves packages that are unpacked but not configured.
	if [ -n "$(dpkg --audit)" ]; then
		step 'Finish an installation that was interrupted'
		dpkg --configure -a </dev/null >>"$log" 2>&1 || apt install --fix-broken || explain 'dpkg --configure -a failed' 'See its output above, and repair the packages that it names.'
		done_step 'Finished it'
	fi
	printf 'Missing Debian packages: %s\n' "$missing"
	step 'Download them'
	# The package lists of the machine are often sufficient. If they are missing or too old, fetch them.
	download || {
		apt update || explain 'apt-get update failed' 'See its output above: network, proxy, or the sources in /etc/apt.'
		download || explain 'The packages could not be downloaded' 'See the output above: network, proxy, or a disk that is full.'
	}
	done_step 'Downloaded'
	step 'Install them (no service is started)'
	install || explain 'apt-get install failed' 'See its output above; running this again finishes what was left half-way.'
	done_step 'Installed'
fi

[ "$(id -u)" = 0 ] || fail 'Not root' 'The lab makes network namespaces and mounts: run this as root.'

# The stamp is written last, so an interrupted or removed installation has none, even if npm left files in node_modules.
stamp=node_modules/.installed-lock
if ! cmp -s package-lock.json "$stamp" || ! [ -x node_modules/.bin/node ]; then
	command -v npm >/dev/null || fail 'npm is missing' 'Install Node.js with npm, e.g. "apt-get install npm"; the right version of Node.js then comes with the modules.'
	step 'Install node modules (npm ci)'
	rm -f "$stamp"
	npm ci --no-audit --no-fund --loglevel=error </dev/null || fail 'npm ci failed' 'See its output above: network, proxy or registry. It is safe to run this again.'
	node_modules/.bin/node --version >/dev/null || fail 'The Node.js among the node modules does not run' \
		'npm may be set to ignore install scripts: run "npm config set ignore-scripts false", then this again.'
	cp package-lock.json "$stamp"
	done_step 'Node modules'
fi

# Leftovers of killed test runs in /tmp (caat: tests of cloud-api-adaptor). No run takes a day.
find /tmp -mindepth 1 -maxdepth 1 -type d -name 'caat-*' -mmin +1440 -exec rm -rf {} + || :

elapsed=$(($(date +%s) - started))
[ "$elapsed" -lt 2 ] || printf 'Set up in %s s\n' "$elapsed"
