/**
 * Calls in any order and at any time, over ports that fail, dawdle or hang as the seed says. What must hold however
 * they interleave: every caller gets an answer that the API can translate, a pod ends up with one VM at most, and
 * nothing is left once everything is stopped.
 */
import {setImmediate as turn} from 'node:timers/promises';
import {inspect} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable, Scope} from '../../src/core/lifetime.ts';
import {never, pod, fixture, type PortCall, type Fixture} from './fixture.ts';

interface Call {
	readonly call: 'create' | 'start' | 'stop';
	readonly id: string;
}

type Operation =
	| Call
	/** Its VM, if it has one, ends by itself. */
	| {readonly call: 'end'; readonly id: string}
	/** The caller of one of the operations so far goes away. */
	| {readonly call: 'hang up'; readonly which: number}
	/** Everybody else gets this many turns of the event loop. */
	| {readonly call: 'wait'; readonly turns: number};

/**
 * What becomes of the next call of a port: fail before or after it took effect, take some turns of the event loop, or
 * hang until aborted.
 */
type Fate = 'done' | 'fails before' | 'fails after' | 'hangs' | number;

/** Two pods; the first has several sandboxes, as when kubelet tries again. */
const podOf: Readonly<Record<string, string>> = {a1: 'web', a2: 'web', a3: 'web', b1: 'db'};
const ids = Object.keys(podOf);
const id = fc.constantFrom(...ids);
const operation: fc.Arbitrary<Operation> = fc.oneof(
	{weight: 4, arbitrary: fc.record({call: fc.constant('create' as const), id})},
	{weight: 4, arbitrary: fc.record({call: fc.constant('start' as const), id})},
	{weight: 2, arbitrary: fc.record({call: fc.constant('stop' as const), id})},
	{weight: 1, arbitrary: fc.record({call: fc.constant('end' as const), id})},
	{weight: 2, arbitrary: fc.record({call: fc.constant('hang up' as const), which: fc.nat({max: 30})})},
	{weight: 3, arbitrary: fc.record({call: fc.constant('wait' as const), turns: fc.integer({min: 1, max: 4})})},
);
const fate: fc.Arbitrary<Fate> = fc.oneof(
	{weight: 6, arbitrary: fc.constant('done' as const)},
	{weight: 3, arbitrary: fc.integer({min: 1, max: 4})},
	{weight: 1, arbitrary: fc.constantFrom('fails before' as const, 'fails after' as const, 'hangs' as const)},
);
const script = {operations: fc.array(operation, {minLength: 1, maxLength: 25}), fates: fc.array(fate, {maxLength: 60})};

/** Long enough for any run on a busy machine; only a call that is never answered takes it. */
const patienceMs = 20_000;
/**
 * A call that is never answered takes all patience in every run; the rest of the suite is not to wait for the smallest
 * example.
 */
const shrinkingMs = 30_000;

/**
 * As many runs as fit into the time; at least one. A run that has begun is finished: nothing may go on after its test.
 */
async function check<T>(timeMs: number, arbitrary: fc.Arbitrary<T>, holds: (value: T) => Promise<void>): Promise<void> {
	const startedAt = performance.now();
	let failedAt = Infinity;
	await fc.assert(
		fc.asyncProperty(arbitrary, async value => {
			const now = performance.now();
			if (failedAt === Infinity ? now - startedAt < timeMs : now - failedAt < shrinkingMs) {
				try {
					await holds(value);
				} catch (error) {
					failedAt = Math.min(failedAt, performance.now());
					throw error;
				}
			}
		}),
		{numRuns: 1000},
	);
}

