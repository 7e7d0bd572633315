/**
 * A hostile VM beside others on the KVM host's bridge: it takes its neighbour's address by ARP, its MAC, sends in its
 * name, and serves DHCP. Real guests, libvirtd with its network filter driver, ebtables. First without protection, to
 * show that the attacks work here; then with it. What gets past the ports of the VMs is counted on the bridge, after
 * libvirt's own rules.
 */
import test, {type ExecutionContext} from 'ava';
import {once} from 'node:events';
import {text} from 'node:stream/consumers';
import {pause} from '../../src/core/lifetime.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {tellAfterFailure} from '../lab/aftermath.ts';
import {AgentClient, runCommand} from '../lab/agent-client.ts';
import {get} from '../lab/clients.ts';
import {hypervisorSocket, startDaemon} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {settledInventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';
import {subnet} from '../lab/topology.ts';
import type {PodNamespace} from '../lab/worker.ts';

const stack = new AsyncDisposableStack();
const {signal} = new AbortController();
let lab: Lab;
let shim: Shim;
let daemon: Service | undefined;
let namespaces: Readonly<Record<'victim' | 'attacker' | 'newcomer' | 'neighbour', PodNamespace>>;

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
	shim = new Shim(lab.outside(hypervisorSocket));
	const [victim, attacker, newcomer, neighbour] = (await Promise.all(
		['victim', 'attacker', 'newcomer', 'neighbour'].map(async name => lab.podNamespace(name)),
	)) as [PodNamespace, PodNamespace, PodNamespace, PodNamespace];
	namespaces = {victim, attacker, newcomer, neighbour};
});

test.after.always(async () => {
	await daemon?.stop();
	await stack.disposeAsync();
});

test.afterEach.always('what the daemon and the guests said, when a test has failed', async t =>
	daemon === undefined ? undefined : tellAfterFailure(t, daemon, lab),
);

async function onHost(script: string): Promise<string> {
	const child = lab.hostRun(['sh', '-euc', script], {stdio: ['ignore', 'pipe', 'inherit']});
	if (child.stdout === null) {
		throw new TypeError('stdout is a pipe');
	}

	const [stdout, [code]] = await Promise.all([text(child.stdout), once(child, 'close') as Promise<[number | null]>]);
	if (code !== 0) {
		throw new Error(`${script} ended with ${String(code)}`);
	}

	return stdout;
}

async function onWorker(...argv: readonly string[]): Promise<string> {
	const child = lab.workerRun(argv, {stdio: ['ignore', 'pipe', 'inherit']});
	const [stdout] = await Promise.all([child.stdout === null ? '' : text(child.stdout), once(child, 'close')]);
	return stdout;
}

interface Vm {
	readonly id: string;
	readonly name: string;
	readonly agent: AgentClient;
	/** On the KVM host's network. */
	readonly address: string;
	readonly mac: string;
	/** The port of the bridge. */
	readonly port: string;
}

async function startVm(name: 'victim' | 'attacker'): Promise<Vm> {
	const id = newSandboxId();
	const agentSocket = await shim.createVm(
		{id, annotations: podAnnotations(name, 'e2e'), networkNamespacePath: namespaces[name].netnsPath},
		signal,
	);
	await shim.startVm(id, signal);
	const agent = new AgentClient(await connect(lab.outside(agentSocket), signal));
	await agent.call('AgentService/CreateSandbox', {sandbox_id: id, hostname: name}, signal);
	await agent.call(
		'AgentService/CreateContainer',
		{container_id: 'web', OCI: {Process: {Args: ['/init', 'serve', '80']}}},
		signal,
	);
	await agent.call('AgentService/StartContainer', {container_id: 'web'}, signal);
	await agent.call('AgentService/ReadStdout', {container_id: 'web', len: 100}, signal); // its first word: it serves
	const domain = `podvm-${name}-${id.slice(0, 8)}`;
	const [port = '', , , , mac = ''] = (await lab.virsh('domiflist', domain)).trim().split(/\s+/);
	return {id, name: domain, agent, mac, port, address: await addressOf(domain)};
}

/** What the guest itself says. */
async function addressOf(domain: string): Promise<string> {
	for (;;) {
		const address = /eth0 has ([\d.]+)\//.exec((await lab.consoles()).get(domain) ?? '')?.[1];
		if (address !== undefined) {
			return address;
		}

		await pause(100, signal); // a console is a file, which tells nobody that it grows
	}
}

