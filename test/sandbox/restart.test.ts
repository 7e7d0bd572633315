import {createHash} from 'node:crypto';
import {gunzipSync} from 'node:zlib';
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {PodVmEndedError} from '../../src/sandbox/vm-ended.ts';
import {logged, never, pod, fixture, type PortCall, type Fixture, type FixtureOptions} from './fixture.ts';

const socket = (id: string): string => `/run/pods/${id}/agent.ttrpc`;
const web = {name: 'web', namespace: 'shop'};

/** A node with a running sandbox 'a', whose daemon was killed. */
async function killedWhileRunning(t: ExecutionContext, options: FixtureOptions = {}): Promise<Fixture> {
	const before = fixture(t, options);
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	before.kill();
	return before;
}

/** Options whose promise resolves after the named call. */
function awaiting(call: PortCall): {options: FixtureOptions; called: Promise<void>} {
	const called = Promise.withResolvers<undefined>();
	return {
		called: called.promise,
		options: {
			after(done) {
				if (done === call) {
					called.resolve(undefined);
				}
			},
		},
	};
}

test('a running sandbox is served again at its socket, with its VM, address and VNI', async t => {
	const before = await killedWhileRunning(t);
	const after = await before.restart();
	// Calls may come at once, and wait.
	t.is(await after.registry.vmOf(web, false, never), 'podvm-web-a');
	await after.registry.start('a', never);
	t.deepEqual([...after.relays.served.keys()], [socket('a')]);
	t.deepEqual(await after.left(), [
		'VM podvm-web-a',
		'VNI 555000',
		`socket ${socket('a')}`,
		'record a',
		'claim podvm-web-a',
	]);
	await t.throwsAsync(after.registry.create(pod('a'), never), {message: /exists/});
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('a start of a sandbox that is not recovered yet is answered at its timeout and changes nothing', async t => {
	const before = await killedWhileRunning(t);
	const host = Promise.withResolvers<undefined>();
	const after = await before.restart({
		startTimeoutMs: 20,
		async before(call, signal) {
			await (call === 'relays.open' ? abortable(host.promise, signal) : undefined);
		},
	});
	const error = await t.throwsAsync<AdaptorError>(after.registry.start('a', never), {message: /START_TIMEOUT/});
	t.is(error.code, 'deadline-exceeded');
	host.resolve(undefined);
	await logged(after, 'sandbox resumed');
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('a VM that ends after its sandbox was resumed fails the relay', async t => {
	const after = await (await killedWhileRunning(t)).restart();
	await after.registry.start('a', never);
	after.podVms.host.kill('podvm-web-a');
	await logged(after, 'pod VM ended by itself');
	t.true(after.relays.failures.has(socket('a')));
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('initdata outlive a restart between creation and start, and the log shows their digest only', async t => {
	const before = fixture(t);
	const text = 'algorithm = "sha256"\nversion = "0.1.0"\n[data]\n"policy.rego" = "hush-hush"\n';
	const {annotations, ...rest} = pod('a');
	await before.registry.create(
		{...rest, annotations: {...annotations, 'io.katacontainers.config.hypervisor.cc_init_data': text}},
		never,
	);
	before.kill();
	const after = await before.restart();
	await after.registry.start('a', never);
	const file = after.podVms.specOf('podvm-web-a')?.files.find(({path}) => path === '/run/peerpod/initdata');
	t.is(gunzipSync(Buffer.from(file?.content.reveal() ?? '', 'base64')).toString(), text);
	const lines = [...before.log.lines, ...after.log.lines];
	t.is(
		lines.find(({message}) => message === 'sandbox created')?.fields.initdata,
		`sha256:${createHash('sha256').update(text).digest('hex')}`,
	);
	t.false(JSON.stringify(lines).includes('hush'));
});

test("bad initdata are refused by the annotation's name, and nothing is left", async t => {
	const {registry, left} = fixture(t);
	const annotation = 'io.katacontainers.config.hypervisor.cc_init_data';
	const {annotations, ...rest} = pod('a');
	const error = await t.throwsAsync<AdaptorError>(
		registry.create({...rest, annotations: {...annotations, [annotation]: 'a = "hush'}}, never),
	);
	t.like(error, {code: 'invalid-argument', where: {annotation}});
	t.deepEqual(await left(), []);
});

test('a running sandbox is served again although the KVM host is unreachable', async t => {
	const before = await killedWhileRunning(t);
	before.podVms.host.isAway = true;
	const after = await before.restart();
	await after.registry.start('a', never);
	t.deepEqual([...after.relays.served.keys()], [socket('a')]);
});

test('recovery is the same after a clean shutdown and after a kill', async t => {
	const before = fixture(t);
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	await before.registry[Symbol.asyncDispose]();
	const after = await before.restart();
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('a sandbox that was only created can be started', async t => {
	const before = fixture(t);
	await before.registry.create(pod('a'), never);
	before.kill();
	const after = await before.restart();
	await after.registry.start('a', never);
	t.deepEqual(await after.left(), [
		'VM podvm-web-a',
		'VNI 555000',
		`socket ${socket('a')}`,
		'record a',
		'claim podvm-web-a',
	]);
	const [vm] = await after.podVms.list(never);
	t.true(
		after.podVms
			.specOf(vm?.name ?? '')
			?.files.some(({content}) => content.reveal().includes('certificate of podvm-web-a')),
		'with certificates of its own',
	);
});

/** A daemon that stands still in the creation of 'a', before or after the nth call of a port. */
async function creatingHeld(
	t: ExecutionContext,
	step: PortCall,
	when: 'before' | 'after',
	nth = 1,
): Promise<{before: Fixture; go: () => void; creation: Promise<unknown>}> {
	const go = Promise.withResolvers<undefined>();
	const reached = Promise.withResolvers<undefined>();
	let calls = 0;
	const before = fixture(t, {
		async [when](call: PortCall) {
			if (call === step && ++calls === nth) {
				reached.resolve(undefined);
				await go.promise;
			}
		},
	});
	const creation = before.registry.create(pod('a'), never);
	creation.catch(() => undefined);
	await reached.promise;
	return {before, go: () => go.resolve(undefined), creation};
}

for (const [step, when, nth] of [
	['records.write', 'after', 1],
	['networks.reserve', 'before', 1],
	['networks.reserve', 'after', 1],
	['relays.issue', 'after', 1],
	['records.write', 'before', 2],
] as const) {
	test(`a creation that was interrupted ${when} ${step} (${nth}) leaves nothing, not even the id`, async t => {
		const {before} = await creatingHeld(t, step, when, nth);
		before.kill();
		const after = await before.restart();
		await logged(after, 'sandbox rolled back');
		await after.registry.stop('a', never);
		t.deepEqual(await after.left(), []);
		await after.registry.create(pod('a'), never);
	});
}

test('a start that was interrupted between the registration and the VM leaves no registration', async t => {
	const reached = Promise.withResolvers<undefined>();
	const before = fixture(t, {
		async before(call) {
			if (call === 'podVms.start') {
				reached.resolve(undefined);
				await Promise.withResolvers<never>().promise;
			}
		},
	});
	await before.registry.create(pod('a'), never);
	before.registry.start('a', never).catch(() => undefined);
	await reached.promise;
	t.true((await before.left()).includes('claim podvm-web-a'));
	before.kill();
	const after = await before.restart();
	await after.registry.stop('a', never);
	t.deepEqual(await before.left(), []);
});

test('if an interrupted creation cannot be rolled back yet, the roll-back is retried', async t => {
	const {before} = await creatingHeld(t, 'networks.reserve', 'after');
	before.kill();
	let failures = 3;
	const {options, called} = awaiting('records.remove');
	const after = await before.restart({
		...options,
		before(call) {
			if (call === 'networks.releaseByNetns' && failures-- > 0) {
				throw new AdaptorError({code: 'unavailable', what: 'No'});
			}
		},
	});
	await called;
	t.deepEqual(await after.left(), []);
});

test('a creation that is in progress in a predecessor is not disturbed, and its sandbox is resumed', async t => {
	const {before, go, creation} = await creatingHeld(t, 'networks.reserve', 'after');
	const after = await before.restart();
	go();
	await creation;
	await after.registry.start('a', never);
	t.deepEqual(await after.left(), [
		'VM podvm-web-a',
		'VNI 555000',
		`socket ${socket('a')}`,
		'record a',
		'claim podvm-web-a',
	]);
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('an interrupted creation can be stopped before its time limit', async t => {
	const {before} = await creatingHeld(t, 'networks.reserve', 'after');
	before.kill();
	const after = await before.restart({hasHungPredecessor: true});
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

for (const step of ['relays.open', 'networks.attach', 'records.write'] as const) {
	test(`a start that was interrupted in ${step} is rolled back`, async t => {
		let isStarting = false;
		const reached = Promise.withResolvers<undefined>();
		const before = fixture(t, {
			async before(call) {
				isStarting ||= call === 'podVms.start';
				if (call === step && isStarting) {
					reached.resolve(undefined);
					await Promise.withResolvers<never>().promise;
				}
			},
		});
		await before.registry.create(pod('a'), never);
		before.registry.start('a', never).catch(() => undefined);
		await reached.promise;
		before.kill();
		const {options, called} = awaiting('records.remove');
		const after = await before.restart(options);
		await called;
		t.deepEqual(await after.left(), []);
		await t.throwsAsync(after.registry.start('a', never), {message: /the daemon ended during its/});
		await after.registry.stop('a', never);
	});
}

test('a start in progress in a predecessor is not disturbed; its sandbox is resumed when it runs', async t => {
	const go = Promise.withResolvers<undefined>();
	const reached = Promise.withResolvers<undefined>();
	const before = fixture(t, {
		async before(call) {
			if (call === 'networks.attach') {
				reached.resolve(undefined);
				await go.promise;
			}
		},
	});
	await before.registry.create(pod('a'), never);
	const start = before.registry.start('a', never);
	await reached.promise;
	const after = await before.restart();
	go.resolve(undefined);
	await start;
	await after.registry.start('a', never);
	t.deepEqual(
		(await after.podVms.list(never)).map(({name}) => name),
		['podvm-web-a'],
	);
	t.is(after.relays.served.size, 1);
});

for (const stoppedAtOnce of [false, true]) {
	test(`a start that was queued in a predecessor ${stoppedAtOnce ? 'can be stopped at once' : 'is served once it runs there'}`, async t => {
		const go = Promise.withResolvers<undefined>();
		const reached = Promise.withResolvers<undefined>();
		const before = fixture(t, {
			async before(call) {
				if (call === 'podVms.start') {
					reached.resolve(undefined);
					await go.promise;
				}
			},
		});
		await before.registry.create(pod('a'), never);
		const start = before.registry.start('a', never);
		await reached.promise;
		const after = await before.restart();
		await logged(after, 'sandbox resumed, not started yet');
		go.resolve(undefined);
		await start;
		if (!stoppedAtOnce) {
			await logged(after, 'sandbox resumed');
			t.deepEqual([...after.relays.served.keys()], [socket('a')]);
			t.is((await after.podVms.list(never)).length, 1);
		}

		await after.registry.stop('a', never);
		t.deepEqual(await after.left(), []);
	});
}

test('a start that fails in a predecessor leaves no sandbox', async t => {
	const fail = Promise.withResolvers<undefined>();
	const reached = Promise.withResolvers<undefined>();
	const before = fixture(t, {
		async before(call) {
			if (call === 'networks.attach') {
				reached.resolve(undefined);
				await fail.promise;
				throw new AdaptorError({code: 'unavailable', what: 'No'});
			}
		},
	});
	await before.registry.create(pod('a'), never);
	const start = t.throwsAsync(before.registry.start('a', never));
	await reached.promise;
	const after = await before.restart();
	fail.resolve(undefined);
	await start;
	await t.throwsAsync(after.registry.start('a', never), {message: /no such sandbox/});
	// The cluster is told by the next round.
	while ((await after.left()).length > 0) {
		await turn();
	}
});

for (const step of ['podVms.delete', 'networks.release', 'records.remove'] as const) {
	test(`a stop that was interrupted in ${step} is completed`, async t => {
		const reached = Promise.withResolvers<undefined>();
		const before = fixture(t, {
			async before(call) {
				if (call === step) {
					reached.resolve(undefined);
					await Promise.withResolvers<never>().promise;
				}
			},
		});
		await before.registry.create(pod('a'), never);
		await before.registry.start('a', never);
		before.registry.stop('a', never).catch(() => undefined);
		await reached.promise;
		before.kill();
		const {options, called} = awaiting('records.remove');
		const after = await before.restart(options);
		await called;
		t.deepEqual(await after.left(), []);
	});
}

test('a sandbox whose VM ended in the meantime is removed, and a late call gets the reason', async t => {
	const before = await killedWhileRunning(t);
	before.podVms.host.kill('podvm-web-a');
	const {options, called} = awaiting('records.remove');
	const after = await before.restart({...options, before: answersNowhere});
	await called;
	t.deepEqual(await after.left(), []);
	await t.throwsAsync(after.registry.start('a', never), {message: /sandbox has failed/});
});

/** The VM that has ended does not answer at its old address either. */
async function answersNowhere(call: PortCall): Promise<void> {
	if (call === 'relays.open') {
		throw new PodVmEndedError('podvm-web-a', {how: 'somebody stopped it', remedy: 'Look.'});
	}
}

test("a sandbox whose pod's namespace is gone is removed", async t => {
	const before = await killedWhileRunning(t);
	before.networks.presences.set('/run/netns/a', 'gone');
	const {options, called} = awaiting('records.remove');
	const after = await before.restart(options);
	await called;
	t.deepEqual(await after.left(), []);
});

test('if resuming a running sandbox fails for any other reason, it is retried: no pod is given up', async t => {
	const before = await killedWhileRunning(t);
	let failures = 4;
	const after = await before.restart({
		before(call) {
			if (call === 'networks.attach' && failures-- > 0) {
				throw new AdaptorError({code: 'unavailable', what: 'No'});
			}
		},
	});
	await after.registry.start('a', never);
	t.is(after.relays.served.size, 1);
	t.is((await after.podVms.list(never)).length, 1);
});

test('a VM of an earlier run that does not answer is logged with the reason, and served once it does', async t => {
	const before = await killedWhileRunning(t);
	let isSilent = true;
	const after = await before.restart({
		reachReportMs: 5,
		async before(call, signal) {
			if (call === 'relays.open' && isSilent) {
				await abortable(Promise.withResolvers<never>().promise, signal);
			}
		},
	});
	await logged(after, 'could not resume the sandbox yet; trying again');
	t.regex(
		String(after.log.lines.find(({message}) => message.includes('could not resume'))?.fields.err),
		/the pod VM to answer/,
	);
	isSilent = false;
	await logged(after, 'sandbox resumed');
	t.true(after.relays.served.has(socket('a')));
});

test('a stop ends a recovery that makes no progress', async t => {
	const before = await killedWhileRunning(t);
	const after = await before.restart({
		before(call) {
			if (call === 'networks.attach') {
				throw new AdaptorError({code: 'unavailable', what: 'No'});
			}
		},
	});
	await logged(after, 'could not resume the sandbox yet; trying again');
	await after.registry.stop('a', never);
	t.deepEqual(await after.left(), []);
});

test('a VM without sandbox and record is removed after the grace period, and no other', async t => {
	const before = fixture(t);
	const orphan = {
		sandboxId: 'orphan',
		instanceName: 'podvm-x-orphan',
		pod: {name: 'x', namespace: 'y'},
		vcpus: 1,
		memoryMib: 512,
		vni: 1,
		files: [],
	};
	await before.podVms.start(orphan, never);
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	await before.registry.create(pod('b', 'db'), never);
	before.kill();
	const {options, called} = awaiting('podVms.delete');
	const after = await before.restart({...options, orphanGraceMs: 20});
	t.true((await after.left()).includes('VM podvm-x-orphan'));
	await called;
	t.deepEqual(
		(await after.podVms.list(never)).map(({name}) => name),
		['podvm-web-a'],
	);
	t.true(
		after.log.lines.some(
			({level, message, fields}) =>
				level === 'warn' && message === 'removing an orphaned pod VM' && fields.sandboxId === 'orphan',
		),
	);
});

for (const how of ['it is an orphan', 'it is stopped'] as const) {
	test(`a VM whose sandbox record is lost is removed completely, also on the node, when ${how}`, async t => {
		const before = await killedWhileRunning(t);
		await before.records.remove('a');
		const {options, called} = awaiting('podVms.delete');
		const after = await before.restart({...options, orphanGraceMs: how === 'it is an orphan' ? 0 : 60_000});
		t.is(after.networks.untracked.size, 1);
		await (how === 'it is an orphan' ? called : after.registry.stop('a', never));
		t.is(after.networks.untracked.size, 0);
		t.deepEqual(
			(await after.left()).filter(name => name.startsWith('VM') || name.startsWith('record')),
			[],
		);
	});
}

test("a VM whose sandbox's record cannot be read is no orphan, until it turns out that there is none", async t => {
	const before = await killedWhileRunning(t);
	await before.records.remove('a');
	before.records.isReadable = false;
	const {options, called} = awaiting('podVms.delete');
	const after = await before.restart({...options, orphanGraceMs: 0});
	await logged(after, 'not changing a pod VM: cannot read the record of its sandbox');
	t.is((await after.podVms.list(never)).length, 1);
	before.records.isReadable = true;
	await called;
	t.is((await after.podVms.list(never)).length, 0);
});

test('a VM is not an orphan if another daemon has a record of its sandbox', async t => {
	const before = fixture(t);
	const after = await before.restart({orphanGraceMs: 0});
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	// It looks at the VMs again and again; with the third look, what the first made of them would be done.
	const looked = Promise.withResolvers<undefined>();
	const list = after.podVms.list.bind(after.podVms);
	let looks = 0;
	after.podVms.list = async signal => {
		if (++looks === 3) {
			looked.resolve(undefined);
		}

		return list(signal);
	};

	await looked.promise;
	t.is((await before.podVms.list(never)).length, 1);
});

test('a full node refuses further sandboxes until one is removed or the limit is raised', async t => {
	let limit = 2;
	const {registry} = fixture(t, {maxSandboxes: () => limit});
	await registry.create(pod('a'), never);
	await registry.create(pod('b', 'db'), never);
	const error = await t.throwsAsync<AdaptorError>(registry.create(pod('c', 'cache'), never), {
		message: /reached its limit of pod VMs/,
	});
	t.is(error.code, 'resource-exhausted');
	t.regex(error.message, /PEERPODS_LIMIT_PER_NODE/);
	await registry.stop('a', never);
	await registry.create(pod('c', 'cache'), never);
	await t.throwsAsync(registry.create(pod('d', 'queue'), never), {message: /reached its limit of pod VMs/});
	limit = 3;
	await registry.create(pod('d', 'queue'), never);
});

test('the number of concurrent starts is limited; a waiting start can be stopped', async t => {
	let running = 0;
	let most = 0;
	const go = Promise.withResolvers<undefined>();
	const {registry} = fixture(t, {
		maxStarts: 2,
		async before(call) {
			if (call === 'podVms.start') {
				most = Math.max(most, ++running);
				await go.promise;
			}
		},
		after(call) {
			if (call === 'podVms.start') {
				running--;
			}
		},
	});
	const ids = ['a', 'b', 'c', 'd', 'e'];
	await Promise.all(ids.map(async id => registry.create(pod(id, id), never)));
	const starts = ids.slice(0, 4).map(async id => registry.start(id, never));
	const waiting = t.throwsAsync(registry.start('e', never), {message: /stopped .*stage "get a start permit"/});
	await new Promise(resolve => {
		setImmediate(resolve);
	});
	await registry.stop('e', never);
	await waiting;
	go.resolve(undefined);
	await Promise.all(starts);
	t.is(most, 2);
});