class Run {
	readonly fixture: Fixture;
	readonly #calls: Array<{
		readonly call: string;
		readonly caller: AbortController;
		readonly answer: Promise<unknown>;
	}> = [];
	#fates: readonly Fate[];

	constructor(t: ExecutionContext, fates: readonly Fate[]) {
		this.#fates = fates;
		const pending = new Map<AbortSignal, Fate>();
		this.fixture = fixture(t, {
			cleanupTimeoutMs: 10,
			createTimeoutMs: 20,
			startTimeoutMs: 40,
			before: async (call, signal) => {
				const [next = 'done', ...rest] = this.#fates;
				this.#fates = rest;
				pending.set(signal, next);
				await (next === 'hangs' && !call.startsWith('records')
					? abortable(Promise.withResolvers<never>().promise, signal)
					: turns(typeof next === 'number' ? next : 0));
				if (next === 'fails before') {
					throw failure(call);
				}
			},
			after(call, signal) {
				// A relay that failed after it was made could not be known to its caller: that is the port's own
				// promise.
				if (pending.get(signal) === 'fails after' && call !== 'relays.open') {
					throw failure(call);
				}
			},
		});
	}

	async play(operations: readonly Operation[]): Promise<void> {
		for (const operation of operations) {
			if (operation.call === 'wait') {
				await turns(operation.turns);
			} else if (operation.call === 'hang up') {
				this.#calls[operation.which]?.caller.abort(
					new AdaptorError({code: 'cancelled', what: 'The caller hung up'}),
				);
			} else if (operation.call === 'end') {
				this.fixture.podVms.host.kill(`podvm-${podOf[operation.id] ?? ''}-${operation.id}`);
			} else {
				this.#begin(operation);
			}
		}
	}

	/** From now on the ports do as they are told. */
	calm(): void {
		this.#fates = [];
	}

	/** @throws when a caller gets no answer, or one that it should not get */
	async answers(): Promise<void> {
		for (const {call, answer} of this.#calls) {
			const error = await inTime(
				`an answer to ${call}`,
				answer.then(
					() => undefined,
					(thrown: unknown) => thrown,
				),
			);
			if (
				error !== undefined &&
				!(error instanceof AdaptorError && allowed[call.split(' ')[0] ?? '']?.includes(error.code))
			) {
				throw new Error(`${call} was answered with ${inspect(error)}`);
			}

			this.#assertSupersededByNewer(call, error);
		}
	}

	/** The newest sandbox of a pod never makes way for an older one. */
	#assertSupersededByNewer(call: string, error: AdaptorError | undefined): void {
		const [, newer] = /newer sandbox, (\w+)/.exec(error?.message ?? '') ?? [];
		const created = this.#calls.findIndex(other => other.call === `create ${call.split(' ')[1] ?? ''}`);
		if (newer !== undefined && created > this.#calls.findLastIndex(other => other.call === `create ${newer}`)) {
			throw new Error(`${call} made way for ${newer}, which is older`);
		}
	}

	#begin({call, id}: Call): void {
		const caller = new AbortController();
		const answer = callOn(this.fixture.registry, {call, id}, caller.signal);
		answer.catch(() => undefined);
		this.#calls.push({call: `${call} ${id}`, caller, answer});
	}
}

async function callOn(registry: Fixture['registry'], {call, id}: Call, signal: AbortSignal): Promise<unknown> {
	return call === 'create' ? registry.create(pod(id, podOf[id]), signal) : registry[call](id, signal);
}

/**
 * Codes that each call may fail with: what the ports threw ('data-loss'), what the caller did, and what the states say.
 */
const allowed: Readonly<Record<string, readonly string[]>> = {
	create: ['data-loss', 'cancelled', 'aborted', 'already-exists', 'deadline-exceeded', 'unavailable'],
	start: [
		'data-loss',
		'cancelled',
		'aborted',
		'not-found',
		'failed-precondition',
		'deadline-exceeded',
		'unavailable',
	],
	stop: ['data-loss', 'cancelled', 'deadline-exceeded', 'unavailable'],
};

function failure(call: PortCall): AdaptorError {
	return new AdaptorError({code: 'data-loss', what: `${call} failed by chance`});
}

async function turns(count: number): Promise<void> {
	for (let left = count; left > 0; left--) {
		await turn();
	}
}

async function inTime<T>(awaited: string, promise: Promise<T>): Promise<T> {
	using scope = new Scope().deadline(patienceMs, awaited);
	return await abortable(promise, scope.signal);
}

async function until(awaited: string, holds: () => Promise<boolean>): Promise<void> {
	const startedAt = performance.now();
	while (!(await holds())) {
		await turn();
		if (performance.now() - startedAt > patienceMs) {
			throw new Error(`Waited in vain for ${awaited}`);
		}
	}
}

test('property: all callers are answered, a pod has one VM at most, and a stop leaves nothing', async t => {
	await check(1200, fc.record(script), async ({operations, fates}) => {
		const run = new Run(t, fates);
		const {registry, podVms, left} = run.fixture;
		await run.play(operations);
		await run.answers();
		run.calm();
		await until('one VM a pod', async () => {
			const pods = (await podVms.list(never)).map(record => record.pod.name);
			return new Set(pods).size === pods.length;
		});
		for (const id of ids) {
			await inTime(`the last stop of ${id}`, registry.stop(id, never));
		}

		t.deepEqual(await left(), []);
		// Not only nothing, but nothing in the way either.
		for (const id of ids) {
			await registry.create(pod(id, podOf[id]), never);
			await registry.start(id, never);
			await registry.stop(id, never);
		}

		t.deepEqual(await left(), []);
		await registry[Symbol.asyncDispose]();
	});
});

