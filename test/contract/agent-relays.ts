/** The contract of `AgentRelays`. Each implementation calls this suite once from its own test file. */
import {join} from 'node:path';
import type {ExecutionContext, TestFn} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {Scope} from '../../src/core/lifetime.ts';
import type {AgentRelays, ForwarderTls, RelayTarget} from '../../src/sandbox/ports.ts';

export interface AgentRelaysHarness extends AsyncDisposable {
	readonly relays: AgentRelays;
	/** An empty directory for one test, with a short path. */
	readonly directory: string;
	/** An address at which nothing answers before `boot`; a different one for each `n`. */
	readonly address: (n: number) => string;
	/** Until disposed, the VM with the certificate in `tls` answers at the address. */
	boot(address: string, instanceName: string, tls: ForwarderTls): Promise<AsyncDisposable | Disposable>;
	/** Whether a shim can connect. */
	isServed(socketPath: string): Promise<boolean>;
	/** Makes a call there. @returns 'answered' if the VM answered, otherwise the text of UNAVAILABLE */
	call(socketPath: string): Promise<string>;
}

export function agentRelaysContract(test: TestFn, name: string, makeHarness: () => Promise<AgentRelaysHarness>): void {
	const signal = (): AbortSignal => AbortSignal.timeout(100_000);
	const contract = (
		claim: string,
		check: (t: ExecutionContext, harness: AgentRelaysHarness) => Promise<void>,
	): void => {
		test(`${name}: ${claim}`, async t => {
			await using harness = await makeHarness();
			await check(t, harness);
		});
	};

	const target = ({directory}: AgentRelaysHarness, instanceName: string): RelayTarget => ({
		sandboxId: instanceName,
		instanceName,
		socketPath: join(directory, instanceName, 'agent.ttrpc'),
	});
	contract('every VM is issued a key and certificate of its own', async (t, {relays}) => {
		const one = await relays.issue('podvm-one', signal());
		const two = await relays.issue('podvm-two', signal());
		t.truthy(one.serverCert);
		t.not(one.serverCert, two.serverCert);
		t.not(one.serverKey?.reveal(), two.serverKey?.reveal());
		t.is(one.clientCa, two.clientCa);
	});

	contract('a relay serves its socket once its VM answers, and not before', async (t, harness) => {
		const {relays} = harness;
		const tls = await relays.issue('podvm-late', signal());
		const socket = target(harness, 'podvm-late');
		const opening = relays.open(socket, from(harness.address(1)), signal());
		t.false(await harness.isServed(socket.socketPath));
		await using vm = await harness.boot(harness.address(1), 'podvm-late', tls);
		await using relay = await opening;
		t.is(relay.address, harness.address(1));
		t.true(await harness.isServed(socket.socketPath));
		t.truthy(vm);
	});

	contract('another VM at a stale address is passed over', async (t, harness) => {
		const {relays} = harness;
		await using other = await harness.boot(
			harness.address(1),
			'podvm-other',
			await relays.issue('podvm-other', signal()),
		);
		await using right = await harness.boot(
			harness.address(2),
			'podvm-right',
			await relays.issue('podvm-right', signal()),
		);
		await using relay = await relays.open(
			target(harness, 'podvm-right'),
			from(harness.address(1), harness.address(2)),
			signal(),
		);
		t.is(relay.address, harness.address(2));
		t.truthy(other);
		t.truthy(right);
	});

	contract(
		"the error of the addresses, the VM's death, ends the opening at once and as it is",
		async (t, harness) => {
			const death = new AdaptorError({code: 'aborted', what: 'The VM ended: crashed'});
			const socket = target(harness, 'podvm-dead');
			const error = await t.throwsAsync(
				harness.relays.open(socket, failing(death, harness.address(1)), signal()),
			);
			t.is(error, death);
			t.false(await harness.isServed(socket.socketPath));
		},
	);

	contract('addresses that end without one reject as unavailable', async (t, harness) => {
		const error = await t.throwsAsync<AdaptorError>(
			harness.relays.open(target(harness, 'podvm-nowhere'), from(), signal()),
		);
		t.is(error.code, 'unavailable');
	});

	contract('an abort ends the opening with its reason, and the addresses are told', async (t, harness) => {
		const abort = new AbortController();
		const reason = new AdaptorError({code: 'cancelled', what: 'stopped'});
		const socket = target(harness, 'podvm-stopped');
		const {promise: returned, resolve} = Promise.withResolvers<true>();
		const addresses: AsyncIterable<string> = {
			[Symbol.asyncIterator]: () => {
				let first = true;
				return {
					async next() {
						if (first) {
							first = false;
							return {done: false, value: harness.address(1)};
						}

						abort.abort(reason);
						return new Promise(() => undefined);
					},
					async return() {
						resolve(true);
						return {done: true, value: undefined};
					},
				};
			},
		};
		t.is(await t.throwsAsync(harness.relays.open(socket, addresses, abort.signal)), reason);
		t.true(await returned);
		t.false(await harness.isServed(socket.socketPath));
	});

	contract('a deadline that is a setting is named', async (t, harness) => {
		using scope = new Scope(signal()).deadline(50, 'the forwarder', 'PROXY_TIMEOUT');
		const error = await t.throwsAsync<AdaptorError>(
			harness.relays.open(target(harness, 'podvm-silent'), endless(), scope.signal),
			{instanceOf: AdaptorError, message: /50 ms \(PROXY_TIMEOUT\)/},
		);
		t.is(error.code, 'deadline-exceeded');
	});

	contract('an aborted signal opens nothing', async (t, harness) => {
		const socket = target(harness, 'podvm-never');
		await t.throwsAsync(
			harness.relays.open(socket, from(harness.address(1)), AbortSignal.abort(new Error('too late'))),
			{message: 'too late'},
		);
		t.false(await harness.isServed(socket.socketPath));
	});

	contract(
		'a disposed relay serves no more, disposing again does nothing, and the path can be served anew',
		async (t, harness) => {
			const {relays} = harness;
			const socket = target(harness, 'podvm-again');
			await using vm = await harness.boot(
				harness.address(1),
				'podvm-again',
				await relays.issue('podvm-again', signal()),
			);
			const relay = await relays.open(socket, from(harness.address(1)), signal());
			await relay[Symbol.asyncDispose]();
			t.false(await harness.isServed(socket.socketPath));
			await using second = await relays.open(socket, from(harness.address(1)), signal());
			await relay[Symbol.asyncDispose]();
			t.true(await harness.isServed(socket.socketPath));
			t.truthy(vm);
			t.truthy(second);
		},
	);

	contract(
		'when the VM is said to be gone, calls fail with the first reason, and the socket is served until the relay is disposed',
		async (t, harness) => {
			const {relays} = harness;
			const socket = target(harness, 'podvm-gone');
			await using vm = await harness.boot(
				harness.address(1),
				'podvm-gone',
				await relays.issue('podvm-gone', signal()),
			);
			const relay = await relays.open(socket, from(harness.address(1)), signal());
			t.is(await harness.call(socket.socketPath), 'answered');
			relay.fail(new AdaptorError({code: 'aborted', what: 'The VM ended: crashed'}));
			relay.fail(new Error('a later reason'));
			t.regex(await harness.call(socket.socketPath), /The VM ended: crashed/);
			t.true(await harness.isServed(socket.socketPath));
			await relay[Symbol.asyncDispose]();
			relay.fail(new Error('too late'));
			t.false(await harness.isServed(socket.socketPath));
			await using second = await relays.open(socket, from(harness.address(1)), signal());
			t.is(await harness.call(socket.socketPath), 'answered');
			t.truthy(vm);
			t.truthy(second);
		},
	);

	contract(
		'a socket path that the kernel would not take is refused before anything is dialled',
		async (t, harness) => {
			const path = join(harness.directory, 'x'.repeat(120), 'agent.ttrpc');
			const addresses = {[Symbol.asyncIterator]: (): never => t.fail('dialled')};
			const error = await t.throwsAsync<AdaptorError>(
				harness.relays.open({sandboxId: 'x', instanceName: 'podvm-x', socketPath: path}, addresses, signal()),
			);
			t.is(error.code, 'invalid-argument');
			const refusal = t.throws<AdaptorError>(() => harness.relays.assertServable(path));
			t.is(refusal.code, 'invalid-argument');
			t.regex(refusal.message, /too long.*PODS_DIR/);
			t.notThrows(() => harness.relays.assertServable('/run/peerpod/pods/a/agent.ttrpc'));
		},
	);
}

/** Yields these addresses, then ends. */
export async function* from(...addresses: readonly string[]): AsyncGenerator<string> {
	yield* addresses;
}

async function* failing(error: Error, ...addresses: readonly string[]): AsyncGenerator<string, never> {
	yield* addresses;
	throw error;
}

/** No address, and no end. */
export async function* endless(): AsyncGenerator<string> {
	await new Promise(() => undefined);
	yield '';
}
