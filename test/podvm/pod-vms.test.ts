// How VMs come and go on libvirt: the calls, failures and aborts at every one of them, half-made states.
// libvirt-host.ts says what is real here.
import {randomBytes} from 'node:crypto';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError, codeOf} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {libvirtCode, LibvirtError} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {Secret} from '../../src/core/log.ts';
import {VmSlots} from '../../src/podvm/vm-slots.ts';
import {inOnePiece} from '../../src/libvirt/streams.ts';
import {child, readXml} from '../../src/libvirt/xml.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {bootRecord, qcow2Of} from '../support/disk-image.ts';
import {recordingLog} from '../support/recording-log.ts';
import {
	baseCapacity,
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
import {run} from './run.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Daemon {
	readonly calls: InterceptedCalls;
	readonly vms: PodVms;
	readonly pool: TestPool;
	/** Another daemon of the same node, on a connection that nobody meddles with. */
	readonly restarted: () => PodVms;
	/** One more, on these calls. */
	readonly other: (calls: InterceptedCalls) => PodVms;
	readonly log: ReturnType<typeof recordingLog>;
	readonly slots: VmSlots;
	readonly leftovers: () => Promise<readonly string[]>;
}

async function daemon(): Promise<Daemon> {
	const [pool, calls, log, cluster] = [
		await host.pool(),
		intercept(host.calls),
		recordingLog(),
		randomBytes(6).toString('hex'),
	];
	// A start goes on without network filters, which libvirt's test driver does not have: network-protection.test.ts.
	const more = {cluster, node: 'node', log, netFilter: 'off'};
	return {
		calls,
		pool,
		log,
		vms: podVmsOn(calls, pool, more),
		restarted: () => podVmsOn(host.calls, pool, more),
		other: on => podVmsOn(on, pool, more),
		slots: new VmSlots(cluster, 'node'),
		leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
	};
}

/** The calls of one whole start. */
async function callsOfStart(): Promise<readonly string[]> {
	const {calls, vms} = await daemon();
	await vms.start(specOf(), never);
	return calls.made;
}

async function outcome(promise: Promise<unknown>): Promise<unknown> {
	return promise.then(
		() => undefined,
		(error: unknown) => error,
	);
}

const version = 'image-20260101T000000Z.qcow2';

/** An image by its version and its name. */
async function poolWithVersion(): Promise<TestPool> {
	const pool = await host.pool();
	const {pool: handle} = await host.calls.call(procedures.storagePoolLookupByName, {name: pool.name}, never);
	for (const [name, backing] of [
		[version, ''],
		['image.qcow2', `<backingStore><path>${pool.directory}/${version}</path><format type='qcow2'/></backingStore>`],
	] as const) {
		await host.calls.call(
			procedures.storageVolCreateXml,
			{
				pool: handle,
				xml: `<volume><name>${name}</name><capacity>${baseCapacity}</capacity><target><format type='qcow2'/></target>${backing}</volume>`,
				flags: 0,
			},
			never,
		);
	}

	const image = await qcow2Of(bootRecord, baseCapacity);
	await host.calls.upload(
		{pool: pool.name, name: version, key: ''},
		inOnePiece(image),
		{offset: 0, length: image.length},
		never,
	);
	return pool;
}

test('the backing file of a VM is the image version that the alias points to, never the alias', async t => {
	const pool = await poolWithVersion();
	const spec = specOf();
	await podVmsOn(host.calls, pool, {volumeName: 'image.qcow2'}).start(spec, never);
	const {xml} = await host.calls.call(
		procedures.storageVolGetXmlDesc,
		{vol: {pool: pool.name, name: `${spec.instanceName}-root.qcow2`, key: ''}, flags: 0},
		never,
	);
	t.is(child(readXml(xml), 'backingStore', 'path')?.text, `${pool.directory}/${version}`);
});

