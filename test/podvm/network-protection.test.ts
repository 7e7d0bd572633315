// What is read of a network before a VM is defined, what a start does about it, and what it says. Whether a filter
// keeps anything out: test/e2e/impersonation.test.ts.
import {randomBytes} from 'node:crypto';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {LibvirtError, libvirtCode} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {SessionState} from '../../src/libvirt/session-options.ts';
import {child, children, readXml} from '../../src/libvirt/xml.ts';
import {ownFilterName, ownFilterXml} from '../../src/podvm/network-filter.ts';
import {
	causeOfFilterFailure,
	portAbilities,
	readNetworkProtection,
	type PortAbilities,
} from '../../src/podvm/network-protection.ts';
import type {PodVmsOptions} from '../../src/podvm/pod-vms.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';
import {
	domainsNaming,
	intercept,
	never,
	podVmsOn,
	startLibvirtHost,
	type InterceptedCalls,
	type LibvirtHost,
} from './libvirt-host.ts';
import {run} from './run.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

const dhcp =
	'<ip address="192.168.122.1" netmask="255.255.255.0"><dhcp><range start="192.168.122.2" end="192.168.122.9"/></dhcp></ip>';
const cases: ReadonlyArray<readonly [title: string, network: string, PortAbilities | RegExp]> = [
	['NAT', `<forward mode="nat"/><bridge name="virbr0"/>${dhcp}`, {dhcpServer: '192.168.122.1'}],
	['NAT by default', `<forward/><bridge name="virbr0"/>${dhcp}`, {dhcpServer: '192.168.122.1'}],
	[
		'a routed network without DHCP',
		'<forward mode="route"/><bridge name="virbr0"/><ip address="10.0.0.1" prefix="24"/>',
		{},
	],
	[
		'an isolated network',
		`<bridge name="virbr0"/><ip family="ipv6" address="fd00::1" prefix="64"><dhcp/></ip>${dhcp}`,
		{dhcpServer: '192.168.122.1'},
	],
	['a bridge of the host', '<forward mode="bridge"/><bridge name="br0"/>', {}],
	[
		'macvtap by an interface',
		'<forward mode="bridge"><interface dev="enc1"/></forward>',
		/macvtap \(forward mode "bridge"\)/,
	],
	['macvtap in private mode', '<forward mode="private" dev="enc1"/>', /macvtap \(forward mode "private"\)/],
	['passed-through functions', '<forward mode="hostdev"><pf dev="eth3"/></forward>', /hostdev/],
	[
		'Open vSwitch',
		'<forward mode="bridge"/><bridge name="ovs0"/><virtualport type="openvswitch"/>',
		/type openvswitch/,
	],
	[
		'Open vSwitch by the default port group',
		'<forward mode="bridge"/><bridge name="ovs0"/><portgroup name="a"/><portgroup name="b" default="yes"><virtualport type="openvswitch"/></portgroup>',
		/type openvswitch/,
	],
];
for (const [title, network, expected] of cases) {
	test(`${title}: it is known whether ports of such a network can be protected`, t => {
		const found = portAbilities(readXml(`<network><name>n</name>${network}</network>`));
		if (expected instanceof RegExp) {
			t.regex(found.unfit ?? '', expected);
		} else {
			t.deepEqual(found, expected);
		}
	});
}

