/**
 * Answers that come on a connection to the VM that was silent and was replaced: each reaches the shim once, and where
 * one is lost, the shim is told so.
 */
import type {Socket} from 'node:net';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import type {AgentRelay} from '../../src/sandbox/ports.ts';
import {Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {decodeRequest} from '../../src/ttrpc/message.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {from} from '../contract/agent-relays.ts';
import {startForwarder, type Forwarder} from '../support/forwarder.ts';
import {startHole, type Hole, type Withheld} from '../support/hole.ts';
import {data, failure, FrameReader, request, response, statusOf} from './frames.ts';
import {connectShim, patient, realHarness, until, type LogLine} from './harness.ts';

const liveness = {doubtMs: 50, answerMs: 60_000, graceMs: 20, lateMs: 600_000};

/** Whom a process's status or output is to be sent to. */
interface Asker {
	readonly streamId: number;
	readonly vm: TLSSocket;
}

/**
 * An agent as kata's: it answers checks at once, sends an exit status to all that wait for it, and forgets the process
 * then. A process is named by the payload of the call.
 */
class Agent {
	/** How it answers a wait for a process that it does not know. */
	readonly unknownProcess: readonly [code: number, text: string];
	/** Requests in the order of their arrival, as `<number of the connection> <method> <stream>`. */
	readonly received: string[] = [];
	readonly connections: TLSSocket[] = [];
	readonly #ended = new Set<string>();
	readonly #waits = new Map<string, Asker[]>();
	/** Of reads and of waits for an event, the longest first. */
	readonly #takers = new Map<string, Asker[]>([
		['ReadStdout', []],
		['GetOOMEvent', []],
	]);

	constructor(unknownProcess: Agent['unknownProcess'] = [statusCode.notFound, 'InvalidExecId']) {
		this.unknownProcess = unknownProcess;
	}

	serve(vm: TLSSocket): void {
		const decoder = new FrameDecoder();
		const connection = this.connections.push(vm);
		vm.on('data', (chunk: Buffer) => {
			for (const frame of decoder.push(chunk)) {
				if (frame instanceof Frame && frame.type === frameType.request) {
					const {method, payload} = decodeRequest(frame.message);
					this.received.push(`${connection} ${method} ${frame.streamId}`);
					this.#answer(method, payload.toString(), {streamId: frame.streamId, vm});
				}
			}
		});
	}

	/** The process ends. */
	exit(name: string, status: string): void {
		this.#ended.add(name);
		for (const {vm, streamId} of this.#waits.get(name) ?? []) {
			vm.write(response(streamId, Buffer.from(status)));
		}
	}

	/** Answers the call of this method that has waited longest. */
	give(method: 'ReadStdout' | 'GetOOMEvent', what: string): void {
		const {vm, streamId} = this.#takers.get(method)?.shift() ?? {};
		vm?.write(response(streamId ?? 0, Buffer.from(what)));
	}

	#answer(method: string, name: string, asker: Asker): void {
		const {vm, streamId} = asker;
		const takers = this.#takers.get(method);
		if (takers !== undefined) {
			takers.push(asker);
		} else if (method !== 'WaitProcess') {
			vm.write(response(streamId));
		} else if (this.#ended.has(name)) {
			vm.write(failure(streamId, ...this.unknownProcess));
		} else {
			this.#waits.set(name, [...(this.#waits.get(name) ?? []), asker]);
		}
	}
}

interface Outage extends AsyncDisposable {
	readonly agent: Agent;
	readonly hole: Hole;
	readonly relay: AgentRelay;
	readonly forwarder: Forwarder;
	readonly shim: Socket;
	readonly fromVm: FrameReader;
	readonly lines: readonly LogLine[];
	/** Resolves when the agent has received this. */
	received(what: string): Promise<void>;
	/** A health check that is answered: everything before it was passed on. */
	checked(streamId: number): Promise<void>;
}