for (const step of ['storageVolCreateXml', 'domainCreateWithFlags'] as const) {
	test(`a start whose image is removed before ${step} says so, and leaves nothing`, async t => {
		const [pool, calls, cluster] = [await poolWithVersion(), intercept(host.calls), randomBytes(6).toString('hex')];
		let removal: Promise<unknown> | undefined;
		calls.before = async name => {
			if (name === step) {
				removal ??= host.calls.call(
					procedures.storageVolDelete,
					{vol: {pool: pool.name, name: version, key: ''}, flags: 0},
					never,
				);
				await removal;
				// The disk is made by the real storage driver, but the test driver opens none.
				return name === 'domainCreateWithFlags' ? Promise.reject(refusal) : undefined;
			}
		};
		const error = await t.throwsAsync<AdaptorError>(
			podVmsOn(calls, pool, {volumeName: 'image.qcow2', cluster}).start(specOf(), never),
			{instanceOf: AdaptorError},
		);
		t.like(error, {code: 'not-found', reason: 'ImageNotFound', where: {pool: pool.name, volume: version}});
		t.regex(
			error.message,
			/^Error in creating volume: Can't retrieve volume .*: it was removed while the VM was being started/,
		);
		t.true(error.cause instanceof LibvirtError);
		t.deepEqual([...(await domainsNaming(host.calls, cluster)), ...(await pool.files())], ['image.qcow2']);
	});
}

test('a start defines first, then makes the disks, then starts, in at most 12 calls', async t => {
	const {calls, vms} = await daemon();
	await vms.start(specOf(), never);
	// Asked when the connection is made: network-protection.test.ts.
	const onceAConnection = ['networkLookupByName', 'networkGetXmlDesc', 'connectGetLibVersion'];
	const ofStart = calls.made.filter(name => !onceAConnection.includes(name));
	// Three are for what later starts know already: the host's capabilities, and what the image is.
	t.true(ofStart.length <= 12, calls.made.join(' '));
	t.is(calls.made.filter(name => name === 'download').length, 1);
	calls.made.length = 0;
	await vms.start(specOf(), never);
	t.deepEqual(
		calls.made.filter(name => !/Get|List|Lookup/.test(name)),
		['domainDefineXmlFlags', 'storageVolCreateXml', 'storageVolCreateXml', 'upload', 'domainCreateWithFlags'],
	);
	t.true(calls.made.length <= 12, calls.made.join(' '));
	t.false(calls.made.includes(procedures.storagePoolRefresh.name));
});

const refusal = new LibvirtError(
	{
		code: libvirtCode.internalError,
		domain: 0,
		message: 'no',
		level: 2,
		dom: null,
		str1: null,
		str2: null,
		str3: null,
		int1: 0,
		int2: 0,
		net: null,
	},
	'any',
);
const lost = new AdaptorError({code: 'unavailable', what: 'The connection was lost'});

for (const [how, hook, failure] of [
	['is refused', 'before', refusal],
	['never gets there', 'before', lost],
	['is carried out and its answer lost', 'after', lost],
] as const) {
	test(`if any call of a start ${how}, nothing is left and the error is returned`, async t => {
		const {length} = await callsOfStart();
		for (let failing = 1; failing <= length; failing++) {
			const {calls, vms, leftovers} = await daemon();
			calls[hook] = async (_name, number) => (number === failing ? Promise.reject(failure) : undefined);
			t.is(await outcome(vms.start(specOf(), never)), failure, calls.made.join(' '));
			t.deepEqual(await leftovers(), [], calls.made.join(' '));
		}
	});
}

for (const hook of ['before', 'during', 'after'] as const) {
	test(`an abort ${hook} any call of a start leaves nothing`, async t => {
		const {length} = await callsOfStart();
		for (let aborting = 1; aborting <= length; aborting++) {
			const {calls, vms, leftovers} = await daemon();
			const [abort, reason] = [new AbortController(), new Error('stopped')];
			calls[hook] = (_name, number) => {
				if (number === aborting) {
					abort.abort(reason);
				}

				return undefined;
			};
			t.is(await outcome(vms.start(specOf(), abort.signal)), reason, calls.made.join(' '));
			t.deepEqual(await leftovers(), [], calls.made.join(' '));
		}
	});
}

