// What is asked of the host before a VM is made, how often, and what is refused. libvirt-host.ts says what is real
// here; the host's abilities are not.
import {randomBytes} from 'node:crypto';
import {copyFile, readFile} from 'node:fs/promises';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import type {SessionState} from '../../src/libvirt/session-options.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {child, children, readXml} from '../../src/libvirt/xml.ts';
import {HostCapabilities} from '../../src/podvm/host-capabilities.ts';
import {observeGuests, observeSecureExecution} from '../../src/podvm/host-probe.ts';
import type {PodVmsOptions} from '../../src/podvm/pod-vms.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';
import {
	baseVolume,
	domainsNaming,
	intercept,
	never,
	podVmsOn,
	startLibvirtHost,
	type InterceptedCalls,
	type LibvirtHost,
	type TestPool,
} from './libvirt-host.ts';

const fixture = async (name: string): Promise<string> =>
	readFile(new URL(`../fixtures/podvm/${name}.xml`, import.meta.url), 'utf8');
const [capabilities, emulating, protecting] = (await Promise.all(
	['capabilities-s390x-tcg', 'domain-capabilities-s390x-tcg', 'domain-capabilities-s390x-kvm'].map(fixture),
)) as [string, string, string];
const server = {driver: 'QEMU', libvirtVersion: '9.0.0', hostname: 'host', transport: 'unix'};

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Daemon {
	readonly calls: InterceptedCalls;
	readonly vms: PodVms;
	readonly pool: TestPool;
	readonly log: ReturnType<typeof recordingLog>;
	/** As a session does after each time that it connected. */
	readonly connected: () => void;
	/** The domain as libvirt has it. */
	readonly definition: (name: string) => Promise<ReturnType<typeof readXml>>;
	readonly leftovers: () => Promise<readonly string[]>;
	/** How often it was asked for. */
	readonly count: (procedure: string) => number;
}

/** @param abilities the host's, changed at will */
async function daemon(
	abilities: {domainCapabilities?: string; capabilities?: string},
	more: Partial<PodVmsOptions>,
): Promise<Daemon> {
	const [pool, calls, log, cluster] = [
		await host.pool(),
		intercept(host.calls),
		recordingLog(),
		randomBytes(6).toString('hex'),
	];
	const listeners: Array<(state: SessionState) => void> = [];
	calls.answer = name =>
		name === 'connectGetDomainCapabilities'
			? {capabilities: abilities.domainCapabilities ?? emulating}
			: name === 'connectGetCapabilities'
				? {capabilities: abilities.capabilities ?? capabilities}
				: undefined;
	calls.onState = listener => {
		listeners.push(listener);
		return {[Symbol.dispose]: () => undefined};
	};

	return {
		calls,
		pool,
		log,
		vms: podVmsOn(calls, pool, {cluster, log, ...more}),
		connected: () => listeners.forEach(listener => listener({name: 'connected', server})),
		definition: async name => {
			const {dom} = await host.calls.call(procedures.domainLookupByName, {name}, never);
			return readXml((await host.calls.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never)).xml);
		},
		leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
		count: procedure => calls.made.filter(name => name === procedure).length,
	};
}

/** For what happens in the background to be over. */
async function told(log: Daemon['log'], level: string, lines = 1): Promise<void> {
	while (log.lines.filter(line => line.level === level).length < lines) {
		await host.calls.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, never);
	}
}

async function refused(
	t: ExecutionContext,
	{vms, calls, leftovers}: Daemon,
	more: Partial<Parameters<typeof specOf>[0]> = {},
): Promise<AdaptorError> {
	calls.made.length = 0;
	const error = await t.throwsAsync(vms.start(specOf(more), never), {instanceOf: AdaptorError});
	t.deepEqual(
		calls.made.filter(name => /define|create|upload|delete/i.test(name)),
		[],
		'before any side effect',
	);
	t.deepEqual(await leftovers(), []);
	return error;
}

test('without host support, a confidential VM is refused with a remedy before any side effect', async t => {
	const own = await daemon(
		{domainCapabilities: protecting.replace("pv supported='yes", "pv supported='no").replace(/.*unpack.*\n/, '')},
		{launchSecurity: 's390-pv'},
	);
	const error = await refused(t, own);
	t.like(error, {code: 'failed-precondition', reason: 'SecureExecutionUnavailable'});
	t.regex(error.message, /prot_virt=1.*z15, LinuxONE III/);
});

