import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {Secret} from '../../src/core/log.ts';
import {logged, never, pod, fixture, type PortCall, type Fixture, type FixtureOptions} from './fixture.ts';

const web = {name: 'web', namespace: 'shop'};
const socket = (id: string): string => `/run/pods/${id}/agent.ttrpc`;

/** Holds the named call until it is aborted; tells when it is reached. */
function holding(call: PortCall): {
	hook: (called: PortCall, signal: AbortSignal) => Promise<void>;
	reached: Promise<AbortSignal>;
} {
	const reached = Promise.withResolvers<AbortSignal>();
	return {
		reached: reached.promise,
		async hook(called, signal) {
			if (called === call) {
				reached.resolve(signal);
				const aborted = Promise.withResolvers<never>();
				signal.addEventListener('abort', () => aborted.reject(signal.reason as Error), {once: true});
				await aborted.promise;
			}
		},
	};
}

test('a sandbox is created, started and stopped, and nothing is left', async t => {
	const {registry, networks, podVms, left, log} = fixture(t);
	t.deepEqual(await registry.create(pod('a'), never), {agentSocketPath: socket('a')});
	t.deepEqual(await left(), ['VNI 555000', 'record a']);
	await registry.start('a', never);
	t.deepEqual(await left(), [
		'VM podvm-web-a',
		'VNI 555000',
		`socket ${socket('a')}`,
		'record a',
		'claim podvm-web-a',
	]);
	t.truthy(networks.tunnels.get(555_000), 'the tunnel points to the VM');
	const [vm] = await podVms.list(never);
	t.like(vm, {sandboxId: 'a', vni: 555_000, pod: {name: 'web', namespace: 'shop'}});
	await registry.stop('a', never);
	t.deepEqual(await left(), []);
	t.deepEqual(
		log.lines.filter(({level}) => level !== 'debug').map(({message}) => message),
		['sandbox created', 'pod VM started', 'sandbox removed'],
	);
});

test('the VM has the sizes that the pod requests, within limits, and the log names their sources', async t => {
	const {registry, podVms, log} = fixture(t);
	const sizes = {
		'io.katacontainers.config.hypervisor.default_vcpus': '1.5',
		'io.katacontainers.config.hypervisor.default_memory': '64',
	};
	await registry.create({...pod('a'), annotations: {...pod('a').annotations, ...sizes}}, never);
	await registry.start('a', never);
	t.like(podVms.specOf('podvm-web-a'), {vcpus: 2, memoryMib: 512});
	t.like(log.lines.find(({message}) => message === 'sandbox created')?.fields, {
		vcpus: 2,
		vcpusFrom: 'annotation',
		memoryMib: 512,
		memoryFrom: 'minimum',
	});
});

test('starting twice is starting once', async t => {
	const {registry, podVms} = fixture(t);
	await registry.create(pod('a'), never);
	await Promise.all([registry.start('a', never), registry.start('a', never)]);
	await registry.start('a', never);
	t.is((await podVms.list(never)).length, 1);
});

test('an id that is in use cannot be created again, and stays usable', async t => {
	const {registry, left} = fixture(t);
	const [first, second] = await Promise.allSettled([
		registry.create(pod('a'), never),
		registry.create(pod('a'), never),
	]);
	t.is(first.status, 'fulfilled');
	t.like((second as PromiseRejectedResult).reason, {code: 'already-exists'});
	await registry.start('a', never);
	t.is((await left()).length, 5);
});

test('starting an unknown sandbox is refused, stopping it succeeds', async t => {
	const {registry} = fixture(t);
	await t.throwsAsync(registry.start('a', never), {instanceOf: AdaptorError, message: /no such sandbox/});
	await registry.stop('a', never);
	await registry.create(pod('a'), never);
	await registry.stop('a', never);
	await registry.stop('a', never);
	await t.throwsAsync(registry.start('a', never), {message: /no such sandbox/});
});

test('stopping a sandbox of an earlier run deletes its VM', async t => {
	const {registry, podVms} = fixture(t);
	await podVms.start(
		{
			sandboxId: 'old',
			instanceName: 'podvm-web-old',
			pod: {name: 'web', namespace: 'shop'},
			vcpus: 1,
			memoryMib: 512,
			vni: 1,
			files: [],
		},
		never,
	);
	await registry.stop('old', never);
	t.deepEqual(await podVms.list(never), []);
});

