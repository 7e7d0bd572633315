/** Recorded conversations of a kata shim, and what the codec tests share. */
import {readFileSync} from 'node:fs';
import {Frame, FrameDecoder, type OversizedFrame} from '../../src/ttrpc/frame.ts';

export type Recording =
	`${'createvm' | 'startvm' | 'stopvm'}.${'request' | 'response'}.bin` | `agent.${'client' | 'server'}.bin`;

export const recordings: readonly Recording[] = [
	'createvm.request.bin',
	'createvm.response.bin',
	'startvm.request.bin',
	'startvm.response.bin',
	'stopvm.request.bin',
	'stopvm.response.bin',
	'agent.client.bin',
	'agent.server.bin',
];

export function recorded(name: Recording): Buffer {
	return readFileSync(new URL(`../fixtures/kata-shim/${name}`, import.meta.url));
}

export function decodeAll(
	chunks: Iterable<Uint8Array>,
	decoder: FrameDecoder = new FrameDecoder(),
): Array<Frame | OversizedFrame> {
	return [...chunks].flatMap(chunk => [...decoder.push(chunk)]);
}

/** The frames of bytes that hold no oversized one. */
export function framesOf(bytes: Buffer): Frame[] {
	return decodeAll([bytes]).map(frame => {
		if (!(frame instanceof Frame)) {
			throw new TypeError('An oversized frame where none was expected');
		}

		return frame;
	});
}

/** `bytes` cut after each of the given fractions (0 to 1) of its length. */
export function cut(bytes: Buffer, fractions: readonly number[]): Buffer[] {
	const ends = [
		...fractions.map(fraction => Math.floor(fraction * bytes.length)).sort((a, b) => a - b),
		bytes.length,
	];
	return ends.map((end, index) => bytes.subarray(ends[index - 1] ?? 0, end));
}