/** Holds every call of this name up in the hook until `go`; `reached` when the first is there. */
function holdUp(
	calls: InterceptedCalls,
	hook: 'before' | 'after',
	held: string,
): {readonly reached: Promise<void>; readonly go: () => void} {
	const [reached, gate] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
	calls[hook] = async name => {
		if (name === held) {
			reached.resolve(undefined);
			await gate.promise;
		}
	};
	return {reached: reached.promise, go: () => gate.resolve(undefined)};
}

/** Whoever has something to do by now has begun with it. */
async function roundTrip(): Promise<void> {
	await host.calls.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, never);
}

test('the clean-up waits for a change that was already sent, even if the signal has aborted', async t => {
	const {calls, leftovers, pool, log} = await daemon();
	const abort = new AbortController();
	// As a session does: gives up at once when the signal aborts, unless it is told to see the call through.
	const vms = podVmsOn(
		{
			...calls,
			call: async (procedure, args, signal, options) => {
				const call = calls.call(procedure, args, never, options);
				return options?.seeThrough === true ? call : abortable(call, signal);
			},
		},
		pool,
		{log},
	);
	const define = holdUp(calls, 'before', 'domainDefineXmlFlags');
	const starting = outcome(vms.start(specOf(), abort.signal));
	await define.reached;
	abort.abort(new Error('stopped'));
	await roundTrip();
	t.is(calls.made.at(-1), 'domainDefineXmlFlags');
	define.go();
	t.regex(String(await starting), /stopped/);
	t.deepEqual(await leftovers(), []);
	t.deepEqual(await vms.list(never), []);
});

test('when one disk fails, the other one is waited for before anything is cleaned up', async t => {
	const {calls, vms, leftovers} = await daemon();
	const gate = Promise.withResolvers<undefined>();
	const failed = Promise.withResolvers<undefined>();
	let disks = 0;
	calls.before = async name => {
		if (name === 'storageVolCreateXml' && disks++ === 0) {
			await gate.promise;
		} else if (name === 'storageVolCreateXml') {
			failed.resolve(undefined);
			throw refusal;
		}
	};
	const starting = outcome(vms.start(specOf(), never));
	await failed.promise;
	await roundTrip();
	t.is(calls.made.at(-1), 'storageVolCreateXml');
	gate.resolve(undefined);
	t.is(await starting, refusal);
	t.deepEqual(await leftovers(), []);
});

test('a slot is not reused during a deletion, and a second deletion waits for the first', async t => {
	const {calls, vms, slots, leftovers} = await daemon();
	const [first, second] = [specOf(), specOf()];
	t.is((await vms.start(first, never)).mac, slots.at(0).mac);
	const undefining = holdUp(calls, 'after', 'domainUndefineFlags');
	const deleting = [vms.delete(first.sandboxId, never)];
	await undefining.reached;
	const {length} = calls.made;
	deleting.push(vms.delete(first.sandboxId, never));
	await roundTrip();
	t.is(calls.made.length, length);
	t.is((await vms.start(second, never)).mac, slots.at(1).mac);
	undefining.go();
	await Promise.all(deleting);
	await vms.delete(second.sandboxId, never);
	t.deepEqual(await leftovers(), []);
});

/** As if the daemon were killed: its call with this number, or the answer to it, never comes, nor any later one. */
function dieAt(calls: InterceptedCalls, hook: 'before' | 'after', number: number): Promise<void> {
	const dead = Promise.withResolvers<undefined>();
	const forever = Promise.withResolvers<undefined>().promise;
	calls[hook] = async (_name, made) => {
		if (made >= number) {
			dead.resolve(undefined);
			await forever;
		}
	};
	return dead.promise;
}