const steps: readonly PortCall[] = ['podVms.start', 'relays.open', 'podVms.bindAddress', 'networks.attach'];
for (const step of steps) {
	for (const when of ['before', 'after'] as const) {
		test(`a start that fails ${when} ${step} leaves nothing, and says why until it is stopped`, async t => {
			const {registry, left} = fixture(t, {
				[when](call: PortCall) {
					if (call === step) {
						throw new AdaptorError({code: 'unavailable', what: 'The host burns'});
					}
				},
			});
			await registry.create(pod('a'), never);
			const error = await t.throwsAsync(registry.start('a', never), {
				instanceOf: AdaptorError,
				message: /^The host burns \(stage "\w.*\w"\)$/,
			});
			t.is(error.code, 'unavailable');
			// A relay that was opened and not handed over cannot be known to its caller: that `open` leaves nothing is
			// its own promise.
			t.deepEqual(
				(await left()).filter(
					name => !(step === 'relays.open' && when === 'after' && name.startsWith('socket')),
				),
				[],
			);
			await t.throwsAsync(registry.start('a', never), {message: /sandbox has failed: .*The host burns/});
			await registry.stop('a', never);
			await t.throwsAsync(registry.start('a', never), {message: /no such sandbox/});
		});
	}

	test(`a stop ends a start that is in ${step}, and leaves nothing`, async t => {
		const {hook, reached} = holding(step);
		const {registry, left} = fixture(t, {before: hook});
		await registry.create(pod('a'), never);
		const start = t.throwsAsync(registry.start('a', never), {
			instanceOf: AdaptorError,
			message: /stopped while it was being started/,
		});
		await reached;
		await Promise.all([registry.stop('a', never), registry.stop('a', never)]);
		t.is((await start).code, 'aborted');
		t.deepEqual(await left(), []);
	});

	test(`a caller that goes away in ${step} leaves nothing`, async t => {
		const {hook, reached} = holding(step);
		const {registry, left} = fixture(t, {before: hook});
		await registry.create(pod('a'), never);
		const caller = new AbortController();
		const start = t.throwsAsync<AdaptorError>(registry.start('a', caller.signal), {message: /hung up/});
		await reached;
		caller.abort(new AdaptorError({code: 'cancelled', what: 'The caller hung up'}));
		t.is((await start).code, 'cancelled');
		t.deepEqual(await left(), []);
	});

	test(`a start that times out in ${step} leaves nothing`, async t => {
		const {hook} = holding(step);
		const {registry, left} = fixture(t, {before: hook, startTimeoutMs: 20});
		await registry.create(pod('a'), never);
		const error = await t.throwsAsync(registry.start('a', never), {
			instanceOf: AdaptorError,
			message: /START_TIMEOUT/,
		});
		t.is(error.code, 'deadline-exceeded');
		t.deepEqual(await left(), []);
	});
}

