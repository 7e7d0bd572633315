/**
 * The tables of settings. The environment variables, the command line flags, the help text and docs/configuration.md
 * all come from them. `settings` belongs to the daemon; other commands have their own tables (see cli/commands.ts).
 * Names, flags and defaults are those of upstream (cloud-api-adaptor, cmd/cloud-api-adaptor/main.go and
 * cloud-providers/libvirt/manager.go), so that its manifests work. The description says which settings are not in
 * upstream.
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
	listenAddress,
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
	/** A second name of the variable, also used in documentation. */
	readonly alias?: string;
	/** The flag without its dash, if upstream has one. */
	readonly flag?: string;
	readonly section: Section;
	readonly type: ValueType<T>;
	/** The default as text. A setting with neither a default nor `defaultIs` is optional. */
	readonly default?: string;
	/** Describes a default that is only known at run time. */
	readonly defaultIs?: string;
	/** Full sentences for an operator, in Markdown without links. */
	readonly description: string;
	/** Shown in messages. If absent, the default is shown. */
	readonly example?: string;
}

/** The keys are the names of the values in the code. */
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
	'Metrics',
] as const;
export type Section = (typeof sections)[number];

/** A unix socket path has at most 107 bytes. The longest one is `<PODS_DIR>/<64 digits>/agent.ttrpc`. */
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
		description: 'The provider that runs pod VMs.',
	},
	libvirtUri: {
		env: 'LIBVIRT_URI',
		flag: 'uri',
		section: 'KVM host',
		type: libvirtUri,
		default: 'qemu+ssh://root@192.168.122.1/system?no_verify=1',
		description:
			'URI of the libvirt daemon that runs the pod VMs. It accepts the URI parameters of libvirt (`keyfile`, `known_hosts`, `no_verify`, …). ' +
			'The default does not verify the host key: leave `no_verify` out in production.',
	},
	pool: {
		env: 'LIBVIRT_POOL',
		flag: 'pool-name',
		section: 'KVM host',
		type: libvirtName,
		default: 'default',
		description: 'Storage pool for the base volume and the disks of pod VMs.',
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
			'libvirt network filter that prevents pod VMs from using the MAC and IP addresses of other VMs and from serving DHCP (not in upstream). ' +
			'`auto`: the adaptor defines a filter if the KVM host and the network support it; otherwise `check` and the log give the reason. ' +
			'A filter name: the filter is required, and no VM starts without it. `off`: no filter.',
	},
	netIsolation: {
		env: 'LIBVIRT_NET_ISOLATION',
		section: 'KVM host',
		type: oneOf('auto', 'on', 'off'),
		default: 'auto',
		description:
			'Isolated bridge ports: pod VMs on one KVM host can reach the worker nodes and the host, but not each other (not in upstream). `auto`: on if the network has a Linux bridge. ' +
			'`on`: no VM starts without isolation.',
	},
	baseVolume: {
		env: 'LIBVIRT_VOL_NAME',
		flag: 'vol-name',
		section: 'KVM host',
		type: libvirtName,
		default: 'podvm-base.qcow2',
		description:
			'Volume in the pool with the default pod VM image. It is a name, not a path. ' +
			'`image push` uploads each version as a new volume and points this name at the newest.',
	},
	allowedImages: {
		env: 'LIBVIRT_ALLOWED_IMAGES',
		section: 'KVM host',
		type: listOf(glob, 'names of volumes, with * for any characters and ? for one,'),
		example: 'podvm-*.qcow2,se-?.qcow2',
		description:
			'Volumes in the pool that pods may select as their image with the annotation `io.katacontainers.config.hypervisor.image` (not in upstream). ' +
			'`LIBVIRT_VOL_NAME` is always allowed. Not set: all volumes except the disks of pod VMs.',
	},
	launchSecurity: {
		env: 'LIBVIRT_LAUNCH_SECURITY',
		flag: 'launch-security',
		section: 'KVM host',
		type: oneOf('s390-pv'),
		example: 's390-pv',
		description:
			'Runs confidential VMs with IBM Secure Execution, like `DISABLECVM=false`. It is refused together with an explicit `DISABLECVM=true`, ' +
			'because pods would silently run unprotected. Not set: `s390-pv` if `DISABLECVM=false`.',
	},
	disableCvm: {
		env: 'DISABLECVM',
		flag: 'disable-cvm',
		section: 'KVM host',
		type: boolean,
		default: 'true',
		description:
			'`true`: pod VMs are not confidential. `false`: every pod VM is confidential, and none starts on a host without support. Not set: `false` if `LIBVIRT_LAUNCH_SECURITY` is set.',
	},
	clusterId: {
		env: 'CLUSTER_ID',
		section: 'KVM host',
		type: textLike('letters, digits and . _ - (at most 63)', /^[A-Za-z0-9._\-]{1,63}$/v),
		defaultIs: "the UID of the pod's service account",
		example: 'prod-east',
		description:
			'Identifies the cluster (not in upstream). Each VM carries it together with `NODE_NAME`. The daemon only lists, adopts and deletes VMs that carry both, so clusters can share ' +
			'a KVM host. It must differ between clusters and must not change while VMs run. Required outside Kubernetes, where it has no default.',
	},
	cloudConfigVerify: {
		env: 'CLOUD_CONFIG_VERIFY',
		flag: 'cloud-config-verify',
		section: 'KVM host',
		type: boolean,
		default: 'false',
		description:
			'`true`: the daemon starts only if none of the checks of `cloud-api-adaptor check` fails. `false`: the daemon runs the checks in the background and logs the findings.',
	},

	vcpus: {
		env: 'LIBVIRT_CPU',
		flag: 'cpu',
		section: 'Pod VM size',
		type: vcpus,
		default: '2',
		description: 'Virtual CPUs of a pod VM if the pod requests none.',
	},
	minVcpus: {
		env: 'LIBVIRT_MIN_CPU',
		section: 'Pod VM size',
		type: vcpus,
		default: '1',
		description: 'Minimum number of virtual CPUs of a pod VM (not in upstream).',
	},
	maxVcpus: {
		env: 'LIBVIRT_MAX_CPU',
		section: 'Pod VM size',
		type: vcpus,
		default: '32',
		description:
			'Maximum number of virtual CPUs of a pod VM (not in upstream). A pod that requests more gets the maximum and an event. Not set: the default, or `LIBVIRT_CPU` if that is larger.',
	},
	memoryMib: {
		env: 'LIBVIRT_MEMORY',
		flag: 'memory',
		section: 'Pod VM size',
		type: memory,
		default: '8192',
		description: 'Memory of a pod VM in MiB if the pod requests none.',
	},
	minMemoryMib: {
		env: 'LIBVIRT_MIN_MEMORY',
		section: 'Pod VM size',
		type: memory,
		default: '1024',
		description:
			'Minimum memory of a pod VM in MiB (not in upstream). A pod may request less than its VM needs to boot. ' +
			'Not set: the default, or `LIBVIRT_MEMORY` if that is smaller.',
	},
	maxMemoryMib: {
		env: 'LIBVIRT_MAX_MEMORY',
		section: 'Pod VM size',
		type: memory,
		default: '65536',
		description:
			'Maximum memory of a pod VM in MiB (not in upstream). A pod that requests more gets the maximum and an event. Not set: the default, or `LIBVIRT_MEMORY` if that is larger.',
	},
	swiotlbMib: {
		env: 'LIBVIRT_SWIOTLB_MEMORY',
		section: 'Pod VM size',
		type: integer(0, 65_536, 'MiB'),
		default: '512',
		description:
			'Extra memory of a confidential VM in MiB, not limited by `LIBVIRT_MAX_MEMORY` (not in upstream). The guest kernel reserves it for I/O. ' +
			'The default fits images with the kernel parameter `swiotlb=262144` (slabs of 2 KiB).',
	},
	cpuset: {
		env: 'LIBVIRT_CPUSET',
		flag: 'cpuset',
		section: 'Pod VM size',
		type: cpuset,
		example: '0-7,^3',
		description:
			'Pod VMs are pinned to these CPUs of the KVM host. A start is refused while one of them is missing or offline. Not set: all CPUs.',
	},
	rootDiskGib: {
		env: 'LIBVIRT_ROOT_DISK_SIZE',
		alias: 'ROOT_VOLUME_SIZE',
		flag: 'root-disk-size',
		section: 'Pod VM size',
		type: integer(1, 65_536, 'GiB'),
		default: '10',
		description:
			'Size of the root disk of a pod VM in GiB. If the base volume is larger, its size is used. `ROOT_VOLUME_SIZE` is an alias from the OpenShift documentation.',
	},

	initdata: {
		env: 'INITDATA',
		flag: 'initdata',
		section: 'Inside the pod VM',
		type: initdata,
		example: 'H4sIAAAAAAACA0vMSc8vyizJyLVVKs5INDI1U+IqSy0qzszPs1Uy0DPUM1Diik5JLEmMBQAK8Z+aKQAAAA==',
		description:
			'Default initdata for pods without the annotation `io.katacontainers.config.hypervisor.cc_init_data`: the output of `gzip -c initdata.toml | base64 -w0`, ' +
			'or the TOML document itself. It must not contain secrets.',
	},
	enableScratchSpace: {
		env: 'ENABLE_SCRATCH_SPACE',
		flag: 'enable-scratch-space',
		section: 'Inside the pod VM',
		type: boolean,
		default: 'false',
		description:
			'Pod VMs store container images in encrypted scratch space, if the pod VM image supports it. The scratch space uses the part of the root disk after the image: ' +
			'set `LIBVIRT_ROOT_DISK_SIZE` larger than the image.',
	},

	socketPath: {
		env: 'REMOTE_HYPERVISOR_ENDPOINT',
		flag: 'socket',
		section: 'Sockets and timeouts',
		type: absolutePath(maxSocketPathBytes),
		default: '/run/peerpod/hypervisor.sock',
		description: 'Unix socket of the kata remote hypervisor API.',
	},
	podsDir: {
		env: 'PODS_DIR',
		flag: 'pods-dir',
		section: 'Sockets and timeouts',
		type: absolutePath(maxSocketPathBytes - agentSocketSuffixBytes),
		default: '/run/peerpod/pods',
		description: 'Directory for sandbox records and agent sockets.',
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
			'Time limit from the start of a VM to the first answer of its forwarder. `START_TIMEOUT` also applies and is shorter by default.',
	},
	startTimeoutMs: {
		env: 'START_TIMEOUT',
		section: 'Sockets and timeouts',
		type: duration,
		default: '210s',
		description: 'Time limit of a StartVM call (not in upstream). The kubelet gives up after about four minutes.',
	},
	maxConcurrentStarts: {
		env: 'MAX_CONCURRENT_STARTS',
		section: 'Sockets and timeouts',
		type: integer(1, 1000),
		default: '10',
		description:
			'Maximum number of concurrent starts of pod VMs (not in upstream). A start counts until its VM answers or has run for 30 s. Further starts wait within their `START_TIMEOUT`; namespaces take turns.',
	},
	orphanGraceMs: {
		env: 'ORPHAN_GRACE',
		section: 'Sockets and timeouts',
		type: duration,
		default: '2m',
		description: 'A VM of this node without a known sandbox is removed after this time (not in upstream).',
	},
	probePort: {
		env: 'PROBE_PORT',
		section: 'Sockets and timeouts',
		type: port,
		example: '8000',
		description:
			'TCP port on 127.0.0.1 for `/startup` and `/healthz`. Not set: 8000 in a pod, otherwise none. If the port is in use, the daemon runs and retries.',
	},

	relayProcess: {
		env: 'RELAY_PROCESS',
		section: 'Sockets and timeouts',
		type: oneOf('auto', 'required', 'off'),
		default: 'auto',
		description:
			'Selects whether the relay process (`cloud-api-adaptor relay`) serves the sockets of the shims, so that pods survive a restart of the daemon (not in upstream). ' +
			'`auto`: the relay process serves them if it answers at `relay.sock` beside `REMOTE_HYPERVISOR_ENDPOINT` when the daemon starts. `required`: the daemon waits for it. `off`: the daemon serves the sockets itself.',
	},

	caCertFile: {
		env: 'CACERT_FILE',
		flag: 'ca-cert-file',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/ca.crt',
		description:
			'CA certificate for forwarders whose certificate is part of the pod VM image. Set all of `CACERT_FILE`, `CERT_FILE` and `CERT_KEY`, or none. ' +
			'With none, the adaptor issues a certificate for each VM.',
	},
	certFile: {
		env: 'CERT_FILE',
		flag: 'cert-file',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/client.crt',
		description: 'Client certificate to use with `CACERT_FILE`.',
	},
	certKeyFile: {
		env: 'CERT_KEY',
		flag: 'cert-key',
		section: 'TLS to the pod VM',
		type: absolutePath(),
		example: '/etc/certificates/client.key',
		description: 'Private key file of the client certificate.',
	},
	tlsSkipVerify: {
		env: 'TLS_SKIP_VERIFY',
		flag: 'tls-skip-verify',
		section: 'TLS to the pod VM',
		type: boolean,
		default: 'false',
		description: 'Accepts any certificate from a pod VM. For tests only.',
	},
	tlsMinVersion: {
		env: 'TLS_MIN_VERSION',
		flag: 'tls-min-version',
		section: 'TLS to the pod VM',
		type: tlsMinVersion,
		example: 'VersionTLS12',
		description:
			'Minimum TLS version between worker node and pod VM. A change applies to VMs that are created afterwards.',
	},
	tlsCipherSuites: {
		env: 'TLS_CIPHER_SUITES',
		flag: 'tls-cipher-suites',
		section: 'TLS to the pod VM',
		type: cipherSuites,
		example: 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256',
		description:
			'Cipher suites between worker node and pod VM. Not allowed with `TLS_MIN_VERSION=VersionTLS13`, whose suites are fixed.',
	},

	tunnelType: {
		env: 'TUNNEL_TYPE',
		flag: 'tunnel-type',
		section: 'Pod network',
		type: oneOf('vxlan'),
		default: 'vxlan',
		description: 'Type of the tunnel between the network namespace of a pod and its VM.',
	},
	vxlanPort: {
		env: 'VXLAN_PORT',
		flag: 'vxlan-port',
		section: 'Pod network',
		type: port,
		default: '4789',
		description:
			'UDP port of the tunnels. It must differ from the VXLAN port of the cluster network. The OpenShift samples use 9000.',
	},
	vxlanMinId: {
		env: 'VXLAN_MIN_ID',
		flag: 'vxlan-min-id',
		section: 'Pod network',
		type: integer(1, 16_777_215),
		default: '555000',
		description: 'Lowest VXLAN network identifier. Upstream has only the flag, not the variable.',
	},
	hostInterface: {
		env: 'HOST_INTERFACE',
		flag: 'host-interface',
		section: 'Pod network',
		type: interfaceName,
		example: 'enc1',
		description:
			'Interface of the worker node towards the pod VMs. Not set: the interface on the route to the subnet of `LIBVIRT_NET`. Upstream has only the flag, not the variable.',
	},
	externalNetworkViaPodVm: {
		env: 'EXTERNAL_NETWORK_VIA_PODVM',
		flag: 'ext-network-via-podvm',
		section: 'Pod network',
		type: boolean,
		default: 'false',
		description:
			'Asks for external traffic through the network of the pod VM instead of the tunnel. It has no effect with libvirt: the VM has one network interface, and its forwarder stays in the tunnel. `true` is passed on with a warning.',
	},
	podSubnetCidrs: {
		env: 'POD_SUBNET_CIDRS',
		flag: 'pod-subnet-cidrs',
		section: 'Pod network',
		type: listOf(ipv4Prefix, 'IPv4 prefixes'),
		example: '10.128.0.0/14,172.30.0.0/16',
		description:
			'Subnets of the cluster, whose traffic would stay in the tunnel with `EXTERNAL_NETWORK_VIA_PODVM`.',
	},

	nodeName: {
		env: 'NODE_NAME',
		section: 'Kubernetes',
		type: identifier,
		defaultIs: 'the host name',
		example: 'worker-0.example.com',
		description: 'Name of this node, from the downward API. Each VM carries it: see `CLUSTER_ID`.',
	},
	limitPerNode: {
		env: 'PEERPODS_LIMIT_PER_NODE',
		flag: 'peerpods-limit-per-node',
		section: 'Kubernetes',
		type: integer(-1, 100_000),
		example: '10',
		description:
			'Maximum number of pod VMs on this node. Further CreateVM calls are refused. In a cluster, it is advertised to the scheduler, and a limit in the ' +
			'PeerPodConfig of the operator takes precedence. Not set: 10 are advertised and no call is refused. Negative: no limit, nothing is advertised.',
	},
	enforceLimit: {
		env: 'ENFORCE_PEERPODS_LIMIT',
		section: 'Kubernetes',
		type: boolean,
		default: 'true',
		description: '`false`: only the scheduler applies `PEERPODS_LIMIT_PER_NODE` (not in upstream).',
	},
	podUid: {
		env: 'POD_UID',
		section: 'Kubernetes',
		type: identifier,
		example: '7d8e1f9c-3a52-4d0e-9b62-0c3f6c1f8d11',
		description:
			'UID of the pod of the adaptor, from the downward API. An annotation of the node names it as the owner of the advertised capacity.',
	},
	daemonSet: {
		env: 'DAEMONSET_NAME',
		section: 'Kubernetes',
		type: identifier,
		default: 'osc-caa-ds',
		description:
			'DaemonSet of the adaptor, in the namespace of its pod (not in upstream). If it is deleted, the daemon also removes the advertised capacity of the node when it stops.',
	},

	logLevel: {
		env: 'LOG_LEVEL',
		section: 'Logging',
		type: oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'),
		default: 'info',
		description: 'Minimum level of log lines (not in upstream).',
	},
	logFormat: {
		env: 'LOG_FORMAT',
		section: 'Logging',
		type: oneOf('json', 'pretty'),
		default: 'json',
		description: '`json`: one JSON object per line. `pretty`: readable lines (not in upstream).',
	},

	metricsAt: {
		env: 'METRICS_PORT',
		section: 'Metrics',
		type: listenAddress,
		example: '8003',
		description:
			'TCP port of the daemon for `GET /metrics`, for Prometheus (not in upstream). It is plain HTTP without authorisation: leave it on the loopback address, with a proxy in front of it. ' +
			'Not set: no metrics. If the port is in use, the daemon runs and retries.',
	},
} as const satisfies SettingsTable;

