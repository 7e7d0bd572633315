/** Conversations with a real libvirtd, through its built-in test driver. */
import {writeFile} from 'node:fs/promises';
import anyTest, {type ExecutionContext, type TestFn} from 'ava';
import {isLibvirtError, libvirtCode, LibvirtConnectionError, LibvirtError} from '../../src/libvirt/wire/errors.ts';
import type {OpenPipe} from '../../src/libvirt/transport/pipe.ts';
import {procedures, type Domain} from '../../src/libvirt/wire/procedures.ts';
import type {SessionState} from '../../src/libvirt/session-options.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openPipe} from '../../src/libvirt/transport/open-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {startTestLibvirtd, type TestLibvirtd} from '../support/libvirtd.ts';

interface Context {
	libvirtd: TestLibvirtd;
}

const test = anyTest as TestFn<Context>;
const patient = new AbortController().signal;
const p = procedures;
/** Any logger of the house fits. */

test.before('a libvirtd', async t => {
	t.context = {libvirtd: await startTestLibvirtd()};
});

test.after.always('nothing is left', async t => {
	await t.context.libvirtd[Symbol.asyncDispose]();
});

function pipeTo({socketPath}: TestLibvirtd): OpenPipe {
	return openPipe(parseLibvirtUri(`test+unix:///default?socket=${socketPath}`), {} as Parameters<typeof openPipe>[1]);
}

/** A session with a world of its own: one pool, one network, no domain. */
async function startSession(t: ExecutionContext<Context>): Promise<LibvirtSession> {
	const {libvirtd} = t.context;
	const file = `${libvirtd.directory}/${t.title.replaceAll(/\W+/g, '-')}.xml`;
	await writeFile(
		file,
		`<node>
		<network><name>net</name><bridge name="br0"/><ip address="10.9.8.1" netmask="255.255.255.0"/></network>
		<pool type="dir"><name>pool</name><target><path>/pool</path></target></pool>
	</node>`,
	);
	const session = new LibvirtSession({openPipe: pipeTo(libvirtd), uri: `test://${file}`});
	t.teardown(async () => session[Symbol.asyncDispose]());
	return session;
}

function domainXml(name: string): string {
	return `<domain type="test"><name>${name}</name><memory unit="MiB">512</memory><vcpu>2</vcpu><os><type arch="s390x" machine="s390-ccw-virtio">hvm</type></os>
		<metadata><our:pod xmlns:our="https://example.org/our">“ü&amp;”</our:pod></metadata></domain>`;
}

async function defineDomain(session: LibvirtSession, name: string): Promise<Domain> {
	return (await session.call(p.domainDefineXmlFlags, {xml: domainXml(name), flags: 0}, patient)).dom;
}

test('a domain lives from define to undefine', async t => {
	const session = await startSession(t);
	const dom = await defineDomain(session, 'vm');
	t.is(dom.id, -1);
	t.deepEqual(await session.call(p.domainGetState, {dom, flags: 0}, patient), {state: 5, reason: 0});
	const {dom: live} = await session.call(p.domainCreateWithFlags, {dom, flags: 0}, patient);
	t.true(live.id > 0);
	t.is((await session.call(p.domainGetState, {dom, flags: 0}, patient)).state, 1);
	t.deepEqual((await session.call(p.connectListAllDomains, {needResults: 1, flags: 0}, patient)).domains, [live]);
	t.deepEqual((await session.call(p.domainLookupByUuid, {uuid: dom.uuid}, patient)).dom, live);
	t.like(await session.call(p.domainGetInfo, {dom}, patient), {state: 1, maxMem: 524_288n, nrVirtCpu: 2});
	t.regex((await session.call(p.domainGetXmlDesc, {dom, flags: 0}, patient)).xml, /“ü&amp;”/);
	await session.call(p.domainDestroyFlags, {dom, flags: 0}, patient);
	await session.call(p.domainUndefineFlags, {dom, flags: 0}, patient);
	t.is((await session.call(p.connectListAllDomains, {needResults: 1, flags: 0}, patient)).ret, 0);
});

test('lifecycle events tell what happens to a domain, in order', async t => {
	const session = await startSession(t);
	await session.connect(patient);
	const names: string[] = [];
	const {promise: undefinedAtLast, resolve} = Promise.withResolvers<undefined>();
	using _listener = session.onLifecycle(({domain, name, stopped}) => {
		names.push(`${domain.name} ${name} ${stopped ?? ''}`.trim());
		if (name === 'undefined') {
			resolve(undefined);
		}
	});
	const dom = await defineDomain(session, 'vm');
	await session.call(p.domainCreateWithFlags, {dom, flags: 0}, patient);
	await session.call(p.domainDestroyFlags, {dom, flags: 0}, patient);
	await session.call(p.domainUndefineFlags, {dom, flags: 0}, patient);
	await undefinedAtLast;
	t.deepEqual(names, ['vm defined', 'vm started', 'vm stopped destroyed', 'vm undefined']);
});