test('a start that times out is answered while its roll-back hangs, and the roll-back continues', async t => {
	const {hook} = holding('podVms.start');
	const host = Promise.withResolvers<undefined>();
	const {registry, left, log} = fixture(t, {
		startTimeoutMs: 200,
		rollBackPatienceMs: 5,
		async before(call, signal) {
			await hook(call, signal);
			await (call === 'podVms.delete' ? host.promise : undefined);
		},
	});
	await registry.create(pod('a'), never);
	const error = await t.throwsAsync(registry.start('a', never), {
		instanceOf: AdaptorError,
		message: /^Timed out after .* \(START_TIMEOUT\) .*\(stage "start the VM"/,
	});
	t.is(error.code, 'deadline-exceeded');
	t.false(
		log.lines.some(({message}) => message === 'could not roll back the sandbox; trying again'),
		'it has not come to its end by then',
	);
	t.not((await left()).length, 0);
	const again = t.throwsAsync(registry.start('a', never), {message: /has failed: .*START_TIMEOUT/});
	host.resolve(undefined);
	await again;
	t.deepEqual(await left(), []);
});

for (const step of ['networks.reserve', 'relays.issue'] as const) {
	test(`a create that fails before ${step} leaves nothing, not even the id`, async t => {
		let fails = true;
		const {registry, left} = fixture(t, {
			before(call) {
				if (call === step && fails) {
					throw new Error('no');
				}
			},
		});
		await t.throwsAsync(registry.create(pod('a'), never), {message: 'no'});
		t.deepEqual(await left(), []);
		fails = false;
		await registry.create(pod('a'), never);
		t.is((await left()).length, 2);
	});

	test(`a creation that times out in ${step} leaves nothing`, async t => {
		const {hook} = holding(step);
		const {registry, left} = fixture(t, {before: hook, createTimeoutMs: 20});
		const error = await t.throwsAsync<AdaptorError>(registry.create(pod('a'), never), {
			message: /the sandbox to be created/,
		});
		t.is(error.code, 'deadline-exceeded');
		t.deepEqual(await left(), []);
	});

	test(`a stop ends a create that is in ${step}`, async t => {
		const {hook, reached} = holding(step);
		const {registry, left} = fixture(t, {before: hook});
		const create = t.throwsAsync(registry.create(pod('a'), never), {message: /stopped/});
		await reached;
		await registry.stop('a', never);
		await create;
		t.deepEqual(await left(), []);
	});
}

for (const step of ['podVms.delete', 'networks.release'] as const) {
	test(`a stop that fails in ${step} returns the error, and is completed in the background`, async t => {
		let failures = 2;
		const done = Promise.withResolvers<undefined>();
		const {registry, left, log} = fixture(t, {
			before(call) {
				if (call === step && failures-- > 0) {
					throw new AdaptorError({code: 'unavailable', what: 'The host is away'});
				}
			},
			after(call) {
				if (call === 'records.remove') {
					done.resolve(undefined);
				}
			},
		});
		await registry.create(pod('a'), never);
		await registry.start('a', never);
		await t.throwsAsync(registry.stop('a', never), {message: /The host is away/});
		await done.promise;
		t.deepEqual(await left(), []);
		t.true(log.lines.some(({message}) => message === 'could not remove the sandbox; trying again'));
	});
}

test('leftovers of a roll-back are removed later without a further call', async t => {
	let failures = 3;
	const done = Promise.withResolvers<undefined>();
	const {registry, left} = fixture(t, {
		before(call) {
			if (call === 'networks.attach' || (call === 'podVms.delete' && failures-- > 0)) {
				throw new Error('no');
			}
		},
		after(call) {
			if (call === 'records.remove') {
				done.resolve(undefined);
			}
		},
	});
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', never));
	t.deepEqual(
		await left(),
		['VM podvm-web-a', 'VNI 555000', 'record a', 'claim podvm-web-a'],
		'no other pod gets the VNI of a VM that may still run',
	);
	await done.promise;
	t.deepEqual(await left(), []);
});

test('a stop goes on when its caller does not wait for it', async t => {
	const released = Promise.withResolvers<undefined>();
	const deleted = Promise.withResolvers<undefined>();
	const {registry, left} = fixture(t, {
		before: async call => (call === 'podVms.delete' ? released.promise : undefined),
		after(call) {
			if (call === 'records.remove') {
				deleted.resolve(undefined);
			}
		},
	});
	await registry.create(pod('a'), never);
	await registry.start('a', never);
	const caller = new AbortController();
	const stop = t.throwsAsync(registry.stop('a', caller.signal), {message: 'gone'});
	caller.abort(new Error('gone'));
	await stop;
	released.resolve(undefined);
	await deleted.promise;
	t.deepEqual(await left(), []);
});

test('a new sandbox of the same pod makes the older one stop', async t => {
	const released = Promise.withResolvers<undefined>();
	const {registry, left} = fixture(t, {
		after(call) {
			if (call === 'records.remove') {
				released.resolve(undefined);
			}
		},
	});
	await registry.create(pod('old'), never);
	await registry.start('old', never);
	await registry.create(pod('other', 'db'), never);
	await registry.create(pod('new'), never);
	await released.promise;
	t.deepEqual(await left(), ['VNI 555001', 'VNI 555002', 'record other', 'record new']);
	await registry.start('new', never);
	t.is(await registry.vmOf({name: 'web', namespace: 'shop'}, false, never), 'podvm-web-new');
});

test('PodVMInfo waits until the VM exists, which is before its agent answers', async t => {
	const {hook, reached} = holding('relays.open');
	const {registry} = fixture(t, {before: hook});
	await t.throwsAsync(registry.vmOf(web, false, never), {message: /no VM on this node/});
	const gone = new AbortController();
	const impatient = t.throwsAsync(registry.vmOf(web, true, gone.signal), {message: 'enough'});
	gone.abort(new Error('enough'));
	await impatient;
	const waiting = registry.vmOf(web, true, never);
	await registry.create(pod('a'), never);
	const start = t.throwsAsync(registry.start('a', never));
	t.is(await waiting, 'podvm-web-a');
	await reached;
	t.is(await registry.vmOf(web, false, never), 'podvm-web-a');
	await registry.stop('a', never);
	await start;
	await t.throwsAsync(registry.vmOf(web, false, never));
});

test('closing ends starts, and leaves running and created sandboxes to the next daemon', async t => {
	const {registry, left} = fixture(t);
	await registry.create(pod('running'), never);
	await registry.start('running', never);
	await registry.create(pod('created', 'db'), never);
	await registry[Symbol.asyncDispose]();
	await registry[Symbol.asyncDispose]();
	t.deepEqual(await left(), [
		'VM podvm-web-running',
		'VNI 555000',
		'VNI 555001',
		'record running',
		'record created',
		'claim podvm-web-running',
	]);
	await t.throwsAsync(registry.create(pod('b'), never), {message: /stopping/});
	await t.throwsAsync(registry.start('running', never), {message: /stopping/});
});

for (const id of ['', '../up', '.hidden', 'a/b', 'x'.repeat(129), 'a\0b']) {
	test(`the sandbox id ${JSON.stringify(id.slice(0, 20))} is refused`, async t => {
		const {registry, left} = fixture(t);
		await t.throwsAsync(registry.create(pod(id), never), {message: /not usable as a file name/});
		t.deepEqual(await left(), []);
	});
}

test('an id whose agent socket path is too long for the kernel is refused before anything is created', async t => {
	const calls: PortCall[] = [];
	const {registry, left} = fixture(t, {before: async call => void calls.push(call)});
	const longest = 107 - '/run/pods//agent.ttrpc'.length;
	await t.throwsAsync(registry.create(pod('x'.repeat(longest + 1)), never), {message: /path is too long/});
	t.deepEqual([calls, await left()], [[], []]);
	await t.notThrowsAsync(registry.create(pod('x'.repeat(longest)), never));
});

test('an invalid netns path is refused', async t => {
	const {registry} = fixture(t);
	for (const netnsPath of ['', 'relative', '/a\0b']) {
		await t.throwsAsync(registry.create({...pod('a'), netnsPath}, never), {message: /not an absolute path/});
	}
});

test('a stop ends a start that still waits for its permit, and no VM is started', async t => {
	const calls: PortCall[] = [];
	const {registry, left} = fixture(t, {before: call => void calls.push(call)});
	await registry.create(pod('a'), never);
	const start = t.throwsAsync<AdaptorError>(registry.start('a', never), {
		message: /stopped while it was being started/,
	});
	await registry.stop('a', never);
	t.is((await start).code, 'aborted');
	t.deepEqual(calls, [
		'records.write',
		'networks.reserve',
		'relays.issue',
		'records.write',
		'records.write',
		'networks.release',
		'records.remove',
	]);
	t.deepEqual(await left(), []);
});

test('closing ends a start that still waits for its permit, and no VM is started', async t => {
	const calls: PortCall[] = [];
	const {registry, left} = fixture(t, {before: call => void calls.push(call)});
	await registry.create(pod('a'), never);
	const start = t.throwsAsync(registry.start('a', never), {message: /daemon is stopping/});
	await registry[Symbol.asyncDispose]();
	await start;
	t.false(calls.includes('podVms.start'));
	t.deepEqual(await left(), ['VNI 555000', 'record a'], 'for the next daemon');
});

test('a start whose caller gives up while it waits for a permit changes nothing', async t => {
	const {registry, left} = fixture(t);
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', AbortSignal.abort(new Error('gone'))), {message: 'gone'});
	t.deepEqual(await left(), ['VNI 555000', 'record a']);
	await registry.start('a', never);
	t.is((await left()).length, 5);
});

test('a second start is answered when its caller gives up, and the first goes on', async t => {
	const {hook, reached} = holding('networks.attach');
	const {registry} = fixture(t, {before: hook});
	await registry.create(pod('a'), never);
	const first = t.throwsAsync(registry.start('a', never), {message: /stopped/});
	await reached;
	const caller = new AbortController();
	const second = t.throwsAsync(registry.start('a', caller.signal), {message: 'enough'});
	caller.abort(new Error('enough'));
	await second;
	await registry.stop('a', never);
	await first;
});

test('if two creations of one pod overlap, the later one stays, whichever ends first', async t => {
	for (const slow of ['old', 'new']) {
		const release = Promise.withResolvers<undefined>();
		const {registry, networks, left} = fixture(t);
		const reserve = networks.reserve.bind(networks);
		networks.reserve = async (id, ...rest) => {
			await (id === slow ? release.promise : undefined);
			return reserve(id, ...rest);
		};

		const [older, newer] = [registry.create(pod('old'), never), registry.create(pod('new'), never)];
		const created = Promise.allSettled([older, newer]);
		await (slow === 'old' ? newer : older);
		release.resolve(undefined);
		t.is((await created)[1].status, 'fulfilled', `${slow} is slow`);
		await registry.start('new', never);
		await registry.stop('old', never);
		t.deepEqual(
			(await left()).filter(name => name.startsWith('VM')),
			['VM podvm-web-new'],
		);
	}
});

test('the error of starting a superseded sandbox names the sandbox that superseded it', async t => {
	const {hook, reached} = holding('relays.open');
	const {registry} = fixture(t, {before: hook});
	await registry.create(pod('old'), never);
	const start = t.throwsAsync<AdaptorError>(registry.start('old', never), {
		message: /^The pod has a newer sandbox, new \(stage "reach the agent"/,
	});
	await reached;
	await registry.create(pod('new'), never);
	t.is((await start).code, 'aborted');
});

test('a failed creation that cannot release its reservation releases it later', async t => {
	let failures = 2;
	const released = Promise.withResolvers<undefined>();
	const {registry, left} = fixture(t, {
		before(call) {
			if (call === 'relays.issue' || (call === 'networks.release' && failures-- > 0)) {
				throw new Error('no');
			}
		},
		after(call) {
			if (call === 'records.remove') {
				released.resolve(undefined);
			}
		},
	});
	await t.throwsAsync(registry.create(pod('a'), never));
	await released.promise;
	t.deepEqual(await left(), []);
});

test('stopping a sandbox of an earlier run is completed in the background if the host is unreachable', async t => {
	let failures = 3;
	const deleted = Promise.withResolvers<undefined>();
	const {registry, podVms, relays} = fixture(t, {
		before(call) {
			if (call === 'podVms.delete' && failures-- > 0) {
				throw new AdaptorError({code: 'unavailable', what: 'The host is away'});
			}
		},
		after(call) {
			if (call === 'podVms.delete') {
				deleted.resolve(undefined);
			}
		},
	});
	await podVms.start(
		{
			sandboxId: 'old',
			instanceName: 'podvm-web-old',
			pod: {name: 'web', namespace: 'shop'},
			vcpus: 1,
			memoryMib: 512,
			vni: 1,
			files: [],
		},
		never,
	);
	relays.served.set(socket('old'), {sandboxId: 'old', instanceName: 'podvm-web-old', socketPath: socket('old')});
	await t.throwsAsync(registry.stop('old', never), {message: /The host is away/});
	await deleted.promise;
	await registry.stop('old', never);
	t.deepEqual(await podVms.list(never), []);
	t.is(relays.served.size, 0);
});

test('stopping an invalid id succeeds without any call', async t => {
	const calls: PortCall[] = [];
	const {registry} = fixture(t, {before: call => void calls.push(call)});
	await registry.stop('../up', never);
	t.deepEqual(calls, []);
});

test('closing waits for no further attempt to remove: the next daemon makes it', async t => {
	const {registry, restart, left} = fixture(t, {
		before(call) {
			if (call === 'podVms.delete') {
				throw new AdaptorError({code: 'unavailable', what: 'The host is away'});
			}
		},
	});
	await registry.create(pod('a'), never);
	await registry.start('a', never);
	await t.throwsAsync(registry.stop('a', never));
	await registry[Symbol.asyncDispose]();
	t.deepEqual(await left(), ['VM podvm-web-a', 'VNI 555000', 'record a', 'claim podvm-web-a']);
	const removed = Promise.withResolvers<undefined>();
	await restart({
		after(call) {
			if (call === 'records.remove') {
				removed.resolve(undefined);
			}
		},
	});
	await removed.promise;
	t.deepEqual(await left(), []);
});

for (const call of ['start', 'stop'] as const) {
	test(`closing does not wait for a host that is stuck in a ${call}: the next daemon continues`, async t => {
		const reached = Promise.withResolvers<undefined>();
		const {registry, restart, left, log, kill} = fixture(t, {
			closeTimeoutMs: 20,
			async before(called) {
				if (called === 'podVms.delete') {
					reached.resolve(undefined);
					await Promise.withResolvers<never>().promise;
				}

				if (called === 'relays.open' && call === 'start') {
					throw new AdaptorError({code: 'unavailable', what: 'No'});
				}
			},
		});
		await registry.create(pod('a'), never);
		const start = registry.start('a', never);
		start.catch(() => undefined);
		if (call === 'stop') {
			await start;
			registry.stop('a', never).catch(() => undefined);
		}

		await reached.promise;
		await registry[Symbol.asyncDispose]();
		t.like(
			log.lines.find(({message}) => message.startsWith('shutdown timed out')),
			{level: 'warn', fields: {count: 1}},
		);
		kill();
		const removed = Promise.withResolvers<undefined>();
		await restart({
			after(called) {
				if (called === 'records.remove') {
					removed.resolve(undefined);
				}
			},
		});
		await removed.promise;
		t.deepEqual(await left(), []);
	});
}

test('if a port rejects with its own error after an abort, the caller still gets the reason of the abort', async t => {
	const caller = new AbortController();
	const {registry} = fixture(t, {
		async before(call, signal) {
			if (call === 'networks.attach') {
				caller.abort(new AdaptorError({code: 'cancelled', what: 'The caller hung up'}));
				throw new DOMException(signal.aborted ? 'This operation was aborted' : 'not aborted', 'AbortError');
			}
		},
	});
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', caller.signal), {
		message: /The caller hung up \(stage "attach the network"\)/,
	});
});

