/**
 * Looks at a ttrpc conversation as it passes, for the log: which method, how long, which status. Skims the bytes: it reads each frame's
 * header and the message's first bytes, where service, method and status are, and holds nothing else, however large the message.
 * (A frame decoder would put together 4 MiB that nobody wants.) It forwards nothing and can break nothing: what it does not understand
 * ends the looking, not the conversation.
 */
import type {Logger} from '../log.ts';
import {frameType, headerLength, type FrameHeader} from '../ttrpc/frame.ts';

/** Enough for service and method (`grpc.AgentService`, `RemoveStaleVirtiofsShareMounts` take 52 bytes) and for a status' code. */
const prefixLength = 256;

/** Calls that are remembered while they wait for their answer. A shim has a few dozen; more would only be our memory. */
const maxOpenCalls = 4096;

const statusNames = [
	'OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED',
	'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED',
];

/** One connection's calls. */
export class CallObserver {
	readonly #log: Logger;
	readonly #now: () => number;
	readonly #open = new Map<number, {readonly method: string; readonly startedAt: number}>();
	readonly #fromShim = new FrameSkimmer((header, prefix) => this.#onRequest(header, prefix));
	readonly #fromVm = new FrameSkimmer((header, prefix) => this.#onResponse(header, prefix));
	#lost = false;

	/** @param now milliseconds that only grow */
	constructor(log: Logger, now: () => number) {
		this.#log = log;
		this.#now = now;
	}

	/** Calls that were not answered yet. */
	get openCalls(): number {
		return this.#open.size;
	}

	fromShim(chunk: Buffer): void {
		this.#skim(this.#fromShim, chunk);
	}

	fromVm(chunk: Buffer): void {
		this.#skim(this.#fromVm, chunk);
	}

	#skim(skimmer: FrameSkimmer, chunk: Buffer): void {
		if (this.#lost || skimmer.push(chunk)) {
			return;
		}

		this.#lost = true;
		this.#open.clear();
		this.#log.debug({reason: 'the bytes are no ttrpc frames'}, 'calls are no longer observed');
	}

	#onRequest({type, streamId}: FrameHeader, prefix: Buffer): void {
		if (type === frameType.request && this.#open.size < maxOpenCalls) {
			this.#open.set(streamId, {method: methodOf(prefix) ?? '?', startedAt: this.#now()});
		}
	}

	#onResponse({type, streamId}: FrameHeader, prefix: Buffer): void {
		const call = type === frameType.response ? this.#open.get(streamId) : undefined;
		if (call !== undefined) {
			this.#open.delete(streamId);
			const code = statusCodeOf(prefix);
			this.#log.debug({method: call.method, durationMs: Math.round((this.#now() - call.startedAt) * 10) / 10, code: statusNames[code] ?? String(code)}, 'agent call');
		}
	}
}

/** Bytes in; for each frame its header and the beginning of its message, as soon as that is there. */
export class FrameSkimmer {
	readonly #onFrame: (header: FrameHeader, prefix: Buffer) => void;
	/** Of the frame that is under way: its header, then the beginning of its message. */
	readonly #head = Buffer.alloc(headerLength + prefixLength);
	#filled = 0;
	#wanted = headerLength;
	/** Message bytes after those. */
	#toSkip = 0;

	constructor(onFrame: (header: FrameHeader, prefix: Buffer) => void) {
		this.#onFrame = onFrame;
	}

	/** False when these are no ttrpc frames; it must not be called again then. */
	push(chunk: Buffer): boolean {
		for (let position = 0; position < chunk.length;) {
			if (this.#toSkip > 0) {
				const skipped = Math.min(this.#toSkip, chunk.length - position);
				this.#toSkip -= skipped;
				position += skipped;
				continue;
			}

			const copied = chunk.copy(this.#head, this.#filled, position, position + this.#wanted - this.#filled);
			this.#filled += copied;
			position += copied;
			if (this.#filled === headerLength && this.#wanted === headerLength && !this.#measure()) {
				return false;
			}

			if (this.#filled === this.#wanted) {
				this.#finish();
			}
		}

		return true;
	}

	/** The header is there. */
	#measure(): boolean {
		const type = this.#head.readUInt8(8);
		if (type < frameType.request || type > frameType.data) {
			return false;
		}

		const length = this.#head.readUInt32BE(0);
		this.#wanted = headerLength + Math.min(length, prefixLength);
		return true;
	}

	/** Header and beginning are there. */
	#finish(): void {
		const header = {streamId: this.#head.readUInt32BE(4), type: this.#head.readUInt8(8), flags: this.#head.readUInt8(9)};
		this.#toSkip = this.#head.readUInt32BE(0) - (this.#wanted - headerLength);
		const prefix = this.#head.subarray(headerLength, this.#wanted);
		this.#filled = 0;
		this.#wanted = headerLength;
		this.#onFrame(header, prefix);
	}
}

/** `service/method` of a request whose end may be missing: fields 1 and 2, which every client writes first and in this order. */
export function methodOf(prefix: Buffer): string | undefined {
	const service = stringAt(prefix, 0, 0x0a);
	const method = service === undefined ? undefined : stringAt(prefix, service.end, 0x12);
	return service === undefined || method === undefined ? undefined : `${service.text}/${method.text}`;
}

/** A protobuf string shorter than 128 bytes, whose length is one byte therefore. */
function stringAt(bytes: Buffer, start: number, tag: number): {text: string; end: number} | undefined {
	const end = start + 2 + (bytes[start + 1] ?? 0);
	return bytes[start] === tag && end - start < 130 && end <= bytes.length ? {text: bytes.toString('latin1', start + 2, end), end} : undefined;
}

/** Of a response whose end may be missing: field 1 is a google.rpc.Status, whose field 1 is the code; both absent mean OK. */
function statusCodeOf(prefix: Buffer): number {
	if (prefix[0] !== 0x0a) {
		return 0;
	}

	const inner = 1 + prefix.subarray(1).findIndex(byte => byte < 0x80) + 1;
	return prefix[inner] === 0x08 ? (prefix[inner + 1] ?? 0) : 0;
}