test("all filters are valid under libvirt's schema, and the validator does refuse", async t => {
	const directory = await mkdtemp(join(tmpdir(), 'caat-nwfilter-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const validate = async (xml: string): Promise<unknown> => {
		const path = join(directory, 'filter.xml');
		await writeFile(path, xml);
		return run('virt-xml-validate', [path, 'nwfilter']);
	};
	const texts = (['boot', 'bound'] as const).flatMap(phase =>
		[true, false].map(knowsDhcpServer => ownFilterXml(ownFilterName({phase, knowsDhcpServer})) ?? ''),
	);
	for (const text of texts) {
		await validate(text);
	}

	await t.throwsAsync(validate((texts[0] ?? '').replace('drop', 'explode')), {message: /virt-xml-validate ended/});
	t.is(ownFilterXml('clean-traffic'), undefined);
	t.is(new Set(texts.map(text => child(readXml(text), 'uuid')?.text)).size, 4);
	// libvirt learns the address of a VM whose filter asks for it: docs/adr/0027-network-filter.md.
	t.deepEqual(
		texts.map(text => text.includes('$IP')),
		[false, false, true, true],
	);
});

const refusal = (code: number, message: string, domain = 0): LibvirtError =>
	new LibvirtError(
		{code, domain, message, level: 2, dom: null, str1: null, str2: null, str3: null, int1: 0, int2: 0, net: null},
		'any',
	);

interface Daemon {
	readonly calls: InterceptedCalls;
	readonly vms: PodVms;
	readonly log: ReturnType<typeof recordingLog>;
	readonly connected: () => void;
	/** The interface of a domain as libvirt has it. */
	readonly port: (name: string) => Promise<ReturnType<typeof readXml> | undefined>;
	readonly leftovers: () => Promise<readonly string[]>;
	/** The filters of the host, when it has a driver for them. */
	readonly filters: Map<string, string>;
	/** What interfaces of running domains were changed to. */
	readonly updates: readonly string[];
}

/** libvirt's test driver has no network filters: `hasFilters` plays a host that has. */
async function daemon({
	hasFilters,
	network,
	...more
}: Partial<PodVmsOptions> & {readonly hasFilters: boolean; readonly network?: string}): Promise<Daemon> {
	const [pool, calls, log, cluster] = [
		await host.pool(),
		intercept(host.calls),
		recordingLog(),
		randomBytes(6).toString('hex'),
	];
	const listeners: Array<(state: SessionState) => void> = [];
	const filters = new Map<string, string>();
	const updates: string[] = [];
	calls.onState = listener => {
		listeners.push(listener);
		return {[Symbol.dispose]: () => undefined};
	};

	calls.answer = (procedure, args): unknown => {
		if (network !== undefined && procedure === 'networkGetXmlDesc') {
			return {xml: network};
		}

		if (hasFilters && procedure === 'nwfilterLookupByName') {
			const {name} = args as {name: string};
			return filters.has(name)
				? {nwfilter: {name, uuid: Buffer.alloc(16)}}
				: Promise.reject(refusal(libvirtCode.noNwfilter, 'no such filter'));
		}

		if (hasFilters && procedure === 'domainUpdateDeviceFlags') {
			updates.push((args as {xml: string}).xml);
			return null;
		}

		if (hasFilters && procedure === 'nwfilterDefineXml') {
			const {xml} = args as {xml: string};
			const name = readXml(xml).attributes['name'] ?? '';
			filters.set(name, xml);
			return {nwfilter: {name, uuid: Buffer.alloc(16)}};
		}

		return undefined;
	};

	return {
		calls,
		log,
		filters,
		updates,
		vms: podVmsOn(calls, pool, {cluster, log, ...more}),
		connected: () =>
			listeners.forEach(listener =>
				listener({
					name: 'connected',
					server: {driver: 'QEMU', libvirtVersion: '9.0.0', hostname: 'host', transport: 'unix'},
				}),
			),
		port: async name => {
			const {dom} = await host.calls.call(procedures.domainLookupByName, {name}, never);
			return child(
				readXml((await host.calls.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never)).xml),
				'devices',
				'interface',
			);
		},
		leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
	};
}

async function refused(own: Daemon): Promise<AdaptorError> {
	own.calls.made.length = 0;
	const error: unknown = await own.vms.start(specOf(), never).then(
		() => undefined,
		(reason: unknown) => reason,
	);
	if (
		!(error instanceof AdaptorError) ||
		own.calls.made.some(name => /define|create|upload|delete/i.test(name)) ||
		(await own.leftovers()).length > 0
	) {
		throw new Error(`Not refused before any side effect: ${own.calls.made.join(' ')}`, {cause: error});
	}

	return error;
}

const started = ({log}: Daemon): unknown => log.lines.find(({message}) => message === 'domain started')?.fields;

/** The filter that a port refers to, with its parameters. */
const filterOf = (port: ReturnType<typeof readXml> | undefined): unknown => {
	const reference = child(port, 'filterref');
	return {
		filter: reference?.attributes['filter'],
		...Object.fromEntries(
			children(reference, 'parameter').map(
				({attributes}) => [attributes['name'] ?? '', attributes['value']] as const,
			),
		),
	};
};

test('a VM boots with our filter and an isolated port, and the log says so; the filters are defined once', async t => {
	const own = await daemon({hasFilters: true});
	const {name} = await own.vms.start(specOf(), never);
	await own.vms.start(specOf(), never);
	const port = await own.port(name);
	t.is(child(port, 'port')?.attributes['isolated'], 'yes');
	t.deepEqual(filterOf(port), {filter: 'caa-podvm-boot-dhcp-1', DHCPSERVER: '192.168.122.1'});
	t.like(started(own), {netFilter: 'caa-podvm-dhcp-1', isolatedPort: true, reason: undefined});
	t.deepEqual([...own.filters.keys()].sort(), ['caa-podvm-boot-dhcp-1', 'caa-podvm-dhcp-1']);
	t.is(own.calls.made.filter(call => call === 'nwfilterDefineXml').length, 2);
});

