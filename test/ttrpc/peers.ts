/** A server on a real unix socket, well-behaved and rule-breaking clients for it, and a service to call. */
import {once} from 'node:events';
import {mkdtempSync, rmSync} from 'node:fs';
import {createConnection, createServer, type Socket} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {loadSync} from '@grpc/proto-loader';
import type {ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {connect, type ClientMethod, type ClientOptions, type TtrpcClient} from '../../src/ttrpc/client.ts';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {decodeResponse, encodeRequest, type Request, type Response} from '../../src/ttrpc/message.ts';
import {TtrpcServer, type ServerOptions} from '../../src/ttrpc/server.ts';
import type {Handler, ServiceDefinition} from '../../src/ttrpc/service.ts';

/** proto/hypervisor.proto as the contract loads it, for ttrpc and gRPC alike. */
export const hypervisor: ServiceDefinition & Readonly<Record<string, ClientMethod<object, object>>> = loadSync(
	fileURLToPath(new URL('../../proto/hypervisor.proto', import.meta.url)),
	{defaults: true, keepCase: true},
)['hypervisor.Hypervisor'] as never;

/** A method of `hypervisor` for `TtrpcClient.call`. */
export function method(name: string): ClientMethod<object, object> {
	const found = hypervisor[name];
	if (found === undefined) {
		throw new TypeError(`No method ${name}`);
	}

	return found;
}

export interface Peer {
	readonly path: string;
	readonly server: TtrpcServer;
	/** Sockets as the listener accepted them. */
	readonly accepted: Socket[];
	/** Resolves, as `raw` does, when its socket is among the accepted. */
	client(options?: ClientOptions): Promise<TtrpcClient>;
	raw(): Promise<RawClient>;
}

/** A ttrpc server on a socket of its own, with the given handlers of `hypervisor`. */
export async function serve(
	t: ExecutionContext,
	handlers: Readonly<Record<string, Handler>>,
	options: Partial<ServerOptions> = {},
	accept: (server: TtrpcServer, socket: Socket) => void = (to, socket) => to.serve(socket),
): Promise<Peer> {
	const directory = mkdtempSync(join(tmpdir(), 'caat-ttrpc-'));
	const path = join(directory, 'socket');
	const server = new TtrpcServer({toStatus, ...options});
	server.register({definition: hypervisor, handlers});
	const accepted: Socket[] = [];
	const listener = createServer(socket => {
		accepted.push(socket);
		accept(server, socket);
	});
	listener.listen(path);
	await once(listener, 'listening');
	t.teardown(async () => {
		await server.close();
		listener.close();
		await once(listener, 'close');
		rmSync(directory, {recursive: true});
	});
	return {
		path,
		server,
		accepted,
		client: async clientOptions => {
			const [client] = await Promise.all([
				connect(path, AbortSignal.timeout(60_000), clientOptions),
				once(listener, 'connection'),
			]);
			t.teardown(async () => client.close());
			return client;
		},
		raw: async () => {
			const [raw] = await Promise.all([RawClient.connect(path), once(listener, 'connection')]);
			t.teardown(() => raw.socket.destroy());
			return raw;
		},
	};
}

const toStatus: ServerOptions['toStatus'] = error =>
	error instanceof AdaptorError && error.code === 'not-found' ? {code: 5, message: error.message} : undefined;

/** Writes what it is told and shows what comes back, frame by frame. */
export class RawClient {
	readonly socket: Socket;
	readonly received: Frame[] = [];
	readonly #decoder = new FrameDecoder();

	constructor(socket: Socket) {
		this.socket = socket;
		socket.on('error', () => undefined);
		socket.on('data', chunk => {
			for (const frame of this.#decoder.push(chunk)) {
				if (frame instanceof Frame) {
					this.received.push(frame);
					socket.emit('frame');
				}
			}
		});
	}

	static async connect(path: string): Promise<RawClient> {
		const socket = createConnection(path);
		await once(socket, 'connect');
		return new RawClient(socket);
	}

	/** @param header what shall not be as in a unary request on stream 1 */
	request(request: Partial<Request>, header: {streamId?: number; type?: number; flags?: number} = {}): void {
		const message = encodeRequest({
			service: 'hypervisor.Hypervisor',
			method: 'Version',
			payload: Buffer.alloc(0),
			timeoutNano: 0n,
			metadata: [],
			...request,
		});
		this.socket.write(encodeFrame({streamId: 1, type: frameType.request, flags: 0, ...header}, message));
	}

	/** The first `count` frames, in the order of their arrival. */
	async frames(count: number): Promise<readonly Frame[]> {
		const signal = AbortSignal.timeout(60_000);
		while (this.received.length < count) {
			await once(this.socket, 'frame', {signal});
		}

		return this.received.slice(0, count);
	}

	/** The first `count` responses by stream id, in the order of their arrival. */
	async responses(count: number): Promise<Array<[number, Response]>> {
		return (await this.frames(count)).map(frame => [frame.streamId, decodeResponse(frame.message)]);
	}

	/** The codes of the first `count` responses, with their stream ids. */
	async codes(count: number): Promise<Array<[number, number]>> {
		return (await this.responses(count)).map(([streamId, {status}]) => [streamId, status?.code ?? 0]);
	}
}
