import {join} from 'node:path';
import test from 'ava';
import {noObserver} from '../../src/core/observer.ts';
import {RelayProcess} from '../../src/relay-process/relay-process.ts';
import {RemoteRelays} from '../../src/relay-process/remote-relays.ts';
import {relaySocketBeside} from '../../src/relay-process/socket-paths.ts';
import {agentRelaysContract} from '../contract/agent-relays.ts';
import {realHarness} from '../relay/harness.ts';
import {recordingLog} from '../support/recording-log.ts';

const {signal} = new AbortController();

agentRelaysContract(test, 'relays in a process of their own', async () => {
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
});