test('volumes are made, found and deleted', async t => {
	const session = await startSession(t);
	const {pool} = await session.call(p.storagePoolLookupByName, {name: 'pool'}, patient);
	t.like(await session.call(p.storagePoolGetInfo, {pool}, patient), {state: 2, allocation: 0n});
	t.is((await session.call(p.storagePoolIsActive, {pool}, patient)).active, 1);
	t.regex((await session.call(p.storagePoolGetXmlDesc, {pool, flags: 0}, patient)).xml, /<path>\/pool<\/path>/);
	const xml =
		'<volume><name>root</name><capacity unit="GiB">3</capacity><target><format type="qcow2"/></target></volume>';
	const {vol} = await session.call(p.storageVolCreateXml, {pool, xml, flags: 0}, patient);
	t.deepEqual(vol, {pool: 'pool', name: 'root', key: '/pool/root'});
	t.deepEqual((await session.call(p.storageVolLookupByName, {pool, name: 'root'}, patient)).vol, vol);
	t.deepEqual((await session.call(p.storageVolLookupByPath, {path: '/pool/root'}, patient)).vol, vol);
	t.deepEqual(await session.call(p.storageVolGetPath, {vol}, patient), {name: '/pool/root'});
	t.like(await session.call(p.storageVolGetInfo, {vol}, patient), {type: 0, capacity: 3n * 1024n ** 3n});
	t.regex((await session.call(p.storageVolGetXmlDesc, {vol, flags: 0}, patient)).xml, /qcow2/);
	t.deepEqual((await session.call(p.storagePoolListAllVolumes, {pool, needResults: 1, flags: 0}, patient)).vols, [
		vol,
	]);
	await session.call(p.storageVolDelete, {vol, flags: 0}, patient);
	t.is((await session.call(p.storagePoolListAllVolumes, {pool, needResults: 1, flags: 0}, patient)).ret, 0);
});