/** A shim that talks to an agent through a network on which packets can be withheld. */
async function outage(timings: Partial<typeof liveness> = {}, agent = new Agent()): Promise<Outage> {
	await using undo = new AsyncDisposableStack();
	const harness = undo.use(
		await realHarness({
			timings: {
				...patient,
				redialPauseMs: [1, 4],
				again: {retryMs: 10},
				liveness: {...liveness, ...timings},
			},
		}),
	);
	const {relays, directory, address, port, lines} = harness;
	const signal = AbortSignal.timeout(100_000);
	const tls = await relays.issue('podvm-a-12345678', signal);
	const forwarder = undo.use(
		await startForwarder({
			tls,
			address: address(2),
			port,
			allowHalfOpen: false,
			onConnection: vm => agent.serve(vm),
		}),
	);
	const hole = undo.use(await startHole({address: address(1), port, to: address(2)}));
	const socketPath = `${directory}/a/agent.ttrpc`;
	const relay = undo.use(
		await relays.open({sandboxId: 'a', instanceName: 'podvm-a-12345678', socketPath}, from(address(1)), signal),
	);
	const shim = await connectShim(socketPath);
	undo.defer(() => void shim.destroy());
	const fromVm = new FrameReader(shim);
	const all = undo.move();
	return {
		agent,
		hole,
		relay,
		forwarder,
		shim,
		fromVm,
		lines,
		async received(what) {
			await until(() => agent.received.includes(what));
		},
		async checked(streamId) {
			shim.write(request(streamId, 'Check', {timeoutMs: 60_000}));
			const answer = await fromVm.next();
			if (answer.streamId !== streamId || statusOf(answer).code !== statusCode.ok) {
				throw new Error(`stream ${answer.streamId} was answered: ${JSON.stringify(statusOf(answer))}`);
			}
		},
		[Symbol.asyncDispose]: async () => all.disposeAsync(),
	};
}

const wait = (streamId: number, name: string): Buffer => request(streamId, 'WaitProcess', {payload: Buffer.from(name)});

const said = ({lines}: Outage, message: string): readonly LogLine[] => lines.filter(({msg}) => msg === message);
const arrived = 'an answer arrived on a replaced connection to the VM';
const answersLost = 'answers of the VM were lost; the calls that waited for them failed';

/** A process ends while packets are withheld. The agent has sent its exit status, and no longer knows it. */
async function endedInOutage(run: Outage): Promise<Withheld> {
	const {agent, hole, shim} = run;
	shim.write(wait(1, 'p'));
	await run.received('1 WaitProcess 1');
	const withheld = hole.withhold();
	agent.exit('p', '7');
	return withheld;
}

for (const [version, unknownProcess] of [
	['newer', [statusCode.notFound, 'InvalidExecId']],
	['older', [statusCode.internal, 'Invalid exec id']],
] as const) {
	test(`an exit status that a ${version} agent sent into an outage reaches the shim, although the process is gone`, async t => {
		await using run = await outage({}, new Agent(unknownProcess));
		const withheld = await endedInOutage(run);
		// Doubted, asked on a second connection, and replaced by a third, where the process is gone.
		await run.checked(3);
		await run.received('3 WaitProcess 1');
		await run.checked(5);
		withheld.deliver();
		t.deepEqual((await run.fromVm.next()).bytes, response(1, Buffer.from('7')));
		await run.checked(7);
		t.deepEqual(run.fromVm.waiting, []);
		// Nothing else was awaited on the old connection.
		await until(() => run.forwarder.open === 1);
		const [line, ...more] = said(run, arrived);
		t.like(line, {level: 'info', method: 'grpc.AgentService/WaitProcess', code: 'OK', connection: 1});
		t.deepEqual([more, said(run, answersLost)], [[], []]);
	});
}

