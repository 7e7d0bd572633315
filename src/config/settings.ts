/**
 * The tables of settings: the environment, the command line's flags, the help text and docs/configuration.md are all
 * made from them. `settings` is the daemon's; a command with settings of its own has its table in cli/ (see
 * cli/commands.ts for who has which). Names, flags and defaults are those of the existing adaptor (cloud-api-adaptor,
 * cmd/cloud-api-adaptor/main.go and cloud-providers/libvirt/manager.go), so that its manifests work; what is only ours
 * says so in its description.
 */
import {
	absolutePath,
	boolean,
	cipherSuites,
	cpuset,
	duration,
	glob,
	identifier,
	integer,
	initdata,
	interfaceName,
	ipv4Prefix,
	libvirtName,
	libvirtUri,
	listOf,
	oneOf,
	port,
	textLike,
	tlsMinVersion,
	type ValueType,
} from './setting-types.ts';

export interface Setting<T = unknown> {
	/** The environment variable. */
	readonly env: string;
	/** Another name of the variable, which documentation uses as well. */
	readonly alias?: string;
	/** The flag without its dash, where the existing adaptor has one. */
	readonly flag?: string;
	readonly section: Section;
	readonly type: ValueType<T>;
	/** As one would write it. A setting with neither a default nor `defaultIs` may be absent. */
	readonly default?: string;
	/** Tells the default that only the running machine knows. */
	readonly defaultIs?: string;
	/** Sentences for an operator, in Markdown without links. */
	readonly description: string;
	/** Shown in messages; the default where there is one. */
	readonly example?: string;
}

/** By the names that the values have in the code. */
export type SettingsTable = Readonly<Record<string, Setting>>;

export const sections = [
	'KVM host',
	'Images',
	'Pod VM size',
	'Inside the pod VM',
	'Sockets and timeouts',
	'TLS to the pod VM',
	'Pod network',
	'Kubernetes',
	'Webhook',
	'Logging',
] as const;
export type Section = (typeof sections)[number];

/** A unix socket's path is at most 107 bytes, and `<PODS_DIR>/<64 digits>/agent.ttrpc` is one. */
const maxSocketPathBytes = 107;
const agentSocketSuffixBytes = '/'.length + 64 + '/agent.ttrpc'.length;

/** QEMU, hw/s390x: S390_MAX_CPUS. */
const mostVcpus = 248;
const vcpus = integer(1, mostVcpus);
const memory = integer(1, 16_777_216, 'MiB');

