/** Makes one unary gRPC call over a unix socket. */
import {Client, credentials, Metadata} from '@grpc/grpc-js';
import type {loadContract} from '../../src/api/contract.ts';

type Method = ReturnType<typeof loadContract>['hypervisor'][string];

/** @throws a gRPC ServiceError */
export async function grpcCall(
	socketPath: string,
	method: Method | undefined,
	request: object,
	timeoutMs = 60_000,
): Promise<unknown> {
	if (method === undefined) {
		throw new TypeError('The contract has no such method');
	}

	const client = new Client(`unix:${socketPath}`, credentials.createInsecure());
	// On a slow CPU, a daemon may load gRPC for longer than a client waits for a connection by default.
	const patience = new Metadata({waitForReady: true});
	const {promise, resolve, reject} = Promise.withResolvers<unknown>();
	try {
		client.makeUnaryRequest(
			method.path,
			method.requestSerialize,
			method.responseDeserialize,
			request,
			patience,
			{deadline: Date.now() + timeoutMs},
			(error, response) => (error === null ? resolve(response) : reject(error)),
		);
		return await promise;
	} finally {
		client.close();
	}
}