test('if the forwarder does not answer in time, the error names the forwarder, not the whole start', async t => {
	const {hook} = holding('relays.open');
	const {registry, left} = fixture(t, {before: hook, agentTimeoutMs: 20});
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', never), {
		message: /^Timed out after 20 ms \(PROXY_TIMEOUT\) .*stage "reach the agent"/,
	});
	t.deepEqual(await left(), []);
});

test('a caller that waits for a VM is answered when the daemon stops', async t => {
	const {registry} = fixture(t);
	const waiting = t.throwsAsync(registry.vmOf({name: 'web', namespace: 'shop'}, true, never), {
		message: /daemon is stopping/,
	});
	await registry[Symbol.asyncDispose]();
	await waiting;
});

/** A running sandbox 'a' whose VM has just ended by itself; resolves when that is known. */
async function endedWhileRunning(t: ExecutionContext, options: FixtureOptions = {}): Promise<Fixture> {
	const ended = fixture(t, options);
	await ended.registry.create(pod('a'), never);
	await ended.registry.start('a', never);
	ended.podVms.host.kill('podvm-web-a');
	await logged(ended, 'pod VM ended by itself');
	return ended;
}

test('when a running VM ends, its relay fails with the reason, the pod has no VM, and stop leaves nothing', async t => {
	const {registry, relays, left, log} = await endedWhileRunning(t);
	t.regex(relays.failures.get(socket('a'))?.message ?? '', /somebody stopped it/);
	t.deepEqual(
		log.lines.filter(({level}) => level === 'warn').map(({message}) => message),
		['pod VM ended by itself'],
	);
	await t.throwsAsync(registry.vmOf(web, false, never), {message: /no VM/});
	await t.throwsAsync(registry.start('a', never), {message: /sandbox has failed: The pod VM ended/});
	t.is((await left()).length, 5, 'the socket is served on, and everything is on record');
	await registry.stop('a', never);
	t.deepEqual(await left(), []);
});

