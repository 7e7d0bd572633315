#!/bin/sh
# Collects what a report about peer pods needs into one tar file: logs, objects, the daemon's own checks and, with
# KVM_HOST, that host's view of our domains. Never reads a Secret. What looks like a secret elsewhere is replaced by
# [redacted] before it is written to a file. A step that fails is listed in failed.txt; the others are done all the same.
#   sh must-gather.sh [-n NAMESPACE] [-o FILE.tar]
#   KUBECTL   oc or kubectl, with its arguments (default: the first of both that is there)
#   KVM_HOST  [USER@]HOST that ssh reaches without a password, with virsh there; "local" for this machine
set -u
umask 077

namespace=openshift-sandboxed-containers-operator
output=
# The daemon logs a handful of lines for each pod.
lines=50000
while getopts n:o:h option; do
	case $option in
	n) namespace=$OPTARG ;;
	o) output=$OPTARG ;;
	*)
		sed -n '2,7s/^# *//p' "$0"
		exit 2
		;;
	esac
done

if [ -z "${KUBECTL:-}" ]; then
	for KUBECTL in oc kubectl ''; do
		if command -v "$KUBECTL" >/dev/null 2>&1; then
			break
		fi
	done
fi
if [ -z "$KUBECTL" ]; then
	echo 'must-gather: neither oc nor kubectl is on the path; name one in KUBECTL' >&2
	exit 1
fi

name=must-gather-$(date -u +%Y%m%dT%H%M%SZ)
: "${output:=$name.tar}"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
top=$work/$name
mkdir "$top"

# Reads text, and writes it without what looks like a secret. POSIX awk.
redact() {
	awk '
	BEGIN {
		cover = "[redacted]"
		word = "(passw|token|secret|activation_key|org_id|credential|private|server.key|cert_key|host_key_certs|initdata|init_data|agent\\.policy|dockercfg|dockerconfig|last-applied-configuration)"
		text = "\"([^\"\\\\]|\\\\.)*\""
		pair = "\"([^\"]*" word "[^\"]*|auth|auths|auth\\.json|auth-json)\"[ \t]*:[ \t]*" text
		# JSON in a string of JSON, at any depth.
		quote = "\\\\+\""
		inner = quote "([^\"\\\\]*" word "[^\"\\\\]*|auth)" quote "[ \t]*:[ \t]*" quote "[^\"\\\\]*" quote
		variable = "\"name\"[ \t]*:[ \t]*\"[^\"]*" word "[^\"]*\""
		assignment = "[a-z0-9_.-]*" word "[a-z0-9_.-]*[ \t]*[=:][ \t]*[^ \t\",;]+"
	}
	# Replaces the value of each pair that the pattern finds. The mark tells how pairs are written: in JSON, in a string
	# of JSON, or as an assignment.
	function covered(line, pattern, mark,    low, out, piece, head) {
		low = tolower(line)
		out = ""
		while (match(low, pattern)) {
			piece = substr(line, RSTART, RLENGTH)
			head = piece
			if (mark == "\"") {
				match(piece, /"[^"]*"/)
				head = substr(piece, RSTART, RLENGTH)
				# The name of a secret is none.
				if (tolower(head) !~ /names?"$/) piece = head ": \"" cover "\""
				match(low, pattern)
			} else if (mark == "\\") {
				match(piece, /\\+"[^"\\]*\\+"/)
				head = substr(piece, RSTART, RLENGTH)
				match(piece, /^\\+"/)
				piece = head ":" substr(piece, 1, RLENGTH) cover substr(piece, 1, RLENGTH)
				match(low, pattern)
			} else {
				match(piece, /[=:][ \t]*/)
				piece = substr(piece, 1, RSTART + RLENGTH - 1) cover
				match(low, pattern)
			}
			out = out substr(line, 1, RSTART - 1) piece
			line = substr(line, RSTART + RLENGTH)
			low = substr(low, RSTART + RLENGTH)
		}
		return out line
	}
	{
		# A private key over several lines.
		if (inKey && $0 ~ /^[ \t]*[A-Za-z0-9+\/=]+[ \t]*$/) next
		if (inKey) {
			inKey = 0
			if ($0 ~ /-----END [A-Z0-9 ]*PRIVATE KEY-----/) next
		}
		if ($0 ~ /-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[ \t]*$/) inKey = 1
		gsub(/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^"]*/, cover)
		gsub(/eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*/, cover)
		gsub(/[Bb]earer [A-Za-z0-9._~+\/=-]+/, "Bearer " cover)
		gsub(/[Bb]asic [A-Za-z0-9+\/=]+/, "Basic " cover)
		gsub(/:\/\/[^\/@ "]*:[^\/@ "]*@/, "://" cover "@")
		line = $0
		low = tolower(line)
		# Most lines have no such word; the patterns below are slow.
		isSuspect = low ~ word || index(low, "auth") > 0
		if (isSuspect) line = covered(line, inner, "\\")
		# A variable of a container: its name, and its value on the next line or beside it.
		if (isSuspect && low ~ variable) isVariable = 1
		if (isVariable && line ~ /"value"[ \t]*:/) {
			gsub(/"value"[ \t]*:[ \t]*"([^"\\]|\\.)*"/, "\"value\": \"" cover "\"", line)
			isVariable = 0
		}
		if (line ~ /}/) isVariable = 0
		if (isSuspect) line = covered(covered(line, pair, "\""), assignment, "=")
		print line
	}'
}

