/** Who is where in the lab: one subnet for the KVM host, the worker and the pod VMs, as the product requires; a second one for pods. */

export const subnet = {
	host: '192.168.122.1',
	worker: '192.168.122.10',
	prefixLength: 24,
	/** What libvirt's dnsmasq gives to pod VMs. */
	firstLease: '192.168.122.100',
	lastLease: '192.168.122.254',
} as const;

/** The lab's stand-in for a CNI: a bridge on the worker. */
export const podSubnet = {
	bridge: 'cni0',
	gateway: '10.244.0.1',
	prefixLength: 24,
	/** @param index from 2 */
	address: (index: number): string => `10.244.0.${index}`,
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