test('leftovers of a VM that ended are removed after the grace period if its sandbox is not stopped', async t => {
	const {registry, left} = await endedWhileRunning(t, {endedGraceMs: 1});
	while ((await left()).length > 0) {
		await turn();
	}

	await registry.stop('a', never);
	await t.throwsAsync(registry.start('a', never), {message: /no such sandbox/});
});

test('after the end of a VM, a closing daemon closes the socket, and the next daemon removes the rest', async t => {
	const before = await endedWhileRunning(t);
	await before.registry[Symbol.asyncDispose]();
	t.deepEqual(await before.left(), ['VM podvm-web-a', 'VNI 555000', 'record a', 'claim podvm-web-a']);
	const after = await before.restart({endedGraceMs: 1});
	while ((await after.left()).length > 0) {
		await turn();
	}

	t.pass();
});

test('a start whose VM does not answer fails with the console tail; a stopped start has none', async t => {
	const {registry, podVms} = fixture(t, {agentTimeoutMs: 5});
	podVms.addressesOfVms = [];
	for (const id of ['a', 'b']) {
		podVms.consoles.set(`podvm-${id}-${id}`, ['init runs', 'no DHCP server']);
		await registry.create(pod(id, id), never);
	}

	await t.throwsAsync(registry.start('a', never), {
		message: /stage "reach the agent".* Its console ended with: init runs \| no DHCP server$/,
	});
	const patient = fixture(t);
	patient.podVms.addressesOfVms = [];
	patient.podVms.consoles.set('podvm-web-c', ['init runs']);
	await patient.registry.create(pod('c'), never);
	const stopped = t.throwsAsync(patient.registry.start('c', never), {
		message: /stopped while it was being started(?!.*init runs)/,
	});
	await patient.registry.vmOf(web, true, never);
	await patient.registry.stop('c', never);
	await stopped;
});

