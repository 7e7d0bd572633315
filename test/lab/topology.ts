/**
 * Who is where in the lab: one subnet for the KVM host, the worker and the pod VMs, as the product requires; others for
 * pods.
 */

export const subnet = {
	host: '192.168.122.1',
	worker: '192.168.122.10',
	prefixLength: 24,
	/** What libvirt's dnsmasq gives to pod VMs. */
	firstLease: '192.168.122.100',
	lastLease: '192.168.122.254',
} as const;

/**
 * How CNI plugins leave a pod:
 * - bridge: a bridge on the worker, the pod in a subnet with it and with the other pods
 * - calico: an address alone; the gateway is nobody's address, on the link by decree, its MAC a permanent neighbour
 * - ptp: a subnet, of which the pod reaches all but the gateway by the gateway
 */
export const podShapes = ['bridge', 'calico', 'ptp'] as const;
export type PodShape = (typeof podShapes)[number];

export const podSubnets = {
	bridge: {prefix: '10.244.0', prefixLength: 24, gateway: '10.244.0.1', bridge: 'cni0'},
	calico: {prefix: '10.1.2', prefixLength: 32, gateway: '169.254.1.1', gatewayMac: 'ee:ee:ee:ee:ee:ee'},
	ptp: {prefix: '10.22.0', prefixLength: 24, gateway: '10.22.0.1'},
} as const;

/** As libvirt calls them; the names are the adaptor's defaults, so that the lab is used with default settings. */
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
	/** The adaptor's own directory on a worker. */
	peerpod: '/run/peerpod',
} as const;
