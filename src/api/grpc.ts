/** The same services over gRPC, with health and reflection, for runtimes and people that prefer gRPC. */
import type {Socket} from 'node:net';
import {
	Metadata,
	Server,
	ServerCredentials,
	type handleUnaryCall,
	type sendUnaryData,
	type ServerUnaryCall,
	type status,
} from '@grpc/grpc-js';
import {ReflectionService} from '@grpc/reflection';
import {HealthImplementation} from 'grpc-health-check';
import {AdaptorError} from '../core/errors.ts';
import type {Contract} from './contract.ts';
import type {Service, UnaryHandler} from './services.ts';
import type {Status} from './status.ts';

export interface GrpcEndpoint extends AsyncDisposable {
	/** Serves an accepted connection. */
	accept(socket: Socket): void;
}

export interface GrpcOptions {
	readonly contract: Contract;
	readonly services: readonly Service[];
	readonly toStatus: (error: unknown) => Status;
	/** How long disposing waits for running calls. */
	readonly drainTimeoutMs: number;
}

export function grpcEndpoint({contract, services, toStatus, drainTimeoutMs}: GrpcOptions): GrpcEndpoint {
	const server = new Server();
	for (const {definition, handlers} of services) {
		const implementation = Object.fromEntries(
			Object.entries(handlers).map(([name, handler]) => [
				name,
				unary(handler as UnaryHandler<unknown, object>, toStatus),
			]),
		);
		server.addService(definition, implementation);
	}

	new HealthImplementation({
		'': 'SERVING',
		...Object.fromEntries(services.map(({name}) => [name, 'SERVING'] as const)),
	}).addToServer(server);
	new ReflectionService(contract.definition).addToServer(server);
	const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
	let closed: Promise<void> | undefined;
	return {
		accept: socket => injector.injectConnection(socket),
		async [Symbol.asyncDispose]() {
			closed ??= (async () => {
				// Idle connections end at once, others after their last call or at the time limit. (`forceShutdown`
				// does not include injected connections.)
				injector.drain(drainTimeoutMs);
				const {promise, resolve} = Promise.withResolvers<undefined>();
				server.tryShutdown(() => resolve(undefined));
				await promise;
			})();
			await closed;
		},
	};
}

function unary(
	handler: UnaryHandler<unknown, object>,
	toStatus: (error: unknown) => Status,
): handleUnaryCall<unknown, object> {
	const answer = async (call: ServerUnaryCall<unknown, object>, callback: sendUnaryData<object>): Promise<void> => {
		const abort = new AbortController();
		// grpc-js does not distinguish the deadline of the caller, a caller that hung up, and the end of draining.
		call.on('cancelled', () =>
			abort.abort(
				new AdaptorError({
					code: 'cancelled',
					what: 'The caller cancelled the call or its deadline has passed',
					where: {method: call.getPath()},
				}),
			),
		);
		try {
			callback(null, await handler(call.request, {signal: abort.signal}));
		} catch (error) {
			const {code, message} = toStatus(error);
			// grpc-js defines the same numbers as an enum.
			callback({code: code as unknown as status, details: message, metadata: new Metadata()});
		}
	};

	return (call, callback) => void answer(call, callback);
}
