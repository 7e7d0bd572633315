/** Frames of the agent's conversation, made and read. */
import type {Duplex} from 'node:stream';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {decodeResponse, encodeRequest, encodeResponse} from '../../src/ttrpc/message.ts';
import {statusCode} from '../../src/ttrpc/status.ts';

export interface RequestOptions {
	readonly payload?: Buffer;
	readonly timeoutMs?: number;
}

/** @param method of `grpc.AgentService`, or `Check` */
export function request(
	streamId: number,
	method: string,
	{payload = Buffer.alloc(0), timeoutMs = 0}: RequestOptions = {},
): Buffer {
	const service = method === 'Check' ? 'grpc.Health' : 'grpc.AgentService';
	return encodeFrame(
		{streamId, type: frameType.request, flags: 0},
		encodeRequest({
			service,
			method,
			payload,
			timeoutNano: BigInt(Math.round(timeoutMs * 1e6)),
			metadata: [],
		}),
	);
}

export function response(streamId: number, payload: Buffer = Buffer.alloc(0)): Buffer {
	return encodeFrame({streamId, type: frameType.response, flags: 0}, encodeResponse({payload}));
}

export function failure(streamId: number, code: number, message = ''): Buffer {
	return encodeFrame(
		{streamId, type: frameType.response, flags: 0},
		encodeResponse({status: {code, message}, payload: Buffer.alloc(0)}),
	);
}

export function data(streamId: number, message: Buffer): Buffer {
	return encodeFrame({streamId, type: frameType.data, flags: 0}, message);
}

/** The only frame of these bytes. */
export function frameOf(bytes: Buffer): Frame {
	const [frame] = new FrameDecoder().push(bytes);
	if (!(frame instanceof Frame)) {
		throw new TypeError('not one whole frame');
	}

	return frame;
}

/** Status code and text of a response; code 0 when there is none. */
export function statusOf(frame: Frame): {code: number; message: string} {
	return decodeResponse(frame.message).status ?? {code: statusCode.ok, message: ''};
}

/** Cuts in pieces of these sizes, over and over. */
export function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
	const pieces: Buffer[] = [];
	for (let position = 0, n = 0; position < bytes.length; n++) {
		const size = sizes[n % sizes.length] ?? 1;
		pieces.push(bytes.subarray(position, position + size));
		position += size;
	}

	return pieces;
}

/** Reads a socket as frames: in the order of their arrival, one for each `next()`. */
export class FrameReader {
	/** That arrived and were not asked for. */
	readonly waiting: Frame[] = [];
	readonly #takers: Array<(frame: Frame) => void> = [];
	readonly #decoder = new FrameDecoder();

	constructor(socket: Duplex) {
		socket
			.on('error', () => undefined)
			.on('data', (chunk: Buffer) => {
				for (const frame of this.#decoder.push(chunk)) {
					if (frame instanceof Frame) {
						const taker = this.#takers.shift();
						if (taker === undefined) {
							this.waiting.push(frame);
						} else {
							taker(frame);
						}
					}
				}
			});
	}

	/** Bytes of a frame that is not whole. */
	get heldBytes(): number {
		return this.#decoder.heldBytes;
	}

	async next(): Promise<Frame> {
		return (
			this.waiting.shift() ??
			new Promise(resolve => {
				this.#takers.push(resolve);
			})
		);
	}

	async take(count: number): Promise<Frame[]> {
		const frames: Frame[] = [];
		while (frames.length < count) {
			frames.push(await this.next());
		}

		return frames;
	}
}