/** In the VM's own network namespace, as a hostile image could: not in the pod's. */
async function asVm(t: ExecutionContext, {agent}: Vm, script: string): Promise<void> {
	const {exitCode, stderr} = await runCommand(
		agent,
		'web',
		['busybox', 'nsenter', '--net=/proc/1/ns/net', 'busybox', 'sh', '-c', script],
		signal,
	);
	t.is(exitCode, 0, `${script}: ${stderr}`);
}

/** Counts what of the attacker's gets past its port, and what of a DHCP server's gets out to ports of VMs. */
async function watch(attacker: Vm, victim: Vm): Promise<void> {
	await onHost(`nft -f - <<-END
		table bridge watch {
			chain arrived {
				type filter hook prerouting priority 0;
				iifname ${attacker.port} ether type arp arp saddr ip ${victim.address} counter comment "forgedArp"
				iifname ${attacker.port} ether saddr ${victim.mac} counter comment "forgedMac"
				iifname ${attacker.port} ip saddr ${victim.address} counter comment "forgedIp"
				iifname ${attacker.port} udp dport 68 counter comment "dhcpAnswers"
				iifname ${attacker.port} ether type ip6 counter comment "ipv6"
			}
			chain between {
				type filter hook forward priority 0;
				iifname ${attacker.port} oifname ${victim.port} ether type != arp counter comment "toNeighbour"
			}
		}
	END`);
}

async function counted(): Promise<Readonly<Record<string, number>>> {
	const rules = await onHost('nft list table bridge watch; nft delete table bridge watch');
	return Object.fromEntries(
		[...rules.matchAll(/counter packets (\d+) bytes \d+ comment "(\w+)"/g)].map(
			([, packets, what = '']) => [what, Number(packets)] as const,
		),
	);
}

/** Every attack, one after the other; the VMs are gone afterwards. */
async function attack(
	t: ExecutionContext,
	env: Readonly<Record<string, string>>,
): Promise<{
	/** Of the victim's address on the worker, after the take-over. */
	readonly neighbourOnWorker: string;
	readonly victim: Vm;
	readonly attacker: Vm;
	/** What the DHCP client in the attacker said when it asked in the victim's name. */
	readonly leased: string;
	readonly page: string;
	readonly counts: Readonly<Record<string, number>>;
	readonly newcomersAddress: string;
	readonly log: readonly string[];
}> {
	daemon = await startDaemon(lab, {...env, START_TIMEOUT: '600s', PROXY_TIMEOUT: '600s'}, signal);
	const [victim, attacker] = await Promise.all([startVm('victim'), startVm('attacker')]);
	const page = `http://${namespaces.victim.podIp}/`;
	t.regex(await get(namespaces.neighbour, page, signal), /this is podvm-victim/);
	await watch(attacker, victim);

	// The server gives a lease to whoever names the client of it.
	const {stdout, stderr} = await runCommand(
		attacker.agent,
		'web',
		[
			'busybox',
			'nsenter',
			'--net=/proc/1/ns/net',
			'busybox',
			'udhcpc',
			'-i',
			'eth0',
			'-f',
			'-n',
			'-q',
			'-s',
			'/bin/true',
			'-C',
			'-x',
			`0x3d:01${victim.mac.replaceAll(':', '')}`,
		],
		signal,
	);

	// In the victim's name: packets, a UDP datagram to it, IPv6.
	await asVm(
		t,
		attacker,
		`
		ip address add ${victim.address}/32 dev eth0
		busybox ping -c 1 -W 1 -I ${victim.address} ${subnet.worker} || :
		echo x | busybox nc -u -w 1 ${victim.address} 15150
		echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 || :
		ip link set eth0 up
		busybox arping -A -c 2 -I eth0 -s ${victim.address} ${victim.address} || :
		busybox arping -U -c 2 -I eth0 -s ${victim.address} ${victim.address} || :
	`,
	);
	const neighbourOnWorker =
		/lladdr ([\da-f:]+)/.exec(await onWorker('ip', 'neigh', 'show', victim.address))?.[1] ?? '';
	const after = await get(namespaces.neighbour, page, AbortSignal.timeout(20_000)).catch(() => 'nothing');
	await asVm(
		t,
		attacker,
		`
		ip address del ${victim.address}/32 dev eth0
		own=$(cat /sys/class/net/eth0/address)
		ip link set eth0 address ${victim.mac}
		busybox arping -U -c 2 -I eth0 -s ${attacker.address} ${attacker.address} || :
		ip link set eth0 address $own
	`,
	);

	// A DHCP server, which is quicker than the network's own: that one looks first whether an address that it never
	// gave is free.
	await asVm(
		t,
		attacker,
		`
		printf 'start ${rogue}50\\nend ${rogue}60\\ninterface eth0\\nlease_file /tmp/leases\\npidfile /tmp/pid\\noption router %s\\noption subnet 255.255.255.0\\n' ${attacker.address} >/tmp/udhcpd.conf
		: >/tmp/leases
		busybox udhcpd -a 1 /tmp/udhcpd.conf
	`,
	);
	const id = newSandboxId();
	await shim.createVm(
		{id, annotations: podAnnotations('newcomer', 'e2e'), networkNamespacePath: namespaces.newcomer.netnsPath},
		signal,
	);
	const starting = shim.startVm(id, signal).catch((error: unknown) => error);
	const newcomersAddress = await addressOf(`podvm-newcomer-${id.slice(0, 8)}`);
	const counts = await counted();
	await Promise.all([id, victim.id, attacker.id].map(async each => shim.stopVm(each, signal)));
	await starting;
	const log = daemon.tail;
	await daemon.stop();
	return {neighbourOnWorker, victim, attacker, leased: stdout + stderr, page: after, counts, newcomersAddress, log};
}