test('networks, capabilities and the host are described', async t => {
	const session = await startSession(t);
	const {net} = await session.call(p.networkLookupByName, {name: 'net'}, patient);
	t.is((await session.call(p.networkIsActive, {net}, patient)).active, 1);
	t.regex((await session.call(p.networkGetXmlDesc, {net, flags: 0}, patient)).xml, /10\.9\.8\.1/);
	t.regex((await session.call(p.connectGetCapabilities, undefined, patient)).capabilities, /<capabilities>/);
	t.regex((await session.call(p.connectGetUri, undefined, patient)).uri, /^test:\/\//);
	t.true((await session.call(p.connectGetVersion, undefined, patient)).hvVer > 0n);
	t.true((await session.call(p.nodeGetInfo, undefined, patient)).cpus > 0);
	t.deepEqual(session.serverInfo, {...(await session.connect(patient)), driver: 'TEST'});
});

test('a domain on a network has the addresses that the test driver generates', async t => {
	const session = await startSession(t);
	const xml = domainXml('vm').replace(
		'</domain>',
		'<devices><interface type="network"><mac address="52:54:00:00:00:01"/><source network="net"/></interface></devices></domain>',
	);
	const {dom} = await session.call(p.domainDefineXmlFlags, {xml, flags: 0}, patient);
	await session.call(p.domainCreateWithFlags, {dom, flags: 0}, patient);
	const {ifaces} = await session.call(p.domainInterfaceAddresses, {dom, source: 0, flags: 0}, patient);
	t.deepEqual(
		ifaces.map(({hwaddr}) => hwaddr),
		['52:54:00:00:00:01'],
	);
	t.regex(ifaces[0]?.addrs[0]?.addr ?? '', /^\d+\.\d+\.\d+\.\d+$/);
});

test("refusals are told apart by libvirt's code", async t => {
	const session = await startSession(t);
	const dom = await defineDomain(session, 'vm');
	const {pool} = await session.call(p.storagePoolLookupByName, {name: 'pool'}, patient);
	const {net} = await session.call(p.networkLookupByName, {name: 'net'}, patient);
	const vol = {pool: 'pool', name: 'none', key: '/pool/none'};
	const cases = [
		[async () => session.call(p.domainLookupByName, {name: 'none'}, patient), libvirtCode.noDomain, 'not-found'],
		[async () => session.call(p.networkLookupByName, {name: 'none'}, patient), libvirtCode.noNetwork, 'not-found'],
		[
			async () => session.call(p.storagePoolLookupByName, {name: 'none'}, patient),
			libvirtCode.noStoragePool,
			'not-found',
		],
		[
			async () => session.call(p.storageVolLookupByName, {pool, name: 'none'}, patient),
			libvirtCode.noStorageVol,
			'not-found',
		],
		[
			async () => session.call(p.domainDestroyFlags, {dom, flags: 0}, patient),
			libvirtCode.operationInvalid,
			'failed-precondition',
		],
		[
			async () => session.call(p.domainDefineXmlFlags, {xml: '<domain', flags: 0}, patient),
			libvirtCode.xmlDetail,
			'invalid-argument',
		],
		[
			async () => session.call(p.networkGetDhcpLeases, {net, mac: null, needResults: 1, flags: 0}, patient),
			libvirtCode.noSupport,
			'unimplemented',
		],
		[
			async () =>
				session.upload(
					vol,
					(async function* () {
						/* nothing */
					})(),
					{length: 5},
					patient,
				),
			libvirtCode.noSupport,
			'unimplemented',
		],
	] as const;
	for (const [call, number, code] of cases) {
		const error = await t.throwsAsync(call, {instanceOf: LibvirtError});
		t.like(error, {libvirtCode: number, code}, error.message);
		t.true(isLibvirtError(error, number));
	}
});

test('a hundred calls at once are all answered', async t => {
	const session = await startSession(t);
	await defineDomain(session, 'vm');
	const answers = await Promise.all(
		Array.from({length: 100}, async () => session.call(p.domainLookupByName, {name: 'vm'}, patient)),
	);
	t.is(answers.length, 100);
});

async function reached(session: LibvirtSession, name: SessionState['name']): Promise<void> {
	const {promise, resolve} = Promise.withResolvers<undefined>();
	using _listener = session.onState(state => {
		if (state.name === name) {
			resolve(undefined);
		}
	});
	await promise;
}

test('when libvirtd dies and comes back, the session is connected again and events flow', async t => {
	await using libvirtd = await startTestLibvirtd();
	await using session = new LibvirtSession({
		openPipe: pipeTo(libvirtd),
		uri: 'test:///default',
		reconnectMs: {first: 10, longest: 50},
	});
	await session.connect(patient);
	const lost = reached(session, 'connecting');
	await libvirtd.stop();
	await lost;
	const call = session.call(p.connectGetUri, undefined, patient);
	const back = reached(session, 'connected');
	await libvirtd.start();
	await back;
	t.regex((await call).uri, /^test:/);
	const {promise: event, resolve} = Promise.withResolvers<string>();
	using _listener = session.onLifecycle(({name}) => resolve(name));
	await defineDomain(session, 'vm');
	t.is(await event, 'defined');
});

test('a libvirtd that hangs without closing its connections is detected, and used again when it continues', async t => {
	await using libvirtd = await startTestLibvirtd();
	await using session = new LibvirtSession({
		openPipe: pipeTo(libvirtd),
		uri: 'test:///default',
		silenceTimeoutMs: 3000,
		reconnectMs: {first: 10, longest: 50},
	});
	await session.connect(patient);
	const lost = reached(session, 'connecting');
	process.kill(libvirtd.pid ?? 0, 'SIGSTOP');
	const change = session.call(p.domainDefineXmlFlags, {xml: domainXml('vm'), flags: 0}, patient);
	await t.throwsAsync(change, {instanceOf: LibvirtConnectionError, message: /nothing arrived/});
	await lost;
	const back = reached(session, 'connected');
	process.kill(libvirtd.pid ?? 0, 'SIGCONT');
	await back;
	t.regex((await session.call(p.connectGetUri, undefined, patient)).uri, /^test:/);
});

test('the pings of an impatient libvirtd are answered', async t => {
	// It hangs up after seven seconds without a sign of life, and six pings.
	await using libvirtd = await startTestLibvirtd({config: ['keepalive_interval = 1', 'keepalive_count = 6']});
	const pings = Promise.withResolvers<undefined>();
	const open = pipeTo(libvirtd);
	await using session = new LibvirtSession({
		// Pings of its own, which would be signs of life too, come after half a minute.
		uri: 'test:///default',
		silenceTimeoutMs: 600_000,
		openPipe: async signal => {
			const pipe = await open(signal);
			let count = 0;
			pipe.duplex.on('data', (chunk: Buffer) => {
				count +=
					chunk.length === 28 && chunk.readUInt32BE(4) === 0x6b_65_65_70 && chunk.readUInt32BE(12) === 1
						? 1
						: 0;
				if (count === 8) {
					pings.resolve(undefined);
				}
			});
			return pipe;
		},
	});
	await session.connect(patient);
	const states: string[] = [];
	using _listener = session.onState(({name}) => states.push(name));
	await pings.promise;
	t.deepEqual(states, []);
});