test('if a daemon is killed at any call of a start, the next daemon cleans up', async t => {
	const {length} = await callsOfStart();
	for (let number = 1; number <= length; number++) {
		const {calls, vms, restarted, leftovers} = await daemon();
		const spec = specOf();
		const dead = dieAt(calls, 'after', number);
		void vms.start(spec, never);
		await dead;
		const [next, made] = [restarted(), (await leftovers()).length > 0];
		t.deepEqual(
			(await next.list(never)).map(({sandboxId}) => sandboxId),
			made ? [spec.sandboxId] : [],
		);
		await next.delete(spec.sandboxId, never);
		t.deepEqual(await leftovers(), [], calls.made.join(' '));
	}
});

test('after a crash at any call of a deletion, the next daemon completes it; the definition goes last', async t => {
	const complete = await daemon();
	const first = specOf();
	await complete.vms.start(first, never);
	complete.calls.made.length = 0;
	await complete.vms.delete(first.sandboxId, never);
	t.is(complete.calls.made.at(-1), procedures.domainUndefineFlags.name);
	for (let number = 1; number <= complete.calls.made.length; number++) {
		const {calls, vms, restarted, leftovers} = await daemon();
		const spec = specOf();
		await vms.start(spec, never);
		calls.made.length = 0;
		const dead = dieAt(calls, 'after', number);
		void vms.delete(spec.sandboxId, never);
		await dead;
		const next = restarted();
		const left = await next.list(never);
		t.is(left.length, number === complete.calls.made.length ? 0 : 1, 'while something is left, the definition is');
		await next.delete(spec.sandboxId, never);
		t.deepEqual(await leftovers(), [], calls.made.join(' '));
	}
});

test('a deletion that fails may be repeated', async t => {
	const {calls, vms, leftovers} = await daemon();
	const spec = specOf();
	await vms.start(spec, never);
	calls.before = async name => (name === 'storageVolDelete' ? Promise.reject(lost) : undefined);
	t.like(await outcome(vms.delete(spec.sandboxId, never)), {code: 'unavailable', cause: lost});
	t.like(await vms.list(never), [{sandboxId: spec.sandboxId, running: false}]);
	calls.before = undefined;
	await vms.delete(spec.sandboxId, never);
	t.deepEqual(await leftovers(), []);
});

test('a VM that cannot be stopped does not keep its disks from being removed, and stays defined', async t => {
	const {calls, vms, leftovers} = await daemon();
	const spec = specOf();
	await vms.start(spec, never);
	calls.before = async name => (name === 'domainDestroyFlags' ? Promise.reject(refusal) : undefined);
	const error = await t.throwsAsync<AdaptorError>(vms.delete(spec.sandboxId, never), {instanceOf: AdaptorError});
	t.regex(
		error.message,
		/libvirt: no; leftovers: the running VM and the definition of the domain .*virsh undefine podvm-web-/,
	);
	t.deepEqual(await leftovers(), [spec.instanceName]);
	t.like(await vms.list(never), [{sandboxId: spec.sandboxId, running: true}]);
	calls.before = undefined;
	await vms.delete(spec.sandboxId, never);
	t.deepEqual(await leftovers(), []);
});

test('the root disk is an overlay of the image, no smaller than it; the other disk holds the files', async t => {
	for (const image of ['base', 'other'] as const) {
		const {vms, pool} = await daemon();
		const volume = image === 'base' ? baseVolume : pool.otherVolume;
		const spec = specOf({
			image: volume,
			files: [{path: '/run/peerpod/apf.json', content: new Secret('{"key": "ü\\n"}')}],
		});
		await vms.start(spec, never);
		const {xml} = await host.calls.call(
			procedures.storageVolGetXmlDesc,
			{vol: {pool: pool.name, name: `${spec.instanceName}-root.qcow2`, key: ''}, flags: 0},
			never,
		);
		const root = readXml(xml);
		t.is(child(root, 'capacity')?.text, String(baseCapacity));
		t.is(child(root, 'backingStore', 'path')?.text, `${pool.directory}/${volume}`);
		t.is(child(root, 'backingStore', 'format')?.attributes['type'], image === 'base' ? 'qcow2' : 'raw');
		const iso = `${pool.directory}/${spec.instanceName}-cidata.iso`;
		t.regex(
			(await run('isoinfo', ['-i', iso, '-R', '-x', '/user-data'])).toString(),
			/^#cloud-config\n.*apf\.json/s,
		);
		t.regex(
			(await run('isoinfo', ['-i', iso, '-R', '-x', '/meta-data'])).toString(),
			new RegExp(`local-hostname: ${spec.instanceName}`),
		);
	}
});