test('the address that a VM has proven becomes the only one that its filter allows, by one call', async t => {
	const own = await daemon({hasFilters: true});
	const vm = await own.vms.start(specOf(), never);
	own.calls.made.length = 0;
	await own.vms.bindAddress(vm, '192.168.122.7', never);
	t.deepEqual(own.calls.made, ['domainUpdateDeviceFlags']);
	const port = readXml(own.updates[0] ?? '');
	t.deepEqual(filterOf(port), {filter: 'caa-podvm-dhcp-1', IP: '192.168.122.7', DHCPSERVER: '192.168.122.1'});
	t.is(child(port, 'port')?.attributes['isolated'], 'yes');
	t.is(child(port, 'mac')?.attributes['address'], vm.mac);
});

test('if the host cannot bind the address, the error has a remedy; without a filter nothing is bound', async t => {
	const own = await daemon({hasFilters: true});
	const vm = await own.vms.start(specOf(), never);
	own.calls.before = async procedure =>
		procedure === 'domainUpdateDeviceFlags'
			? Promise.reject(refusal(libvirtCode.internalError, 'Failed to run ebtables', 33))
			: undefined;
	await t.throwsAsync(own.vms.bindAddress(vm, '192.168.122.7', never), {
		message: /could not apply the network filter: Failed to run ebtables.*LIBVIRT_NET_FILTER=off/,
	});
	const without = await daemon({hasFilters: false});
	const other = await without.vms.start(specOf(), never);
	without.calls.made.length = 0;
	await without.vms.bindAddress(other, '192.168.122.7', never);
	t.deepEqual(without.calls.made, []);
});

test('the protection is read once per connection, when it is opened; a start then makes at most 12 calls', async t => {
	const own = await daemon({hasFilters: true});
	own.connected();
	await own.vms.start(specOf(), never);
	own.calls.made.length = 0;
	await own.vms.bindAddress(await own.vms.start(specOf(), never), '192.168.122.7', never);
	t.log(own.calls.made.length);
	t.true(own.calls.made.length <= 12, own.calls.made.join(' '));
	t.deepEqual(
		own.calls.made.filter(call => /network|nwfilter|LibVersion/i.test(call)),
		[],
	);
	t.like(
		own.log.lines.find(({message}) => message === 'network protection of pod VMs'),
		{level: 'info', fields: {netFilter: 'caa-podvm-dhcp-1', isolatedPort: true}},
	);
	own.filters.clear();
	own.connected();
	await own.vms.start(specOf(), never);
	t.is(own.filters.size, 2, 'a new connection may be to a host that lost them');
});

test('a host without network filters starts VMs all the same, never silently', async t => {
	const own = await daemon({hasFilters: false});
	own.connected();
	const {name} = await own.vms.start(specOf(), never);
	const port = await own.port(name);
	t.is(child(port, 'filterref'), undefined);
	t.is(child(port, 'port')?.attributes['isolated'], 'yes');
	t.like(started(own), {netFilter: 'none', isolatedPort: true});
	t.regex(
		(started(own) as {reason: string}).reason,
		/^its libvirt does not support network filters \(.*not supported.*\)$/,
	);
	const warnings = own.log.lines.filter(({level, fields}) => level === 'warn' && fields.network !== undefined);
	t.deepEqual(
		warnings.map(({message}) => message),
		['no network filter: pod VMs can use the addresses of other pod VMs'],
		'once a connection',
	);
	t.regex(warnings[0]?.fields.remedy ?? '', /virtnwfilterd/);
});

test('on a macvtap network, a VM gets neither filter nor isolation, and the log has the reason', async t => {
	const own = await daemon({
		hasFilters: true,
		network: '<network><name>default</name><forward mode="bridge"><interface dev="enc1"/></forward></network>',
	});
	const {name} = await own.vms.start(specOf(), never);
	const port = await own.port(name);
	t.deepEqual([child(port, 'filterref'), child(port, 'port')], [undefined, undefined]);
	t.like(started(own), {netFilter: 'none', isolatedPort: false});
	t.regex((started(own) as {reason: string}).reason, /macvtap/);
	t.deepEqual([...own.filters.keys()], []);
});