# step FILE COMMAND...: the output of the command as a file. Its exit status does not matter when it printed something.
step() {
	file=$1
	shift
	mkdir -p "$(dirname "$top/$file")"
	"$@" >"$work/out" 2>"$work/err" </dev/null
	status=$?
	redact <"$work/out" >"$top/$file"
	if [ $status -ne 0 ]; then
		{
			echo "$file: exit status $status: $*"
			redact <"$work/err" | head -n 20 | sed 's/^/    /'
		} >>"$top/failed.txt"
	fi
	if [ ! -s "$top/$file" ]; then
		rm -f "$top/$file"
	fi
	return 0
}

# Of a kind of object in our namespace.
objects() {
	step "objects/$1.json" $KUBECTL get "$1" -n "$namespace" -o json
}

pods_of() {
	$KUBECTL get pods -n "$namespace" "$@" -o name </dev/null 2>>"$work/pods.err" | sed 's/^pod\///'
}

echo "must-gather: the namespace $namespace" >&2
step cluster/version.txt $KUBECTL version
step cluster/nodes.txt $KUBECTL get nodes -o wide
step cluster/capacity.txt $KUBECTL get nodes -o 'custom-columns=NAME:.metadata.name,CAPACITY:.status.capacity.kata\.peerpods\.io/vm,ALLOCATABLE:.status.allocatable.kata\.peerpods\.io/vm,OWNER:.metadata.annotations.kata\.peerpods\.io/caa-owner'
step cluster/runtime-classes.json $KUBECTL get runtimeclasses.node.k8s.io -o json
step cluster/webhooks.json $KUBECTL get mutatingwebhookconfigurations.admissionregistration.k8s.io -o json
step cluster/kataconfigs.json $KUBECTL get kataconfigs.kataconfiguration.openshift.io -o json
step cluster/peerpods.json $KUBECTL get peerpods.confidentialcontainers.org -A -o json
for kind in daemonsets.apps deployments.apps pods jobs.batch configmaps peerpodconfigs.confidentialcontainers.org \
	leases.coordination.k8s.io serviceaccounts roles.rbac.authorization.k8s.io rolebindings.rbac.authorization.k8s.io; do
	objects "$kind"
done
step objects/events.txt $KUBECTL get events -n "$namespace" --sort-by=.lastTimestamp

# Pods of others: no environment and no arguments, which may hold anything.
echo 'must-gather: peer pods' >&2
columns='NAMESPACE:.metadata.namespace,NAME:.metadata.name,RUNTIMECLASS:.spec.runtimeClassName,NODE:.spec.nodeName,PHASE:.status.phase,IP:.status.podIP,CREATED:.metadata.creationTimestamp,DELETED:.metadata.deletionTimestamp'
hypervisor='.metadata.annotations.io\.katacontainers\.config\.hypervisor\.'
columns="$columns,VCPUS:${hypervisor}default_vcpus,MEMORY:${hypervisor}default_memory,IMAGE:${hypervisor}image"
$KUBECTL get pods -A --no-headers -o "custom-columns=$columns" </dev/null 2>"$work/err" |
	awk '$3 ~ /kata/' | redact >"$top/cluster/peer-pods.txt"
head -n 200 "$top/cluster/peer-pods.txt" | while read -r pod_namespace pod _; do
	step "peer-pods/$pod_namespace/$pod.status.json" $KUBECTL get pod -n "$pod_namespace" "$pod" -o 'jsonpath={.status}'
	step "peer-pods/$pod_namespace/$pod.events.txt" $KUBECTL get events -n "$pod_namespace" --field-selector "involvedObject.name=$pod"
done

echo 'must-gather: logs' >&2
for pod in $(pods_of); do
	step "logs/$pod.log" $KUBECTL logs -n "$namespace" "$pod" --all-containers --tail="$lines"
	step "logs/$pod.previous.log" $KUBECTL logs -n "$namespace" "$pod" --all-containers --previous --tail="$lines"
done

for pod in $(pods_of -l name=osc-caa-ds); do
	echo "must-gather: checks in $pod" >&2
	for words in 'version' 'check -json' 'pods -json' 'image list -json'; do
		file=$(echo "$words" | tr ' ' '-').txt
		# shellcheck disable=SC2086 # Words of a command.
		step "nodes/$pod/$file" $KUBECTL exec -n "$namespace" "$pod" -- cloud-api-adaptor $words
	done
done

# on_host COMMAND: on the KVM host.
on_host() {
	if [ "$KVM_HOST" = local ]; then
		sh -c "$1"
	else
		ssh -o BatchMode=yes -o ConnectTimeout=20 "$KVM_HOST" "$1"
	fi
}

if [ -n "${KVM_HOST:-}" ]; then
	echo "must-gather: the KVM host $KVM_HOST" >&2
	virsh='virsh --connect qemu:///system'
	step kvm-host/system.txt on_host "uname -a; uptime; free -m; df -h; $virsh version --daemon"
	step kvm-host/domains.txt on_host "$virsh list --all"
	# Without --security-info, so without passwords.
	step kvm-host/domains.xml on_host "for each in \$($virsh list --all --name | grep '^podvm-'); do $virsh dumpxml \"\$each\"; done"
	step kvm-host/pools.txt on_host "$virsh pool-list --all --details; for each in \$($virsh pool-list --name); do echo \"\$each:\"; $virsh vol-list \"\$each\" --details; done"
	step kvm-host/networks.txt on_host "$virsh net-list --all; for each in \$($virsh net-list --all --name); do $virsh net-dumpxml \"\$each\"; $virsh net-dhcp-leases \"\$each\"; done"
	step kvm-host/filters.txt on_host "$virsh nwfilter-list; $virsh nwfilter-binding-list"
else
	echo 'kvm-host: not asked, since KVM_HOST is not set' >>"$top/failed.txt"
fi

tar -C "$work" -cf "$output" "$name" || exit 1
echo "must-gather: $output" >&2
if [ -s "$top/failed.txt" ]; then
	echo 'must-gather: not everything could be collected; see failed.txt in it' >&2
fi