for (const how of ['is reset', 'stays silent'] as const) {
	test(`an exit status on an old connection that ${how} is lost, and the shim gets an error that says so`, async t => {
		await using run = await outage(how === 'is reset' ? {} : {lateMs: 500});
		const withheld = await endedInOutage(run);
		if (how === 'is reset') {
			await run.checked(3);
			await run.received('3 WaitProcess 1');
			await run.checked(5);
			withheld.reset();
		} else {
			run.shim.write(request(3, 'Check'));
		}

		// The time limit of the silent one may pass before the check is answered.
		const answers = await run.fromVm.take(how === 'is reset' ? 1 : 2);
		t.deepEqual(answers.map(({streamId}) => streamId).toSorted(), how === 'is reset' ? [1] : [1, 3]);
		const answer = answers.find(({streamId}) => streamId === 1) ?? t.fail();
		t.deepEqual([answer.streamId, statusOf(answer).code], [1, statusCode.dataLoss]);
		t.regex(
			statusOf(answer).message,
			/^The exit status is lost: .+ On another connection, the agent answered NOT_FOUND/,
		);
		t.like(said(run, answersLost)[0], {level: 'warn', count: 1});
		await run.checked(7);
		// The end of the silent one arrives.
		withheld.deliver();
		await until(() => run.forwarder.open === 1);
	});
}

test('an exit status that is lost in a reset of the only connection is an error that says so', async t => {
	await using run = await outage();
	const withheld = await endedInOutage(run);
	withheld.reset();
	const answer = await run.fromVm.next();
	t.deepEqual([answer.streamId, statusOf(answer).code], [1, statusCode.dataLoss]);
	t.regex(statusOf(answer).message, /^The exit status is lost/);
	t.is(said(run, answersLost).length, 1);
	await run.checked(3);
});

test('output that was sent into an outage arrives, and so do requests', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	shim.write(request(1, 'ReadStdout'));
	await run.received('1 ReadStdout 1');
	const withheld = hole.withhold();
	agent.give('ReadStdout', 'output');
	shim.write(request(3, 'CreateContainer', {timeoutMs: 60_000}));
	await run.checked(5);
	t.deepEqual(agent.received.slice(1), ['2 Check 5', '3 Check 5']);
	withheld.deliver();
	const answers = await fromVm.take(2);
	t.deepEqual(
		answers.map(({bytes}) => bytes),
		[response(1, Buffer.from('output')), response(3)],
	);
	await until(() => run.forwarder.open === 1);
	t.is(said(run, arrived).length, 2);
	t.is(agent.received.filter(line => line.endsWith('CreateContainer 3')).length, 1);
});

test('a process that ends after its wait was sent again is reported twice by the VM, and once to the shim', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	shim.write(Buffer.concat([wait(1, 'p'), request(3, 'ReadStdout')]));
	await run.received('1 ReadStdout 3');
	const withheld = hole.withhold();
	await run.checked(5);
	await run.received('3 WaitProcess 1');
	agent.exit('p', '7');
	t.deepEqual((await fromVm.next()).bytes, response(1, Buffer.from('7')));
	agent.give('ReadStdout', 'output');
	withheld.deliver();
	t.deepEqual((await fromVm.next()).bytes, response(3, Buffer.from('output')));
	await run.checked(7);
	t.deepEqual(fromVm.waiting, []);
	t.false(run.lines.some(({msg}) => msg.startsWith('the VM violated the protocol')));
});

test('"process not found" does not count while the exit status may arrive on another connection', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	const first = hole.withhold();
	shim.write(wait(1, 'p'));
	await run.checked(3);
	await run.received('3 WaitProcess 1');
	const second = hole.withhold();
	agent.exit('p', '7');
	// The agent gets the first request when it no longer knows the process.
	first.deliver();
	await run.received('1 WaitProcess 1');
	await run.checked(5);
	second.deliver();
	t.deepEqual((await fromVm.next()).bytes, response(1, Buffer.from('7')));
	await run.checked(7);
	t.deepEqual(fromVm.waiting, []);
	await until(() => run.forwarder.open === 1);
});

test('if a second WaitProcess fails on every connection, the shim gets that answer', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	agent.exit('p', '7');
	const withheld = hole.withhold();
	shim.write(wait(1, 'p'));
	await run.checked(3);
	await run.received('3 WaitProcess 1');
	await run.checked(5);
	withheld.deliver();
	t.deepEqual((await fromVm.next()).bytes, failure(1, statusCode.notFound, 'InvalidExecId'));
	t.deepEqual(said(run, answersLost), []);
});