export const settings = {
	cloudProvider: {
		env: 'CLOUD_PROVIDER',
		section: 'KVM host',
		type: oneOf('libvirt'),
		default: 'libvirt',
		description: 'Where pod VMs run.',
	},
	libvirtUri: {
		env: 'LIBVIRT_URI',
		flag: 'uri',
		section: 'KVM host',
		type: libvirtUri,
		default: 'qemu+ssh://root@192.168.122.1/system?no_verify=1',
		description:
			"The libvirt that runs the pod VMs, with libvirt's own URI parameters (`keyfile`, `known_hosts`, `no_verify`, …). " +
			"The default does not verify the host's key: leave `no_verify` out in production.",
	},
	pool: {
		env: 'LIBVIRT_POOL',
		flag: 'pool-name',
		section: 'KVM host',
		type: libvirtName,
		default: 'default',
		description: "Storage pool of the base volume and of the pod VMs' disks.",
	},
	network: {
		env: 'LIBVIRT_NET',
		flag: 'network-name',
		section: 'KVM host',
		type: libvirtName,
		default: 'default',
		description: 'libvirt network of the pod VMs. The worker node must reach it.',
	},
	netFilter: {
		env: 'LIBVIRT_NET_FILTER',
		section: 'KVM host',
		type: textLike('auto, off, or the name of a network filter', /^[\w.:\-]{1,255}$/v),
		default: 'auto',
		example: 'clean-traffic',
		description:
			"libvirt network filter that keeps pod VMs from taking each other's MAC and IP addresses and from serving DHCP (not in upstream). `auto`: one that the adaptor defines, " +
			'where the KVM host and the network can have it; `check` and the log tell where not. The name of a filter: without it no VM starts. `off`: none.',
	},
	netIsolation: {
		env: 'LIBVIRT_NET_ISOLATION',
		section: 'KVM host',
		type: oneOf('auto', 'on', 'off'),
		default: 'auto',
		description:
			'Isolated bridge ports: pod VMs on one KVM host reach the worker nodes and the host, not each other (not in upstream). `auto`: where the network has a Linux bridge. ' +
			'`on`: without it no VM starts.',
	},
	baseVolume: {
		env: 'LIBVIRT_VOL_NAME',
		flag: 'vol-name',
		section: 'KVM host',
		type: libvirtName,
		default: 'podvm-base.qcow2',
		description:
			'Volume of the pool that holds the pod VM image, for pods that name none. A name, never a path. ' +
			'`image push` makes versions of it, and has it stand for the newest.',
	},
	allowedImages: {
		env: 'LIBVIRT_ALLOWED_IMAGES',
		section: 'KVM host',
		type: listOf(glob, 'names of volumes, with * for any characters and ? for one,'),
		example: 'podvm-*.qcow2,se-?.qcow2',
		description:
			'Not in upstream. Volumes of the pool that pods may name as their image (annotation `io.katacontainers.config.hypervisor.image`); ' +
			'`LIBVIRT_VOL_NAME` always is one. Not set: all but the disks of pod VMs.',
	},
	launchSecurity: {
		env: 'LIBVIRT_LAUNCH_SECURITY',
		flag: 'launch-security',
		section: 'KVM host',
		type: oneOf('s390-pv'),
		example: 's390-pv',
		description:
			'Confidential VMs by IBM Secure Execution, as with `DISABLECVM=false`. Together with a `DISABLECVM=true` that is set it is refused, ' +
			'since pods would silently run unprotected. Not set: as `s390-pv` if `DISABLECVM=false`.',
	},
	disableCvm: {
		env: 'DISABLECVM',
		flag: 'disable-cvm',
		section: 'KVM host',
		type: boolean,
		default: 'true',
		description:
			'Ordinary VMs. With `false` every pod VM is confidential, and a host that cannot do that starts none. Not set: `false` if `LIBVIRT_LAUNCH_SECURITY` is.',
	},
	clusterId: {
		env: 'CLUSTER_ID',
		section: 'KVM host',
		type: textLike('letters, digits and . _ - (at most 63)', /^[A-Za-z0-9._\-]{1,63}$/v),
		defaultIs: "the UID of the pod's service account",
		example: 'prod-east',
		description:
			'Not in upstream. Written to each VM together with `NODE_NAME`: only VMs that carry both are ever listed, adopted or deleted, so clusters can share ' +
			'a KVM host. Must differ between clusters and never change while VMs run. Required outside Kubernetes, where nothing tells two clusters apart.',
	},
	cloudConfigVerify: {
		env: 'CLOUD_CONFIG_VERIFY',
		flag: 'cloud-config-verify',
		section: 'KVM host',
		type: boolean,
		default: 'false',
		description:
			'The daemon starts only when nothing that `cloud-api-adaptor check` looks at has failed. With `false` it looks as well, while it serves, and logs what it finds.',
	},

	vcpus: {
		env: 'LIBVIRT_CPU',
		flag: 'cpu',
		section: 'Pod VM size',
		type: vcpus,
		default: '2',
		description: 'Virtual CPUs of a pod VM, for pods that ask for none.',
	},
	minVcpus: {
		env: 'LIBVIRT_MIN_CPU',
		section: 'Pod VM size',
		type: vcpus,
		default: '1',
		description: 'Not in upstream. The fewest virtual CPUs of a pod VM.',
	},
	maxVcpus: {
		env: 'LIBVIRT_MAX_CPU',
		section: 'Pod VM size',
		type: vcpus,
		default: '32',
		description:
			'The most virtual CPUs that a pod can get; one that asks for more gets as many, and an event. Not set and `LIBVIRT_CPU` larger: as `LIBVIRT_CPU` (not in upstream).',
	},
	memoryMib: {
		env: 'LIBVIRT_MEMORY',
		flag: 'memory',
		section: 'Pod VM size',
		type: memory,
		default: '8192',
		description: 'Memory of a pod VM in MiB, for pods that ask for none.',
	},
	minMemoryMib: {
		env: 'LIBVIRT_MIN_MEMORY',
		section: 'Pod VM size',
		type: memory,
		default: '1024',
		description:
			'Not in upstream. The least memory of a pod VM in MiB: a pod may ask for less than its VM needs to boot. ' +
			'Not set and `LIBVIRT_MEMORY` smaller than the default: as `LIBVIRT_MEMORY`.',
	},
	maxMemoryMib: {
		env: 'LIBVIRT_MAX_MEMORY',
		section: 'Pod VM size',
		type: memory,
		default: '65536',
		description:
			'The most memory in MiB that a pod can get; one that asks for more gets as much, and an event. Not set and `LIBVIRT_MEMORY` larger: as `LIBVIRT_MEMORY` (not in upstream).',
	},
	swiotlbMib: {
		env: 'LIBVIRT_SWIOTLB_MEMORY',
		section: 'Pod VM size',
		type: integer(0, 65_536, 'MiB'),
		default: '512',
		description:
			"Not in upstream. Memory in MiB that a confidential VM gets on top of its pod's, and of `LIBVIRT_MAX_MEMORY`: its kernel keeps that much for its I/O. " +
			'The default fits images with the kernel parameter `swiotlb=262144` (slabs of 2 KiB).',
	},
	cpuset: {
		env: 'LIBVIRT_CPUSET',
		flag: 'cpuset',
		section: 'Pod VM size',
		type: cpuset,
		example: '0-7,^3',
		description:
			'CPUs of the KVM host to which pod VMs are pinned. A start is refused while one of them is missing or offline. Not set: all.',
	},
	rootDiskGib: {
		env: 'LIBVIRT_ROOT_DISK_SIZE',
		alias: 'ROOT_VOLUME_SIZE',
		flag: 'root-disk-size',
		section: 'Pod VM size',
		type: integer(1, 65_536, 'GiB'),
		default: '10',
		description:
			"Size of a pod VM's root disk in GiB. A larger base volume counts. `ROOT_VOLUME_SIZE`, which OpenShift's documentation writes, is another name of it.",
	},

	initdata: {
		env: 'INITDATA',
		flag: 'initdata',
		section: 'Inside the pod VM',
		type: initdata,
		example: 'H4sIAAAAAAACA0vMSc8vyizJyLVVKs5INDI1U+IqSy0qzszPs1Uy0DPUM1Diik5JLEmMBQAK8Z+aKQAAAA==',
		description:
			'Initdata of pods that bring none in their annotation `io.katacontainers.config.hypervisor.cc_init_data`: what `gzip -c initdata.toml | base64 -w0` prints, ' +
			'or the TOML document itself. No place for secrets.',
	},
	enableScratchSpace: {
		env: 'ENABLE_SCRATCH_SPACE',
		flag: 'enable-scratch-space',
		section: 'Inside the pod VM',
		type: boolean,
		default: 'false',
		description:
			'Pod VMs keep container images in encrypted scratch space. They make it, where their image can, in the part of the root disk that the image does not fill: ' +
			'set `LIBVIRT_ROOT_DISK_SIZE` larger than the image.',
	},

	socketPath: {
		env: 'REMOTE_HYPERVISOR_ENDPOINT',
		flag: 'socket',
		section: 'Sockets and timeouts',
		type: absolutePath(maxSocketPathBytes),
		default: '/run/peerpod/hypervisor.sock',
		description: "Unix socket on which kata's remote hypervisor API is served.",
	},
	podsDir: {
		env: 'PODS_DIR',
		flag: 'pods-dir',
		section: 'Sockets and timeouts',
		type: absolutePath(maxSocketPathBytes - agentSocketSuffixBytes),
		default: '/run/peerpod/pods',
		description: "Directory of the sandboxes' records and agent sockets.",
	},
	forwarderPort: {
		env: 'FORWARDER_PORT',
		flag: 'forwarder-port',
		section: 'Sockets and timeouts',
		type: port,
		default: '15150',
		description: 'TCP port of the agent protocol forwarder in the pod VM.',
	},
	proxyTimeoutMs: {
		env: 'PROXY_TIMEOUT',
		flag: 'proxy-timeout',
		section: 'Sockets and timeouts',
		type: duration,
		default: '5m',
		description:
			'How long a VM that was started may take until its forwarder answers. `START_TIMEOUT`, which is shorter by default, bounds it.',
	},
	startTimeoutMs: {
		env: 'START_TIMEOUT',
		section: 'Sockets and timeouts',
		type: duration,
		default: '210s',
		description: 'Not in upstream. How long a whole StartVM may take; kubelet gives up after about four minutes.',
	},
	maxConcurrentStarts: {
		env: 'MAX_CONCURRENT_STARTS',
		section: 'Sockets and timeouts',
		type: integer(1, 1000),
		default: '10',
		description:
			'Starts of pod VMs at a time, each until its VM answers or has run for 30 s; others wait within their `START_TIMEOUT`, and namespaces take turns (not in upstream).',
	},
	orphanGraceMs: {
		env: 'ORPHAN_GRACE',
		section: 'Sockets and timeouts',
		type: duration,
		default: '2m',
		description:
			'How long a VM of this node may be without a known sandbox before it is removed (not in upstream).',
	},
	probePort: {
		env: 'PROBE_PORT',
		section: 'Sockets and timeouts',
		type: port,
		example: '8000',
		description:
			'TCP port on 127.0.0.1 of `/startup` and `/healthz`. Not set: 8000 in a pod, none elsewhere. A port that is taken is tried again, and fails nothing.',
	},

	caCertFile: {
		env: 'CACERT_FILE',
		flag: 'ca-cert-file',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/ca.crt',
		description:
			'CA certificate of forwarders whose image carries its own certificate. Set all of `CACERT_FILE`, `CERT_FILE` and `CERT_KEY`, or none; ' +
			'with none, every VM gets a certificate of its own.',
	},
	certFile: {
		env: 'CERT_FILE',
		flag: 'cert-file',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/client.crt',
		description: 'Client certificate for `CACERT_FILE`.',
	},
	certKeyFile: {
		env: 'CERT_KEY',
		flag: 'cert-key',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/client.key',
		description: "File of the client certificate's private key.",
	},
	tlsSkipVerify: {
		env: 'TLS_SKIP_VERIFY',
		flag: 'tls-skip-verify',
		section: 'TLS to the pod VM',
		type: boolean,
		default: 'false',
		description: 'Accept any certificate of a pod VM. For tests only.',
	},
	tlsMinVersion: {
		env: 'TLS_MIN_VERSION',
		flag: 'tls-min-version',
		section: 'TLS to the pod VM',
		type: tlsMinVersion,
		example: 'VersionTLS12',
		description: 'Oldest TLS version between worker node and pod VM. It reaches a VM when the VM is made.',
	},
	tlsCipherSuites: {
		env: 'TLS_CIPHER_SUITES',
		flag: 'tls-cipher-suites',
		section: 'TLS to the pod VM',
		type: cipherSuites,
		example: 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256',
		description:
			'Cipher suites between worker node and pod VM. Not with `TLS_MIN_VERSION=VersionTLS13`, whose suites are fixed.',
	},

	tunnelType: {
		env: 'TUNNEL_TYPE',
		flag: 'tunnel-type',
		section: 'Pod network',
		type: oneOf('vxlan'),
		default: 'vxlan',
		description: "Tunnel between the pod's network namespace and its VM.",
	},
	vxlanPort: {
		env: 'VXLAN_PORT',
		flag: 'vxlan-port',
		section: 'Pod network',
		type: port,
		default: '4789',
		description:
			"UDP port of the tunnels. Must be another than that of the cluster's own VXLAN; OpenShift's samples use 9000.",
	},
	vxlanMinId: {
		env: 'VXLAN_MIN_ID',
		flag: 'vxlan-min-id',
		section: 'Pod network',
		type: integer(1, 16_777_215),
		default: '555000',
		description: 'Lowest VXLAN network identifier. As a variable it is ours.',
	},
	hostInterface: {
		env: 'HOST_INTERFACE',
		flag: 'host-interface',
		section: 'Pod network',
		type: interfaceName,
		example: 'enc1',
		description:
			"The worker's interface towards the pod VMs. Not set: the one that the kernel would use towards the subnet of `LIBVIRT_NET`. As a variable it is ours.",
	},
	externalNetworkViaPodVm: {
		env: 'EXTERNAL_NETWORK_VIA_PODVM',
		flag: 'ext-network-via-podvm',
		section: 'Pod network',
		type: boolean,
		default: 'false',
		description: "External traffic leaves through the pod VM's own network instead of the tunnel.",
	},
	podSubnetCidrs: {
		env: 'POD_SUBNET_CIDRS',
		flag: 'pod-subnet-cidrs',
		section: 'Pod network',
		type: listOf(ipv4Prefix, 'IPv4 prefixes'),
		example: '10.128.0.0/14,172.30.0.0/16',
		description: "The cluster's own subnets, which stay in the tunnel with `EXTERNAL_NETWORK_VIA_PODVM`.",
	},

	nodeName: {
		env: 'NODE_NAME',
		section: 'Kubernetes',
		type: identifier,
		defaultIs: 'the host name',
		example: 'worker-0.example.com',
		description: 'Name of this node, from the downward API. Written to each VM: see `CLUSTER_ID`.',
	},
	limitPerNode: {
		env: 'PEERPODS_LIMIT_PER_NODE',
		flag: 'peerpods-limit-per-node',
		section: 'Kubernetes',
		type: integer(-1, 100_000),
		example: '10',
		description:
			'Pod VMs at a time on this node; CreateVM beyond it is refused. In a cluster it is advertised to the scheduler, and a limit in the ' +
			"operator's PeerPodConfig counts instead. Not set: 10 are advertised and more are not refused. Negative: no limit, nothing is advertised.",
	},
	enforceLimit: {
		env: 'ENFORCE_PEERPODS_LIMIT',
		section: 'Kubernetes',
		type: boolean,
		default: 'true',
		description: 'Not in upstream. `false`: `PEERPODS_LIMIT_PER_NODE` is left to the scheduler.',
	},
	podUid: {
		env: 'POD_UID',
		section: 'Kubernetes',
		type: identifier,
		example: '7d8e1f9c-3a52-4d0e-9b62-0c3f6c1f8d11',
		description:
			"UID of the adaptor's own pod, from the downward API. Noted at the node as the one that advertises its capacity for pod VMs.",
	},
	daemonSet: {
		env: 'DAEMONSET_NAME',
		section: 'Kubernetes',
		type: identifier,
		default: 'osc-caa-ds',
		description:
			"Not in upstream. The DaemonSet of the adaptor, in its own namespace. When it is gone the node's capacity for pod VMs goes with the daemon.",
	},

	logLevel: {
		env: 'LOG_LEVEL',
		section: 'Logging',
		type: oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'),
		default: 'info',
		description: 'Not in upstream. The least important lines that are written.',
	},
	logFormat: {
		env: 'LOG_FORMAT',
		section: 'Logging',
		type: oneOf('json', 'pretty'),
		default: 'json',
		description: 'Not in upstream. One JSON object a line, or lines for a reader.',
	},
} as const satisfies SettingsTable;

