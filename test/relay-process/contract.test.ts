import {join} from 'node:path';
import test from 'ava';
import type {AdaptorError} from '../../src/core/errors.ts';
import {Scope} from '../../src/core/lifetime.ts';
import {noObserver} from '../../src/core/observer.ts';
import {RelayProcess} from '../../src/relay-process/relay-process.ts';
import {RemoteRelays} from '../../src/relay-process/remote-relays.ts';
import {relaySocketBeside} from '../../src/relay-process/socket-paths.ts';
import {agentRelaysContract, endless, type AgentRelaysHarness} from '../contract/agent-relays.ts';
import {realHarness} from '../relay/harness.ts';
import {recordingLog} from '../support/recording-log.ts';

const {signal} = new AbortController();

agentRelaysContract(test, 'relays in a process of their own', relayProcess);

test('the error of an opening has its parts, as without a process of its own', async t => {
	await using harness = await relayProcess();
	using scope = new Scope(signal).deadline(50, 'the forwarder', 'PROXY_TIMEOUT');
	const target = {sandboxId: 'a', instanceName: 'podvm-a', socketPath: join(harness.directory, 'a/agent.ttrpc')};
	const error = await t.throwsAsync<AdaptorError>(harness.relays.open(target, endless(), scope.signal));
	t.is(
		error.what,
		'Could not reach the forwarder of the pod VM within 50 ms (PROXY_TIMEOUT): the VM has no address yet',
	);
	t.is(error.where['instanceName'], 'podvm-a');
	t.regex(error.remedy ?? '', /^Check the console of the VM/);
});

async function relayProcess(): Promise<AgentRelaysHarness> {
	const real = await realHarness({timings: {strangerMs: 50}});
	const hypervisorSocket = join(real.directory, 'h.sock');
	const log = recordingLog();
	const process = await RelayProcess.start(
		{hypervisorSocket, makeRelays: () => real.relays, observer: noObserver, log},
		signal,
	);
	const relays = await RemoteRelays.connect(
		{relaySocket: relaySocketBeside(hypervisorSocket), observer: noObserver, log},
		signal,
	);
	return {
		relays,
		directory: real.directory,
		address: real.address,
		boot: async (at, instanceName, tls) => real.boot(at, instanceName, tls),
		isServed: async path => real.isServed(path),
		async call(socketPath) {
			// Answered after all that was asked before.
			await relays.issue('podvm-any', signal);
			return real.call(socketPath);
		},
		async [Symbol.asyncDispose]() {
			await relays[Symbol.asyncDispose]();
			await process[Symbol.asyncDispose]();
			await real[Symbol.asyncDispose]();
		},
	};
}