/** Settings of upstream that have no effect here. Manifests that set them still work; the daemon logs a warning. */
export interface InertSetting {
	readonly env: string;
	readonly flag?: string;
	readonly isSwitch?: true;
	/** Values that need no warning. */
	readonly silentFor?: readonly string[];
	/** Why the setting has no effect, and what to do instead. */
	readonly reason: string;
}

export const inertSettings: readonly InertSetting[] = [
	{
		env: 'LIBVIRT_DIR_NAME',
		flag: 'data-dir',
		reason: 'the storage pool (LIBVIRT_POOL) defines the directory of volumes',
	},
	{env: 'LIBVIRT_EFI_FIRMWARE', flag: 'firmware', reason: 's390x has no EFI firmware'},
	{env: 'PAUSE_IMAGE', flag: 'pause-image', reason: 'the pod VM image contains a pause container'},
	{
		env: 'RUNTIMECLASS_NAME',
		silentFor: ['kata-remote'],
		reason: 'the startup probe only depends on the daemon, not on its pods',
	},
	{env: 'PEER_PODS_DIR', reason: 'an old name: set PODS_DIR'},
	{
		env: 'SECURE_COMMS',
		flag: 'secure-comms',
		isSwitch: true,
		silentFor: ['false'],
		reason: 'not supported: agent traffic uses mutual TLS',
	},
];

/** The prefixes of our own variables: others with them are probably mistyped. */
export const ownPrefixes = ['LIBVIRT_', 'PEERPODS_', 'VXLAN_'] as const;

/**
 * Variables with such a prefix that are not settings of the daemon. `LIBVIRT_IMAGE_ID`: written to `peer-pods-cm`
 * beside `LIBVIRT_VOL_NAME`. The others belong to libvirt's own client (libvirt, docs/logging and docs/uri).
 */
export const foreignVariables: ReadonlySet<string> = new Set([
	'LIBVIRT_IMAGE_ID',
	'LIBVIRT_DEBUG',
	'LIBVIRT_LOG_FILTERS',
	'LIBVIRT_LOG_OUTPUTS',
	'LIBVIRT_DEFAULT_URI',
	'LIBVIRT_AUTH_FILE',
]);
