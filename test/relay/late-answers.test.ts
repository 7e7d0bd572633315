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
import {startForwarder} from '../support/forwarder.ts';
import {startHole, type Hole} from '../support/hole.ts';
import {failure, FrameReader, request, response, statusOf} from './frames.ts';
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
	/** Requests in the order of their arrival, as `<number of the connection> <method> <stream>`. */
	readonly received: string[] = [];
	readonly connections: TLSSocket[] = [];
	readonly #ended = new Set<string>();
	readonly #waits = new Map<string, Asker[]>();
	readonly #reads: Asker[] = [];

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
		}).once('end', () => vm.end());
	}

	/** The process ends. */
	exit(name: string, status: string): void {
		this.#ended.add(name);
		for (const {vm, streamId} of this.#waits.get(name) ?? []) {
			vm.write(response(streamId, Buffer.from(status)));
		}
	}

	/** A process writes: whoever reads gets it. */
	write(output: string): void {
		const {vm, streamId} = this.#reads.shift() ?? {};
		vm?.write(response(streamId ?? 0, Buffer.from(output)));
	}

	#answer(method: string, name: string, asker: Asker): void {
		const {vm, streamId} = asker;
		if (method === 'ReadStdout') {
			this.#reads.push(asker);
		} else if (method !== 'WaitProcess') {
			vm.write(response(streamId));
		} else if (this.#ended.has(name)) {
			vm.write(failure(streamId, statusCode.notFound, 'InvalidExecId'));
		} else {
			this.#waits.set(name, [...(this.#waits.get(name) ?? []), asker]);
		}
	}
}

interface Outage extends AsyncDisposable {
	readonly agent: Agent;
	readonly hole: Hole;
	readonly relay: AgentRelay;
	readonly shim: Socket;
	readonly fromVm: FrameReader;
	readonly lines: readonly LogLine[];
	/** Resolves when the agent has received this. */
	received(what: string): Promise<void>;
	/** A health check that is answered: everything before it was passed on. */
	checked(streamId: number): Promise<void>;
}

/** A shim that talks to an agent through a network on which packets can be withheld. */
async function outage(timings: Partial<typeof liveness> = {}): Promise<Outage> {
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
	const agent = new Agent();
	undo.use(await startForwarder({tls, address: address(2), port, onConnection: vm => agent.serve(vm)}));
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

test('an exit status that was sent into an outage reaches the shim, although the process is gone by then', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	shim.write(wait(1, 'p'));
	await run.received('1 WaitProcess 1');
	const withheld = hole.withhold();
	agent.exit('p', '7');
	// Doubted, asked on a second connection, and replaced by a third, where the process is gone.
	await run.checked(3);
	await run.received('3 WaitProcess 1');
	await run.checked(5);
	withheld.deliver();
	t.deepEqual((await fromVm.next()).bytes, response(1, Buffer.from('7')));
	await run.checked(7);
	t.deepEqual(fromVm.waiting, []);
});

test('an exit status that is lost with its connection is an error that says so, and no other status', async t => {
	await using run = await outage();
	const {agent, hole, shim, fromVm} = run;
	shim.write(wait(1, 'p'));
	await run.received('1 WaitProcess 1');
	const withheld = hole.withhold();
	agent.exit('p', '7');
	await run.checked(3);
	await run.received('3 WaitProcess 1');
	await run.checked(5);
	withheld.reset();
	const answer = await fromVm.next();
	t.is(answer.streamId, 1);
	t.is(statusOf(answer).code, statusCode.dataLoss);
	t.regex(statusOf(answer).message, /exit status is lost/);
});
