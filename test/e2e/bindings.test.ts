/**
 * Many VMs get their addresses at once, from two daemons, while others start and stop: the rules of each port must be
 * those that a VM gets which is bound alone. libvirtd, its network filter driver and ebtables are real; the VMs are
 * real too, but paused, so that they cost nothing.
 */
import test from 'ava';
import {once} from 'node:events';
import {writeFile} from 'node:fs/promises';
import {text} from 'node:stream/consumers';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {interfaceXml, type InterfaceSpec} from '../../src/podvm/domain-xml.ts';
import {defineFilter, readNetworkProtection} from '../../src/podvm/network-protection.ts';
import {bootFilterOf, ownFilterName} from '../../src/podvm/network-filter.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import {names, paths} from '../lab/topology.ts';

const {signal} = new AbortController();
const boundFilter = ownFilterName({phase: 'bound', knowsDhcpServer: true});
const affectLive = 1;

class PausedVm {
	readonly name: string;
	readonly mac: string;
	readonly address: string;
	readonly #lab: Lab;
	readonly #protection: InterfaceSpec['protection'];

	constructor(lab: Lab, protection: InterfaceSpec['protection'], number: number) {
		this.name = `vm${number}`;
		this.mac = `52:54:00:00:01:${number.toString(16).padStart(2, '0')}`;
		this.address = `192.168.122.${100 + number}`;
		this.#lab = lab;
		this.#protection = protection;
	}

	/** With the filter that knows no address. */
	async start(): Promise<void> {
		const booting = this.#interfaceXml()
			.replace(`filter="${boundFilter}"`, `filter="${bootFilterOf(boundFilter)}"`)
			.replace(/<parameter name="IP" [^>]*>/, '');
		const path = `/run/${this.name}.xml`;
		await writeFile(
			this.#lab.outside(path),
			`<domain type='qemu'><name>${this.name}</name><memory unit='MiB'>64</memory><os><type arch='s390x'>hvm</type></os><devices>${booting}<memballoon model='none'/></devices></domain>`,
		);
		await this.#lab.virsh('create', '--paused', path);
	}

	async bind(session: LibvirtSession): Promise<void> {
		const {dom} = await session.call(procedures.domainLookupByName, {name: this.name}, signal);
		await session.call(
			procedures.domainUpdateDeviceFlags,
			{dom, xml: this.#interfaceXml(), flags: affectLive},
			signal,
		);
	}

	async stop(): Promise<void> {
		await this.#lab.virsh('destroy', this.name);
	}

	/** Every rule that has to do with its port, with what is its own replaced. */
	async rules(): Promise<string> {
		const [port = ''] = (await this.#lab.virsh('domiflist', this.name)).trim().split(/\s+/);
		const ofPort = new RegExp(String.raw`\b${port}\b`, 'g');
		const shown = await onHost(this.#lab, 'ebtables -t nat -L; iptables-save; ip6tables-save');
		const chains = shown.split(/^(?=Bridge chain: )/m).map(chain => chain.split('\n').filter(line => line !== ''));
		return chains
			.flatMap(([title = '', ...rules]) =>
				title.search(ofPort) === -1 ? rules.filter(rule => rule.search(ofPort) !== -1) : [title, ...rules],
			)
			.join('\n')
			.replaceAll(ofPort, 'PORT')
			.replaceAll(this.mac, 'MAC')
			.replaceAll(`${this.address} `, 'ADDRESS ');
	}

	#interfaceXml(): string {
		return interfaceXml({mac: this.mac, network: names.network, protection: this.#protection}, this.address);
	}
}

async function onHost(lab: Lab, script: string): Promise<string> {
	const child = lab.hostRun(['sh', '-euc', script], {stdio: ['ignore', 'pipe', 'inherit']});
	const [stdout] = await Promise.all([child.stdout === null ? '' : text(child.stdout), once(child, 'close')]);
	return stdout;
}

test('VMs bound at once by two daemons get the rules of one bound alone, whatever starts and stops', async t => {
	t.timeout(600_000);
	await using stack = new AsyncDisposableStack();
	const lab = stack.use(await startLab({signal}));
	const uri = `qemu:///system?socket=${lab.outside(paths.libvirtSocket)}`;
	const newSession = (): LibvirtSession =>
		stack.use(
			new LibvirtSession({
				uri: 'qemu:///system',
				openPipe: openUnixPipe({...parseLibvirtUri(uri), transport: 'unix'}, {}),
				reconnectMs: {first: 10, longest: 100},
				connectTimeoutMs: 600_000,
				callTimeoutMs: 600_000,
			}),
		);
	const sessions = [newSession(), newSession()] as const;
	const protection = await defineFilter(
		sessions[0],
		await readNetworkProtection(
			sessions[0],
			{network: names.network, netFilter: 'auto', netIsolation: 'auto'},
			signal,
		),
		signal,
	);
	t.like(protection, {filter: {name: boundFilter, missing: []}});
	const vm = (number: number): PausedVm => new PausedVm(lab, protection, number);

	const alone = vm(0);
	await alone.start();
	await alone.bind(sessions[0]);
	const expected = await alone.rules();
	t.regex(expected, /-i PORT -j libvirt-I-PORT/);
	t.regex(expected, /--ip-src ADDRESS -j ACCEPT/);

	const together = [1, 2, 3, 4].map(vm);
	await Promise.all(together.map(async each => each.start()));
	await Promise.all([
		...together.map(async (each, index) => each.bind(index % 2 === 0 ? sessions[0] : sessions[1])),
		alone.stop(),
		(async () => {
			const passing = vm(5);
			await passing.start();
			await passing.stop();
		})(),
	]);
	for (const each of together) {
		t.is(await each.rules(), expected, each.name);
	}

	await Promise.all(together.map(async each => each.stop()));
	t.notRegex(await onHost(lab, 'ebtables -t nat -L; iptables-save; ip6tables-save'), /vnet/);
});