const rogue = '192.168.122.';

test.serial("without protection a VM takes its neighbour's address and gives out leases", async t => {
	t.timeout(900_000);
	const {neighbourOnWorker, attacker, counts, newcomersAddress} = await attack(t, {
		LIBVIRT_NET_FILTER: 'off',
		LIBVIRT_NET_ISOLATION: 'off',
	});
	t.is(neighbourOnWorker, attacker.mac);
	for (const what of ['forgedArp', 'forgedMac', 'forgedIp', 'dhcpAnswers', 'toNeighbour']) {
		t.true((counts[what] ?? 0) > 0, `${what}: ${JSON.stringify(counts)}`);
	}

	t.regex(newcomersAddress, /^192\.168\.122\.(?:5\d|60)$/);
});

test.serial('with the protection, none of these attacks works, but traffic and DHCP do', async t => {
	t.timeout(900_000);
	const {neighbourOnWorker, victim, leased, page, counts, newcomersAddress, log} = await attack(t, {});
	t.true(leased.includes(`lease of ${victim.address} obtained`), leased);
	t.is(neighbourOnWorker, victim.mac);
	t.regex(page, /this is podvm-victim/);
	t.deepEqual(counts, {forgedArp: 0, forgedMac: 0, forgedIp: 0, dhcpAnswers: 0, ipv6: 0, toNeighbour: 0});
	t.regex(newcomersAddress, /^192\.168\.122\.(?:1\d\d|2\d\d)$/);
	t.log(log.filter(line => /"timings"/.test(line)).join('\n'));
	t.true(
		log.some(line => /"netFilter":"caa-podvm-dhcp-1","isolatedPort":true.*"msg":"domain started"/.test(line)),
		log.join('\n'),
	);
});

test.serial('the next VM with a UUID and MAC may get another address than the one before', async t => {
	t.timeout(900_000);
	daemon = await startDaemon(lab, {START_TIMEOUT: '600s', PROXY_TIMEOUT: '600s'}, signal);
	const first = await startVm('victim');
	await shim.stopVm(first.id, signal);
	await lab.virsh(
		'net-update',
		'default',
		'add',
		'ip-dhcp-host',
		`<host mac='${first.mac}' ip='${rogue}77'/>`,
		'--live',
	);
	// Twice: libvirtd remembers leases, unless it has none to learn.
	for (const _ of [1, 2]) {
		const next = await startVm('victim');
		t.deepEqual({mac: next.mac, address: next.address}, {mac: first.mac, address: `${rogue}77`});
		t.regex(await get(namespaces.neighbour, `http://${namespaces.victim.podIp}/`, signal), /this is podvm-victim/);
		await shim.stopVm(next.id, signal);
	}

	await daemon.stop();
});

test.serial('if the host cannot apply the filter, the start fails with a workaround, and nothing is left', async t => {
	t.timeout(900_000);
	daemon = await startDaemon(lab, {}, signal);
	const before = await lab.inventory();
	await onHost('mount --bind /dev/null "$(readlink -f /usr/sbin/ebtables)"');
	const id = newSandboxId();
	await shim.createVm(
		{id, annotations: podAnnotations('victim', 'e2e'), networkNamespacePath: namespaces.victim.netnsPath},
		signal,
	);
	await t.throwsAsync(shim.startVm(id, signal), {
		message: /could not apply the network filter.*ebtables.*LIBVIRT_NET_FILTER=off/s,
	});
	await shim.stopVm(id, signal);
	await onHost('umount "$(readlink -f /usr/sbin/ebtables)"');
	t.deepEqual(await settledInventory(before, lab, signal), before);
	await daemon.stop();
});
