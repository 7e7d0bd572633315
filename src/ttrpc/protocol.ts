/**
 * Detects the protocol of a caller. An HTTP/2 client starts with `PRI * HTTP/2.0` (RFC 9113, 3.4); as a length in
 * ttrpc, `PRI ` would be 1.3 GB, so four bytes decide.
 */
import type {Socket} from 'node:net';

export type Protocol = 'ttrpc' | 'grpc';

const http2Preface = Buffer.from('PRI ');

/** The bytes that were read are put back. */
export function onProtocol(socket: Socket, chosen: (protocol: Protocol) => void): void {
	const seen: Buffer[] = [];
	let length = 0;
	const decide = (): void => {
		for (let chunk = readChunk(socket); chunk !== undefined; chunk = readChunk(socket)) {
			seen.push(chunk);
			length += chunk.length;
		}

		const start = Buffer.concat(seen, length);
		const common = Math.min(length, http2Preface.length);
		const mayBeHttp2 = start.subarray(0, common).equals(http2Preface.subarray(0, common));
		if (mayBeHttp2 && length < http2Preface.length) {
			return;
		}

		socket.off('readable', decide);
		socket.unshift(start);
		chosen(mayBeHttp2 ? 'grpc' : 'ttrpc');
	};

	// An error only ends the connection; without a listener it would end the process.
	socket.on('error', () => socket.destroy());
	socket.on('readable', decide);
}

function readChunk(socket: Socket): Buffer | undefined {
	return (socket.read() as Buffer | null) ?? undefined;
}
