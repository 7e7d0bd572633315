import test from 'ava';
import {agentRelaysContract} from '../contract/agent-relays.ts';
import {InMemoryAgentRelays} from '../support/in-memory-agent-relays.ts';
import {realHarness} from './harness.ts';

agentRelaysContract(test, 'relays over TLS', async () => realHarness({timings: {strangerMs: 50}}));

agentRelaysContract(test, 'relays in memory', async () => {
	const relays = new InMemoryAgentRelays();
	return {
		relays,
		directory: '/nowhere',
		address: n => `192.0.2.${n}`,
		boot: async (address, instanceName) => relays.boot(address, instanceName),
		isServed: async socketPath => relays.served.has(socketPath),
		call: async socketPath => relays.failures.get(socketPath)?.message ?? 'answered',
		async [Symbol.asyncDispose]() {
			// Holds nothing.
		},
	};
});