/** Known names that change nothing (yet): manifests that set them work, and the operator is told. */
export interface InertSetting {
	readonly env: string;
	readonly flag?: string;
	readonly isSwitch?: true;
	/** Values under which the setting asks for nothing, so nothing needs saying. */
	readonly silentFor?: readonly string[];
	/** Why it has no effect, and what to do instead. */
	readonly reason: string;
}

export const inertSettings: readonly InertSetting[] = [
	{
		env: 'LIBVIRT_DIR_NAME',
		flag: 'data-dir',
		reason: 'volumes are found through the storage pool (LIBVIRT_POOL), which knows its own directory',
	},
	{env: 'LIBVIRT_EFI_FIRMWARE', flag: 'firmware', reason: 's390x has no EFI firmware'},
	{env: 'PAUSE_IMAGE', flag: 'pause-image', reason: 'the pod VM image brings its own pause container'},
	{
		env: 'RUNTIMECLASS_NAME',
		silentFor: ['kata-remote'],
		reason: 'the startup probe tells of this daemon, not of the pods that it runs',
	},
	{env: 'PEER_PODS_DIR', reason: 'an old name: set PODS_DIR'},
	{
		env: 'SECURE_COMMS',
		flag: 'secure-comms',
		isSwitch: true,
		silentFor: ['false'],
		reason: "not supported: the agent's traffic goes over mutual TLS",
	},
];