test('volumes that a removed definition left behind do not stop a new start', async t => {
	const {vms, pool, leftovers} = await daemon();
	const spec = specOf();
	const {pool: handle} = await host.calls.call(procedures.storagePoolLookupByName, {name: pool.name}, never);
	for (const suffix of ['root.qcow2', 'cidata.iso']) {
		await host.calls.call(
			procedures.storageVolCreateXml,
			{
				pool: handle,
				xml: `<volume><name>${spec.instanceName}-${suffix}</name><capacity>512</capacity></volume>`,
				flags: 0,
			},
			never,
		);
	}

	await vms.start(spec, never);
	await vms.delete(spec.sandboxId, never);
	t.deepEqual(await leftovers(), []);
});

test('a slot in use by another daemon is skipped; a name in use is refused, and its domain is not changed', async t => {
	const {calls, vms, restarted, slots} = await daemon();
	const spec = specOf();
	const theirs = await restarted().start(spec, never);
	t.is(theirs.mac, slots.at(0).mac);
	const lookTooEarly = (): void => {
		let looks = 0;
		calls.answer = name => (name === 'connectListAllDomains' && looks++ === 0 ? {domains: [], ret: 0} : undefined);
	};

	lookTooEarly();
	t.is((await vms.start(specOf(), never)).mac, slots.at(1).mac);
	await restarted().delete(spec.sandboxId, never);
	calls.answer = undefined;
	t.is((await vms.start(spec, never)).mac, slots.at(0).mac, 'a slot that was refused once is not lost');
	lookTooEarly();
	const other = specOf({sandboxId: `${spec.sandboxId.slice(0, 8)}ffff`, instanceName: spec.instanceName});
	// Having looked too early, we would try slot 0 with their name, which libvirt takes for a new definition of theirs:
	// no test for what we cannot prevent. On any other slot it refuses, as here.
	calls.before = async name =>
		name === 'domainDefineXmlFlags'
			? Promise.reject(
					new LibvirtError(
						{
							code: libvirtCode.operationFailed,
							domain: 0,
							message: 'already exists',
							level: 2,
							dom: null,
							str1: null,
							str2: null,
							str3: null,
							int1: 0,
							int2: 0,
							net: null,
						},
						'domainDefineXmlFlags',
					),
				)
			: undefined;
	t.is(codeOf(await outcome(vms.start(other, never))), 'already-exists');
	t.is((await restarted().list(never)).length, 2);
});

test('if two daemons define the same VM at once, one continues and the other gives up without changes', async t => {
	const {calls, vms, other, restarted, leftovers} = await daemon();
	const spec = specOf();
	const looksTooEarly = intercept(host.calls);
	let looks = 0;
	looksTooEarly.answer = name =>
		name === 'connectListAllDomains' && looks++ === 0 ? {domains: [], ret: 0} : undefined;
	let theirs: Promise<unknown> | undefined;
	calls.after = async name => {
		if (name === 'domainDefineXmlFlags') {
			theirs = other(looksTooEarly).start(spec, never);
			await theirs;
		}
	};
	t.is(codeOf(await outcome(vms.start(spec, never))), 'already-exists');
	await theirs;
	t.like(await restarted().list(never), [{sandboxId: spec.sandboxId, running: true}]);
	t.is((await leftovers()).length, 3, 'the definition and both disks');
});