test('libvirt accepts a confidential VM, whose memory includes extra space for bounce buffers', async t => {
	const {vms, definition, log} = await daemon(
		{domainCapabilities: protecting},
		{launchSecurity: 's390-pv', swiotlbMib: 512},
	);
	const {name} = await vms.start(specOf({memoryMib: 1024}), never);
	const domain = await definition(name);
	t.is(child(domain, 'launchSecurity')?.attributes['type'], 's390-pv');
	t.is(child(domain, 'memory')?.text, String((1024 + 512) * 1024));
	const devices = child(domain, 'devices');
	const drivers = [...children(devices, 'disk'), ...children(devices, 'interface')].map(
		device => child(device, 'driver')?.attributes['iommu'],
	);
	t.deepEqual(drivers, ['on', 'on', 'on']);
	t.is(child(devices, 'memballoon')?.attributes['model'], 'none');
	t.deepEqual([child(devices, 'rng'), child(domain, 'memoryBacking')], [undefined, undefined]);
	t.like(log.lines.find(({message}) => message === 'domain started')?.fields, {memoryMib: 1536, swiotlbMib: 512});
});

test('the console of a confidential VM is never opened; that of an ordinary one is read', async t => {
	for (const [more, opened] of [
		[{launchSecurity: 's390-pv'}, []],
		[{}, ['console']],
	] as const) {
		const {calls, vms} = await daemon({domainCapabilities: protecting}, more);
		const consoles: string[] = [];
		calls.console = (domain, signal) => {
			consoles.push('console');
			return host.calls.console(domain, signal);
		};
		const vm = await vms.start(specOf(), never);
		await using addresses = vms.addresses(vm, never);
		t.is(typeof (await addresses.next()).value, 'string');
		t.deepEqual(consoles, [...opened]);
		t.deepEqual(vms.consoleTail(vm), []);
	}
});

test('an ordinary VM gets exactly the requested memory, and unnecessary calls are not made', async t => {
	const {vms, definition, count} = await daemon({}, {swiotlbMib: 512});
	const {name} = await vms.start(specOf({memoryMib: 1024}), never);
	const domain = await definition(name);
	t.is(child(domain, 'memory')?.text, String(1024 * 1024));
	t.is(child(domain, 'launchSecurity'), undefined);
	t.is(count('connectGetDomainCapabilities'), 0);
});

test('the host is asked once per connection, because a new connection may lead to an updated host', async t => {
	const abilities = {domainCapabilities: protecting};
	const {vms, connected, log, count} = await daemon(abilities, {launchSecurity: 's390-pv'});
	connected();
	await told(log, 'info');
	await vms.start(specOf(), never);
	await vms.start(specOf(), never);
	t.is(count('connectGetDomainCapabilities'), 1);
	abilities.domainCapabilities = emulating;
	connected();
	await told(log, 'error');
	await t.throwsAsync(vms.start(specOf(), never), {instanceOf: AdaptorError, message: /no KVM/});
	t.is(count('connectGetDomainCapabilities'), 2);
	const [line, ...others] = log.lines.filter(({level}) => level === 'error');
	t.is(others.length, 0, 'one error line a connection');
	t.regex(line?.message ?? '', /no pod VM will start/);
	t.like(line?.fields.err, {code: 'failed-precondition'});
});

test('checks and starts share the answers of one connection', async t => {
	const pool = await host.pool();
	const calls = intercept(host.calls);
	calls.answer = name => (name === 'connectGetDomainCapabilities' ? {capabilities: protecting} : undefined);
	const capabilities = new HostCapabilities(calls);
	const vms = podVmsOn(calls, pool, {capabilities, launchSecurity: 's390-pv'});
	await Promise.all([
		observeGuests(capabilities, undefined, never),
		observeSecureExecution(capabilities, never),
		vms.start(specOf(), never),
	]);
	await vms.start(specOf(), never);
	t.deepEqual(calls.made.filter(name => name.endsWith('Capabilities')).sort(), [
		'connectGetCapabilities',
		'connectGetDomainCapabilities',
	]);
});

test('if one of several concurrent callers gives up, the others still get the answer', async t => {
	const {vms, calls, count} = await daemon({domainCapabilities: protecting}, {launchSecurity: 's390-pv'});
	const gate = Promise.withResolvers<undefined>();
	calls.before = async name => (name === 'connectGetCapabilities' ? gate.promise : undefined);
	const impatient = new AbortController();
	const [given, other] = [vms.start(specOf(), impatient.signal), vms.start(specOf(), never)];
	impatient.abort(new Error('gave up'));
	await t.throwsAsync(given, {message: 'gave up'});
	gate.resolve(undefined);
	t.truthy((await other).name);
	t.is(count('connectGetCapabilities'), 1);
});