test('if libvirt does not run the DHCP server, the filter accepts leases from any host except the VMs', async t => {
	const own = await daemon({
		hasFilters: true,
		network: '<network><name>default</name><forward mode="bridge"/><bridge name="br0"/></network>',
	});
	const {name} = await own.vms.start(specOf(), never);
	t.deepEqual(filterOf(await own.port(name)), {filter: 'caa-podvm-boot-1'});
});

test('a filter that is named is required: no VM starts without it, and with it one does', async t => {
	const own = await daemon({hasFilters: true, netFilter: 'clean-traffic'});
	const error = await refused(own);
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, /LIBVIRT_NET_FILTER requires: it has no network filter clean-traffic.*virsh nwfilter-list/);
	own.filters.set('clean-traffic', '');
	const vm = await own.vms.start(specOf(), never);
	t.deepEqual(filterOf(await own.port(vm.name)), {filter: 'clean-traffic', DHCPSERVER: '192.168.122.1'});
	await own.vms.bindAddress(vm, '192.168.122.7', never);
	t.deepEqual(filterOf(readXml(own.updates[0] ?? '')), {
		filter: 'clean-traffic',
		IP: '192.168.122.7',
		DHCPSERVER: '192.168.122.1',
	});
	t.regex(
		(await refused(await daemon({hasFilters: false, netFilter: 'caa-podvm-1'}))).message,
		/does not support network filters/,
	);
});

test('isolation that is required and impossible refuses every start', async t => {
	const own = await daemon({
		hasFilters: true,
		netIsolation: 'on',
		network: '<network><name>default</name><forward mode="vepa" dev="enc1"/></network>',
	});
	own.connected();
	t.regex((await refused(own)).message, /LIBVIRT_NET_ISOLATION requires: network default: .*macvtap/);
	t.true(own.log.lines.some(({level, message}) => level === 'error' && message.endsWith('no pod VM will start')));
});

test('a protection that is turned off is not requested, and the log names the setting', async t => {
	const own = await daemon({hasFilters: true, netFilter: 'off', netIsolation: 'off'});
	own.connected();
	const {name} = await own.vms.start(specOf(), never);
	const port = await own.port(name);
	t.deepEqual([child(port, 'filterref'), child(port, 'port')], [undefined, undefined]);
	t.like(started(own), {
		netFilter: 'none',
		isolatedPort: false,
		reason: 'LIBVIRT_NET_FILTER=off; LIBVIRT_NET_ISOLATION=off',
	});
	t.deepEqual(
		own.calls.made.filter(call => /network|nwfilter|LibVersion/i.test(call)),
		[],
	);
	t.deepEqual(
		own.log.lines.filter(({level, fields}) => level !== 'info' && fields.network !== undefined),
		[],
	);
});

test('a host that does not let us define the filter, or fails for now, is asked again at the next start', async t => {
	const own = await daemon({hasFilters: true});
	own.calls.before = async procedure =>
		procedure === 'nwfilterDefineXml'
			? Promise.reject(refusal(libvirtCode.accessDenied, 'access denied'))
			: undefined;
	await own.vms.start(specOf(), never);
	t.like(started(own), {
		netFilter: 'none',
		reason: 'the network filter caa-podvm-dhcp-1 could not be defined (access denied)',
	});
	own.calls.before = undefined;
	const {name} = await own.vms.start(specOf(), never);
	t.is(child(await own.port(name), 'filterref')?.attributes['filter'], 'caa-podvm-boot-dhcp-1');
});

test('a libvirt older than 6.1 is reported as not supporting isolated ports', async t => {
	const own = await daemon({hasFilters: true});
	const {answer} = own.calls;
	own.calls.answer = (procedure, args) =>
		procedure === 'connectGetLibVersion' ? {libVer: 6_000_000n} : answer?.(procedure, args);
	const {isolation} = await readNetworkProtection(
		own.calls,
		{network: 'default', netFilter: 'auto', netIsolation: 'auto'},
		never,
	);
	t.like(isolation, {absent: 'unavailable', reason: 'its libvirt is older than 6.1'});
});

test('a start that fails because of the filter has a workaround in its error; other errors are unchanged', t => {
	const failed = causeOfFilterFailure(
		refusal(libvirtCode.internalError, 'Failed to run ebtables', 59),
		'caa-podvm-1',
	);
	t.like(failed, {code: 'failed-precondition', where: {filter: 'caa-podvm-1'}});
	t.regex((failed as AdaptorError).message, /Failed to run ebtables.*LIBVIRT_NET_FILTER=off/);
	const other = refusal(libvirtCode.internalError, 'no', 10);
	t.is(causeOfFilterFailure(other, 'caa-podvm-1'), other);
});
