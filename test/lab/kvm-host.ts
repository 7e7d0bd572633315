/**
 * The KVM host: real sshd, virtlogd and libvirtd with a network and a storage pool of libvirt, in the namespaces of the
 * lab. Differences to a production host: no systemd, cgroups or security driver; s390x is emulated (TCG); the network
 * has no spanning tree (it would delay every VM by 2.7 s) and no packet filter.
 */
import {once} from 'node:events';
import {copyFile, mkdir, symlink, writeFile} from 'node:fs/promises';
import {connect} from 'node:net';
import {dirname} from 'node:path';
import {abortable, pause, Scope} from '../../src/core/lifetime.ts';
import type {Namespaces} from './namespaces.ts';
import {Service} from './service.ts';
import {names, paths, subnet} from './topology.ts';

/** libvirt, qemu.conf. */
const qemuConf = `
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
cgroup_controllers = []
namespaces = []
seccomp_sandbox = 0
`;

const network = `
<network>
	<name>${names.network}</name>
	<forward mode='open'/>
	<bridge name='${names.bridge}' stp='off' delay='0'/>
	<ip address='${subnet.host}' prefix='${subnet.prefixLength}'>
		<dhcp><range start='${subnet.firstLease}' end='${subnet.lastLease}'/></dhcp>
	</ip>
</network>
`;

const pool = `<pool type='dir'><name>${names.pool}</name><target><path>${names.images}</path></target></pool>`;

const sshdConfig = `
HostKey ${paths.hostKey}
AuthorizedKeysFile ${paths.key}.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
PidFile none
`;

/** The servers, so that tests can read their output or kill them. They end with the lab. */
export interface KvmHost {
	readonly sshd: Service;
	readonly virtlogd: Service;
	readonly libvirtd: Service;
}

/**
 * Records the consoles of guests: the console of a pod VM is a pty without a reader. QEMU drops output of a pty until
 * it is opened, and checks that once a second, so the first second of a guest may be missing. libvirt waits for all
 * processes that hold the output of the hook (libvirt, docs/hooks).
 */
const hook = `#!/bin/sh
[ "$2" = started ] || exit 0
tty=$(sed -n "s|.*<console type='pty' tty='\\([^']*\\)'.*|\\1|p" | head -n 1)
[ -z "$tty" ] || setsid cat "$tty" >${paths.consoleLogs}/"$1".log 2>/dev/null </dev/null &
`;

/**
 * Resolves when libvirt answers, with network and pool active.
 * @param image a qcow2 file of this machine that becomes the base volume
 */
export async function startKvmHost(
	namespaces: Namespaces,
	image: string | undefined,
	signal: AbortSignal,
): Promise<KvmHost> {
	await Promise.all([
		writeFiles(namespaces),
		createKeys(namespaces, signal),
		image === undefined ? undefined : copyFile(image, namespaces.outside(`${names.images}/${names.baseVolume}`)),
	]);
	const start = (...argv: readonly [string, ...string[]]): Service =>
		new Service(argv[0], namespaces.run('kvmhost', argv, {stdio: ['ignore', 'ignore', 'pipe']}));
	const sshd = start('/usr/sbin/sshd', '-D', '-e', '-f', paths.sshdConfig);
	const virtlogd = start('/usr/sbin/virtlogd');
	const libvirtd = start('/usr/sbin/libvirtd');
	using scope = new Scope(signal).deadline(300_000, 'sshd and libvirtd');
	await Promise.all([sshd.line(/^Server listening/, scope.signal), listening(namespaces, libvirtd, scope.signal)]);
	// Network and pool are started before the first connection is served. The query makes libvirtd read the
	// capabilities now.
	await virsh(namespaces, [`net-info ${names.network}; pool-info ${names.pool}; capabilities`], scope.signal);
	return {sshd, virtlogd, libvirtd};
}

/** Runs virsh on the KVM host. */
export async function virsh(namespaces: Namespaces, args: readonly string[], signal: AbortSignal): Promise<string> {
	return namespaces.exec('kvmhost', ['virsh', '--quiet', '-c', 'qemu:///system', ...args], signal);
}

async function writeFiles(namespaces: Namespaces): Promise<void> {
	const write = async (path: string, content: string, mode = 0o644): Promise<void> => {
		await mkdir(namespaces.outside(dirname(path)), {recursive: true});
		await writeFile(namespaces.outside(path), content, {mode});
	};
	const autostarted = async (directory: string, name: string, xml: string): Promise<void> => {
		await write(`${directory}/${name}.xml`, xml);
		await mkdir(namespaces.outside(`${directory}/autostart`));
		await symlink(`../${name}.xml`, namespaces.outside(`${directory}/autostart/${name}.xml`));
	};
	await Promise.all([
		mkdir(namespaces.outside(paths.consoleLogs), {recursive: true}),
		write('/etc/libvirt/qemu.conf', qemuConf),
		write('/etc/libvirt/hooks/qemu', hook, 0o755),
		write(paths.sshdConfig, sshdConfig),
		autostarted('/etc/libvirt/qemu/networks', names.network, network),
		autostarted('/etc/libvirt/storage', names.pool, pool),
	]);
}

async function createKeys(namespaces: Namespaces, signal: AbortSignal): Promise<void> {
	await namespaces.exec(
		'kvmhost',
		[
			'sh',
			'-euc',
			`
		mkdir -m 700 ${dirname(paths.key)}
		ssh-keygen -q -t ed25519 -N '' -C kvmhost -f ${paths.hostKey}
		ssh-keygen -q -t ed25519 -N '' -C worker -f ${paths.key}
		echo "${subnet.host} $(cat ${paths.hostKey}.pub)" >${paths.knownHosts}
	`,
		],
		signal,
	);
}

/** Polls, because libvirtd gives no signal when it is ready. */
async function listening(namespaces: Namespaces, libvirtd: Service, signal: AbortSignal): Promise<void> {
	using scope = new Scope(signal);
	libvirtd.endedTooSoon().catch((error: unknown) => scope.abort(error));
	for (;;) {
		const socket = connect(namespaces.outside(paths.libvirtSocket));
		try {
			await abortable(once(socket, 'connect'), scope.signal);
			return;
		} catch {
			await pause(10, scope.signal);
		} finally {
			socket.destroy();
		}
	}
}