test('whenever the daemon stops, callers are answered, and the next one knows all that is left', async t => {
	await check(1200, fc.record(script), async ({operations, fates}) => {
		const run = new Run(t, fates);
		const {registry, left, podVms, relays, restart} = run.fixture;
		await run.play(operations);
		await inTime('the registry to close', registry[Symbol.asyncDispose]());
		await run.answers();
		t.deepEqual([...relays.served.keys()], []);
		await checkSuccessor(t, await restart({orphanGraceMs: 0}), podVms, left);
	});
});

test('whenever the daemon is killed, the next one knows all that is left', async t => {
	await check(
		1200,
		fc.record({...script, turnsToLive: fc.integer({min: 0, max: 12})}),
		async ({operations, fates, turnsToLive}) => {
			const run = new Run(t, fates);
			const {left, podVms, restart} = run.fixture;
			await run.play(operations);
			await turns(turnsToLive);
			await using _corpse = run.fixture.kill();
			await checkSuccessor(t, await restart({orphanGraceMs: 0}), podVms, left);
		},
	);
});

/** Running VMs have a sandbox that is served; once all sandboxes are stopped nothing is left. */
async function checkSuccessor(
	t: ExecutionContext,
	successor: Fixture,
	podVms: Fixture['podVms'],
	left: Fixture['left'],
): Promise<void> {
	const {registry, records} = successor;
	await until('every VM to have a sandbox that runs', async () => {
		const running = new Set(
			(await records.readAll()).filter(({state}) => state === 'running').map(record => record.id),
		);
		return (await podVms.list(never)).every(
			({sandboxId}) =>
				running.has(sandboxId) && successor.relays.served.has(`/run/pods/${sandboxId}/agent.ttrpc`),
		);
	});
	for (const id of ids) {
		await inTime(`the last stop of ${id}`, registry.stop(id, never));
	}

	t.deepEqual(await successor.left(), []);
	t.deepEqual(
		(await left()).filter(name => !name.startsWith('socket')),
		[],
	);
	await registry[Symbol.asyncDispose]();
}

/** What a sandbox is for whoever calls one after the other. */
type Model = Map<string, 'created' | 'running' | 'failed'>;

test('for sequential calls, every answer matches a model of four lines', async t => {
	const calls = fc.array(
		fc.record({
			call: fc.constantFrom('create' as const, 'start' as const, 'stop' as const),
			id,
			fails: fc.integer({min: 0, max: 4}).map(n => n === 0),
		}),
		{minLength: 1, maxLength: 20},
	);
	await check(600, calls, async sequence => {
		let fails = false;
		const {registry} = fixture(t, {
			before(call) {
				if (fails && (call === 'relays.issue' || call === 'networks.attach')) {
					throw failure(call);
				}
			},
		});
		const model: Model = new Map();
		const answer = async (answered: Promise<unknown>): Promise<string> =>
			answered.then(
				() => 'ok',
				(error: unknown) => (error as AdaptorError).code,
			);
		const isGone = async (each: string): Promise<boolean> =>
			(await answer(registry.start(each, never))) === 'not-found';
		for (const step of sequence) {
			fails = step.fails;
			t.is(await answer(callOn(registry, step, never)), expected(model, step), JSON.stringify(sequence));
			// Those that were superseded go in the background.
			await until('the superseded to be gone', async () =>
				(await Promise.all(ids.filter(each => !model.has(each)).map(isGone))).every(Boolean),
			);
		}

		await registry[Symbol.asyncDispose]();
	});
});

/** The answer, 'ok' or a code; the model is what it is afterwards. */
function expected(model: Model, {call, id, fails}: Call & {readonly fails: boolean}): string {
	const state = model.get(id);
	if (call === 'stop') {
		model.delete(id);
		return 'ok';
	}

	if (call === 'create') {
		if (state !== undefined || fails) {
			return state === undefined ? 'data-loss' : 'already-exists';
		}

		for (const other of model.keys()) {
			if (podOf[other] === podOf[id]) {
				model.delete(other);
			}
		}

		model.set(id, 'created');
		return 'ok';
	}

	if (state === 'created') {
		model.set(id, fails ? 'failed' : 'running');
		return fails ? 'data-loss' : 'ok';
	}

	return state === undefined ? 'not-found' : state === 'failed' ? 'failed-precondition' : 'ok';
}
