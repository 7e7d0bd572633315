/**
 * The addresses and names in the lab: one subnet for the KVM host, the worker and the pod VMs, as the product requires;
 * other subnets for pods.
 */

export const subnet = {
	host: '192.168.122.1',
	worker: '192.168.122.10',
	prefixLength: 24,
	/** The range from which dnsmasq of libvirt assigns addresses to pod VMs. */
	firstLease: '192.168.122.100',
	lastLease: '192.168.122.254',
} as const;

/**
 * How CNI plugins configure a pod:
 * - bridge: a bridge on the worker; the pod is in a subnet with it and with the other pods
 * - calico: a single address; no device has the address of the gateway, which is declared on-link and has a permanent
 *   neighbour entry
 * - ptp: a subnet in which the pod reaches all addresses except the gateway through the gateway
 */
export const podShapes = ['bridge', 'calico', 'ptp'] as const;
export type PodShape = (typeof podShapes)[number];

export const podSubnets = {
	bridge: {prefix: '10.244.0', prefixLength: 24, gateway: '10.244.0.1', bridge: 'cni0'},
	calico: {prefix: '10.1.2', prefixLength: 32, gateway: '169.254.1.1', gatewayMac: 'ee:ee:ee:ee:ee:ee'},
	ptp: {prefix: '10.22.0', prefixLength: 24, gateway: '10.22.0.1'},
} as const;

/** Names of libvirt objects. They are the defaults of the adaptor, so that the lab works with default settings. */
export const names = {
	bridge: 'virbr0',
	network: 'default',
	pool: 'default',
	baseVolume: 'podvm-base.qcow2',
	images: '/var/lib/libvirt/images',
} as const;

/** Paths in the lab. */
export const paths = {
	home: '/run/lab/home',
	key: '/run/lab/home/.ssh/id_ed25519',
	knownHosts: '/run/lab/home/.ssh/known_hosts',
	hostKey: '/run/lab/host_key',
	sshdConfig: '/run/lab/sshd_config',
	libvirtSocket: '/run/libvirt/libvirt-sock',
	consoleLogs: '/var/log/libvirt/console',
	/** The directory of the adaptor on a worker. */
	peerpod: '/run/peerpod',
} as const;