test('after a failed call, the next caller asks again', async t => {
	const {vms, calls} = await daemon({domainCapabilities: protecting}, {launchSecurity: 's390-pv'});
	calls.before = async name =>
		name === 'connectGetDomainCapabilities' ? Promise.reject(new Error('lost')) : undefined;
	await t.throwsAsync(vms.start(specOf(), never), {message: 'lost'});
	calls.before = undefined;
	t.truthy((await vms.start(specOf(), never)).name);
});

test('a cpuset that names CPUs which the host lacks is refused with both sets, until the host has them', async t => {
	const withCpus = (...ids: readonly number[]): string =>
		capabilities.replace(
			'</host>',
			`<topology><cells num='1'><cell id='0'><cpus>${ids.map(id => `<cpu id='${id}'/>`).join('')}</cpus></cell></cells></topology></host>`,
		);
	const abilities = {capabilities: withCpus(0, 1, 2, 4)};
	const own = await daemon(abilities, {cpuset: '0-5,^2'});
	const error = await refused(t, own);
	t.is(error.code, 'failed-precondition');
	t.deepEqual(error.where, {cpuset: '0-5,^2', missing: '3,5', online: '0-2,4'});
	abilities.capabilities = withCpus(0, 1, 3, 4, 5);
	const {name} = await own.vms.start(specOf(), never);
	t.is(child(await own.definition(name), 'vcpu')?.attributes['cpuset'], '0-1,3-5', 'as libvirt understood it');
});

test('pods choose among the allowed images; other volumes and missing ones are refused by name', async t => {
	const own = await daemon({}, {allowedImages: ['other.*', 'gone?', 'copy.qcow2']});
	const {pool, log} = own;
	await own.vms.start(specOf({image: pool.otherVolume}), never);
	t.true(
		log.lines.some(
			({message, fields}) => message === `Choosing ${pool.otherVolume}` && fields.image === pool.otherVolume,
		),
	);
	for (const [image, code, reason, text] of [
		['secret.qcow2', 'permission-denied', 'ImageNotAllowed', /LIBVIRT_ALLOWED_IMAGES/],
		['gone1', 'not-found', 'ImageNotFound', /Can't retrieve volume gone1/],
		[`${pool.directory}/${pool.otherVolume}`, 'invalid-argument', undefined, /path/],
		['podvm-web-01234567-root.qcow2', 'invalid-argument', undefined, /disk of a pod VM/],
	] as const) {
		const error = await t.throwsAsync(own.vms.start(specOf({image}), never), {instanceOf: AdaptorError}, image);
		t.like(error, {code, reason});
		t.regex(error.message, text);
	}
});

test('a copied root disk is not accepted as an image, unless it is configured', async t => {
	const {vms, pool, calls} = await daemon({}, {});
	const {name} = await vms.start(specOf(), never);
	await copyFile(`${pool.directory}/${name}-root.qcow2`, `${pool.directory}/copy.qcow2`);
	const {pool: handle} = await host.calls.call(procedures.storagePoolLookupByName, {name: pool.name}, never);
	await host.calls.call(procedures.storagePoolRefresh, {pool: handle, flags: 0}, never);
	const error = await t.throwsAsync(vms.start(specOf({image: 'copy.qcow2'}), never), {instanceOf: AdaptorError});
	t.like(error, {code: 'failed-precondition', reason: 'ImageNotUsable', where: {volume: 'copy.qcow2'}});
	t.regex(error.message, /backing file/);
	t.truthy((await podVmsOn(calls, pool, {volumeName: 'copy.qcow2'}).start(specOf(), never)).name);
});

test('a volume that is not a bootable disk is not an image: a cidata disk, a file of another kind', async t => {
	const {vms, calls} = await daemon({}, {volumeName: baseVolume});
	for (const format of ['iso', 'dir', 'vmdk']) {
		calls.answer = (procedure, args) =>
			procedure === 'storageVolGetXmlDesc' && (args as {vol: {name: string}}).vol.name === 'x'
				? {
						xml: `<volume><capacity>512</capacity><target><path>/p/x</path><format type='${format}'/></target></volume>`,
					}
				: procedure === 'connectGetCapabilities'
					? {capabilities}
					: undefined;
		t.like(await t.throwsAsync(vms.start(specOf({image: 'x'}), never), {instanceOf: AdaptorError}), {
			code: 'failed-precondition',
			where: {format},
		});
	}
});