test('a start that takes long is reported in the log and by an event, with stage and address', async t => {
	const reported = Promise.withResolvers<undefined>();
	const {registry, podVms, cluster, log} = fixture(t, {
		startReportsMs: [1],
		observer: {
			notify({kind}) {
				if (kind === 'start-slow') {
					reported.resolve(undefined);
				}
			},
		},
	});
	podVms.addressesOfVms = [];
	podVms.consoles.set('podvm-web-a', ['init runs', 'no DHCP server']);
	await registry.create(pod('a'), never);
	const stopped = t.throwsAsync(registry.start('a', never));
	await registry.vmOf(web, true, never);
	await reported.promise;
	const line = log.lines.find(({message}) => message === 'the pod VM is still being started');
	t.like(line, {level: 'info', fields: {durationMs: 1}});
	t.regex(String(line?.fields.stage), /^(?:start the VM|reach the agent|get a start permit|register the VM.*)$/v);
	await registry.stop('a', never);
	await stopped;
	const [event] = cluster.events.filter(({reason}) => reason === 'PodVMStarting');
	t.regex(event?.message ?? '', /^Still starting VM podvm-web-a: .*it has no address yet/v);
	t.is(log.lines.filter(({message}) => message === 'the pod VM is still being started').length, 1);
});

test('a VM is registered before its first side effect, and unregistered after it is gone', async t => {
	const seen: string[] = [];
	const {registry, cluster} = fixture(t, {
		before(call) {
			if (call === 'podVms.start' || call === 'podVms.delete') {
				seen.push(`${call} with ${[...cluster.claims.keys()].join(' ')}`);
			}
		},
	});
	await registry.create(pod('a'), never);
	t.deepEqual([...cluster.claims.keys()], []);
	await registry.start('a', never);
	t.deepEqual(cluster.claims.get('podvm-web-a'), {sandboxId: 'a', instanceName: 'podvm-web-a', pod: web});
	await registry.stop('a', never);
	t.deepEqual(seen, ['podVms.start with podvm-web-a', 'podVms.delete with podvm-web-a']);
	t.deepEqual([...cluster.claims.keys()], []);
});