test('a deletion that another daemon has already completed does not touch the VM that now has the slot', async t => {
	const {calls, vms, restarted, slots} = await daemon();
	const [first, second] = [specOf(), specOf()];
	await vms.start(first, never);
	let disks = 0;
	calls.after = async name => {
		if (name === 'storageVolDelete' && ++disks === 2) {
			await restarted().delete(first.sandboxId, never);
			t.is((await restarted().start(second, never)).mac, slots.at(0).mac);
		}
	};
	await vms.delete(first.sandboxId, never);
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: second.instanceName}, never);
	await host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never);
	t.like(
		await restarted().list(never),
		[{sandboxId: second.sandboxId, running: false}],
		'still defined once it is stopped',
	);
});

test('libvirt refuses a second domain with the same UUID, with the expected error number', async t => {
	const xml = (name: string): string =>
		`<domain type='test'><name>${name}</name><uuid>1c1f3a52-0000-8000-8000-000000000001</uuid><memory>1</memory><os><type>hvm</type></os></domain>`;
	const {dom} = await host.calls.call(procedures.domainDefineXmlFlags, {xml: xml('uuid-one'), flags: 0}, never);
	t.teardown(async () => host.calls.call(procedures.domainUndefineFlags, {dom, flags: 0}, never));
	const error = await outcome(
		host.calls.call(procedures.domainDefineXmlFlags, {xml: xml('uuid-two'), flags: 0}, never),
	);
	t.is((error as LibvirtError).libvirtCode, libvirtCode.operationFailed);
});

async function tamper(t: ExecutionContext, {vms}: Daemon, change: (xml: string) => string): Promise<string> {
	const spec = specOf();
	await vms.start(spec, never);
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: spec.instanceName}, never);
	const {xml} = await host.calls.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never);
	t.not(change(xml), xml);
	await host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never);
	await host.calls.call(procedures.domainDefineXmlFlags, {xml: change(xml), flags: 0}, never);
	return spec.sandboxId;
}

test('a domain with our UUID is left alone if its metadata is broken, foreign, or has other volumes', async t => {
	const changes: ReadonlyArray<(xml: string) => string> = [
		xml => xml.replace(/vni="[^"]*"|vni='[^']*'/, ''),
		xml => xml.replace(/node=(["'])node\1/, 'node="other"'),
		xml => xml.replace(/root=(["'])[^"']*\1/, `root="${baseVolume}"`),
		xml => xml.replace(/<metadata>.*<\/metadata>/s, ''),
	];
	for (const change of changes) {
		const own = await daemon();
		const sandboxId = await tamper(t, own, change);
		const before = await own.pool.files();
		t.deepEqual(await own.vms.list(never), []);
		await own.vms.delete(sandboxId, never);
		t.deepEqual(await own.pool.files(), before);
		t.is((await own.vms.start(specOf(), never)).mac, own.slots.at(1).mac, 'its slot is not used');
	}
});

test('the log names the image as upstream does, and warns of emulation once', async t => {
	const {vms, log} = await daemon();
	await vms.start(specOf(), never);
	await vms.start(specOf(), never);
	t.like(
		log.lines.find(({message}) => message === `Choosing ${baseVolume}`),
		{level: 'info', fields: {image: baseVolume}},
	);
	t.is(log.lines.filter(({level, fields}) => level === 'warn' && fields.domainType === 'qemu').length, 1);
});

test('a foreign instance name, or a pod name that is invalid in XML, is refused before any change', async t => {
	const {vms, calls} = await daemon();
	for (const spec of [
		specOf({instanceName: 'podvm-web-00000000'}),
		specOf({sandboxId: 'abc', instanceName: 'web-abc'}),
		specOf({pod: {name: 'a\u0000b', namespace: 'shop'}}),
	]) {
		t.is(codeOf(await outcome(vms.start(spec, never))), 'invalid-argument');
	}

	t.false(calls.made.some(name => /Define|Create|upload/.test(name)));
});