test('an event in the response to an already answered call is passed to the call that waits for it', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	shim.write(request(1, 'GetOOMEvent'));
	await run.received('1 GetOOMEvent 1');
	const withheld = hole.withhold();
	await run.checked(3);
	await run.received('3 GetOOMEvent 1');
	withheld.deliver();
	for (const streamId of [1, 5, 7]) {
		if (streamId > 1) {
			shim.write(request(streamId, 'GetOOMEvent'));
			await run.received(`3 GetOOMEvent ${streamId}`);
		}

		agent.give('GetOOMEvent', `event ${streamId}`);
		t.deepEqual((await fromVm.next()).bytes, response(streamId, Buffer.from(`event ${streamId}`)));
	}

	await run.checked(9);
	t.deepEqual(fromVm.waiting, []);
});

test('a retired connection on which data arrives again has no time limit', async t => {
	await using run = await outage({lateMs: 3000});
	const {agent, hole, shim, fromVm} = run;
	shim.write(request(1, 'ReadStdout'));
	await run.received('1 ReadStdout 1');
	const withheld = hole.withhold();
	await run.checked(3);
	withheld.deliver();
	const deliveredAt = performance.now();
	await until(() => performance.now() > deliveredAt + 3500);
	agent.give('ReadStdout', 'late output');
	t.deepEqual((await fromVm.next()).bytes, response(1, Buffer.from('late output')));
});

test('two old connections are kept: one more ends the oldest, and its calls fail with the reason', async t => {
	await using run = await outage();
	const {hole, shim, fromVm} = run;
	for (const [n, streamId] of [1, 5, 9].entries()) {
		shim.write(request(streamId, 'ReadStdout'));
		await run.received(`${2 * n + 1} ReadStdout ${streamId}`);
		hole.withhold();
		shim.write(request(streamId + 2, 'Check'));
		if (n === 2) {
			const failed = await fromVm.next();
			t.deepEqual([failed.streamId, statusOf(failed).code], [1, statusCode.unavailable]);
			t.regex(
				statusOf(failed).message,
				/lost while this call was under way \(it was silent, and too many newer connections/,
			);
		}

		t.is((await fromVm.next()).streamId, streamId + 2);
	}

	t.like(said(run, answersLost)[0], {level: 'warn', count: 1});
	t.deepEqual(fromVm.waiting, []);
});

test('a call on an old connection is answered before its deadline', async t => {
	await using run = await outage();
	run.hole.withhold();
	run.shim.write(request(1, 'CreateContainer', {timeoutMs: 4000}));
	await run.checked(3);
	const answer = await run.fromVm.next();
	t.deepEqual([answer.streamId, statusOf(answer).code], [1, statusCode.unavailable]);
	t.regex(statusOf(answer).message, /did not answer it before its deadline/);
	await run.checked(5);
});

test('further data of a request whose connection was replaced fails the call', async t => {
	await using run = await outage();
	run.hole.withhold();
	run.shim.write(request(5, 'ReadStdout'));
	await run.checked(7);
	run.shim.write(data(5, Buffer.from('more')));
	const answer = await run.fromVm.next();
	t.deepEqual([answer.streamId, statusOf(answer).code], [5, statusCode.unavailable]);
	t.regex(statusOf(answer).message, /was replaced while this call was sent/);
});

for (const how of ['the VM is gone', 'the shim leaves', 'the relay is disposed'] as const) {
	test(`when ${how}, old connections are closed too`, async t => {
		await using run = await outage();
		const {hole, shim, fromVm, relay} = run;
		shim.write(request(1, 'ReadStdout'));
		await run.received('1 ReadStdout 1');
		const withheld = hole.withhold();
		await run.checked(3);
		if (how === 'the VM is gone') {
			relay.fail(new Error('crashed'));
			t.is(statusOf(await fromVm.next()).code, statusCode.unavailable);
		} else if (how === 'the shim leaves') {
			shim.destroy();
		} else {
			await relay[Symbol.asyncDispose]();
		}

		withheld.deliver();
		await run.forwarder.idle();
		t.pass();
	});
}