test('a registration that failed in an earlier run is repeated when its sandbox is resumed', async t => {
	const before = fixture(t);
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	before.cluster.claims.clear();
	await using _dead = before.kill();
	const after = await before.restart();
	await logged(after, 'sandbox resumed');
	t.deepEqual([...after.cluster.claims.keys()], ['podvm-web-a']);
});

test("the pod's pull credentials go to its VM, and into no record and no line of the log", async t => {
	const {registry, cluster, podVms, records, log} = fixture(t);
	cluster.credentials = new Secret('{"auths":{"registry.example":{"auth":"c2VjcmV0"}}}');
	await registry.create(pod('a'), never);
	await registry.start('a', never);
	const files = podVms.specOf('podvm-web-a')?.files ?? [];
	t.is(files.find(({path}) => path === '/run/peerpod/auth.json')?.content.reveal(), cluster.credentials.reveal());
	t.false(JSON.stringify([await records.readAll(), log.lines]).includes('c2VjcmV0'));
});

test('a failed start causes an event with the reason; a start that is stopped on purpose does not', async t => {
	const {registry, cluster, podVms} = fixture(t);
	podVms.startError = new AdaptorError({
		code: 'not-found',
		what: "Can't retrieve volume none",
		reason: 'ImageNotFound',
	});
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', never));
	podVms.startError = new Error('no');
	await registry.create(pod('b', 'db'), never);
	await t.throwsAsync(registry.start('b', never));
	t.deepEqual(
		cluster.events.map(({type, reason, pod: {name}}) => [type, reason, name]),
		[
			['Warning', 'ImageNotFound', 'web'],
			['Warning', 'PodVMStartFailed', 'db'],
		],
	);
	t.regex(cluster.events[0]?.message ?? '', /^Can't retrieve volume none \(stage "start the VM"\)$/);

	podVms.startError = undefined;
	podVms.addressesOfVms = [];
	await registry.create(pod('c', 'cache'), never);
	const start = registry.start('c', never);
	const failed = t.throwsAsync(start);
	await registry.stop('c', never);
	await failed;
	t.is(cluster.events.length, 2);
});

test('a VM that ends by itself causes an event of its pod', async t => {
	const here = fixture(t);
	await here.registry.create(pod('a'), never);
	await here.registry.start('a', never);
	here.podVms.host.kill('podvm-web-a');
	await logged(here, 'pod VM ended by itself');
	t.like(here.cluster.events, [{type: 'Warning', reason: 'PodVMEnded', pod: web}]);
});

test('a guest that does not boot releases its start permit after a short time, and its start continues', async t => {
	const {registry, podVms} = fixture(t, {maxStarts: 1, bootTurnMs: 5});
	podVms.addressesOfVms = [];
	await registry.create(pod('a', 'dead'), never);
	const dead = registry.start('a', never);
	const ended = t.throwsAsync(dead);
	await registry.vmOf({name: 'dead', namespace: 'shop'}, true, never);
	podVms.addressesOfVms = ['192.168.122.11'];
	await registry.create(pod('b'), never);
	await registry.start('b', never);
	t.is(await registry.vmOf({name: 'dead', namespace: 'shop'}, false, never), 'podvm-dead-a');
	await registry.stop('a', never);
	await ended;
});

test('starts of one namespace do not keep another namespace waiting for all of them', async t => {
	const order: string[] = [];
	const go = Promise.withResolvers<undefined>();
	const {registry, podVms} = fixture(t, {maxStarts: 1});
	const start = podVms.start.bind(podVms);
	podVms.start = async (spec, signal) => {
		order.push(`${spec.pod.namespace}/${spec.pod.name}`);
		await go.promise;
		return start(spec, signal);
	};
	const names = ['greedy/1', 'greedy/2', 'greedy/3', 'greedy/4', 'modest/5'];
	for (const name of names) {
		const [namespace = '', id = ''] = name.split('/');
		const request = pod(id, id);
		await registry.create(
			{...request, annotations: {...request.annotations, 'io.kubernetes.cri.sandbox-namespace': namespace}},
			never,
		);
	}

	const starts = names.map(async name => registry.start(name.split('/')[1] ?? '', never));
	go.resolve(undefined);
	await Promise.all(starts);
	t.deepEqual(order, ['greedy/1', 'greedy/2', 'modest/5', 'greedy/3', 'greedy/4']);
});

test('a pod that gets less than it requested gets an event; other pods get none', async t => {
	const {registry, cluster} = fixture(t);
	const large = pod('a');
	await registry.create(
		{...large, annotations: {...large.annotations, 'io.katacontainers.config.hypervisor.default_memory': '999999'}},
		never,
	);
	await registry.create(pod('b', 'db'), never);
	t.deepEqual(
		cluster.events.map(({reason, message, pod: {name}}) => [name, reason, message]),
		[
			[
				'web',
				'PodVMSizeLimited',
				'The VM of the pod has 8192 MiB of memory instead of 999999 (LIBVIRT_MAX_MEMORY)',
			],
		],
	);
});
