/** The agent client recognises the end of a stream, which agents report in different ways. */
import {duplexPair} from 'node:stream';
import {fileURLToPath} from 'node:url';
import {loadSync} from '@grpc/proto-loader';
import test from 'ava';
import {TtrpcClient} from '../../src/ttrpc/client.ts';
import {TtrpcServer} from '../../src/ttrpc/server.ts';
import type {ServiceDefinition} from '../../src/ttrpc/service.ts';
import {statusCode, TtrpcError} from '../../src/ttrpc/status.ts';
import {AgentClient} from './agent-client.ts';

const definition = loadSync(fileURLToPath(new URL('agent.proto', import.meta.url)), {keepCase: true, defaults: true})[
	'grpc.AgentService'
] as unknown as ServiceDefinition;

for (const [version, end] of [
	[
		'3.4, an error',
		async () => Promise.reject(new TtrpcError({code: statusCode.internal, message: 'read meet eof'})),
	],
	['4.1, a success without data', async () => ({})],
] as const) {
	test(`output ends with what kata-agent ${version}, ends it with`, async t => {
		const [near, far] = duplexPair();
		await using server = new TtrpcServer({
			toStatus: error => (error instanceof TtrpcError ? error.status : undefined),
		});
		const chunks = ['one ', 'two'];
		server.register({
			definition,
			handlers: {
				ReadStdout: async () => {
					const data = chunks.shift();
					return data === undefined ? end() : {data: Buffer.from(data)};
				},
			},
		});
		server.serve(far);
		await using client = new TtrpcClient(near);
		t.is(
			await new AgentClient(client).readAll('Stdout', {container_id: 'c'}, AbortSignal.timeout(60_000)),
			'one two',
		);
	});
}
