/** An API server and a client of it, for one test. */
import type {ExecutionContext} from 'ava';
import {KubernetesClient, type ClientOptions} from '../../src/kubernetes/client.ts';
import {silentLogger} from '../../src/core/log.ts';
import {TestApiServer} from '../support/api-server.ts';

export interface TestCluster {
	readonly api: TestApiServer;
	readonly client: KubernetesClient;
	/** Aborts at the end of the test. */
	readonly signal: AbortSignal;
}

export async function testCluster(t: ExecutionContext, options: Partial<ClientOptions> = {}): Promise<TestCluster> {
	const api = await TestApiServer.start();
	const client = clientOf(api, options);
	const ending = new AbortController();
	t.teardown(async () => {
		ending.abort();
		client[Symbol.dispose]();
		await api[Symbol.asyncDispose]();
	});
	return {api, client, signal: ending.signal};
}

/** With pauses short enough for a test. */
export function clientOf(api: TestApiServer, options: Partial<ClientOptions> = {}): KubernetesClient {
	return new KubernetesClient({
		server: api.address,
		account: api.account,
		log: silentLogger,
		retryMs: [1, 5],
		watchRetryMs: [1, 5],
		refusedRetryMs: [1, 5],
		settleMs: 1,
		...options,
	});
}
