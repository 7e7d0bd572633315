/**
 * The messages inside request and response frames, as protobuf (proto/ttrpc.proto; containerd/ttrpc, request.proto).
 * Knows no sockets and no streams. Payloads are views of the given bytes, never copies.
 * Unknown fields are skipped. Fields come in the order of their numbers, as the reference implementation writes them.
 */
import protobuf from 'protobufjs/minimal.js';
import {AdaptorError} from '../core/errors.ts';
import type {Status, StatusDetail} from './status.ts';

export interface Request {
	/** With its package, e.g. `hypervisor.Hypervisor`. */
	readonly service: string;
	readonly method: string;
	readonly payload: Buffer;
	/**
	 * 0: no deadline. Negative: a deadline that has passed. A bigint, because a number cannot represent all 64 bits.
	 */
	readonly timeoutNano: bigint;
	/** Keys may repeat. */
	readonly metadata: readonly KeyValue[];
}

export interface KeyValue {
	readonly key: string;
	readonly value: string;
}

export interface Response {
	/** Absent, or with code 0, is success. */
	readonly status?: Status;
	readonly payload: Buffer;
}

/** The parts of a request for a log line. */
export type RequestSummary = Pick<Request, 'service' | 'method' | 'timeoutNano'>;

/** More entries in one message are an attack on memory: an empty entry takes two bytes on the wire. */
const maxRepeated = 1024;

/**
 * Maximum number of fields of a message and its nested messages: enough for a list of `maxRepeated` entries with two
 * fields each. A field can be as small as two bytes.
 */
const maxFields = 4096;

const noBytes = Buffer.alloc(0);

const varint = 0;
const lengthDelimited = 2;
const startOfGroup = 3;
const endOfGroup = 4;

const tag = (field: number, wireType: number): number => (field << 3) | wireType;

const requestTag = {
	service: tag(1, lengthDelimited),
	method: tag(2, lengthDelimited),
	payload: tag(3, lengthDelimited),
	timeoutNano: tag(4, varint),
	metadata: tag(5, lengthDelimited),
} as const;
const keyValueTag = {key: tag(1, lengthDelimited), value: tag(2, lengthDelimited)} as const;
const responseTag = {status: tag(1, lengthDelimited), payload: tag(2, lengthDelimited)} as const;
const statusTag = {code: tag(1, varint), message: tag(2, lengthDelimited), details: tag(3, lengthDelimited)} as const;
const anyTag = {typeUrl: tag(1, lengthDelimited), value: tag(2, lengthDelimited)} as const;

/** @throws 'invalid-argument' if the bytes are not such a message */
export function decodeRequest(bytes: Buffer): Request {
	let service = '';
	let method = '';
	let payload: Buffer = noBytes;
	let timeoutNano = 0n;
	const metadata: KeyValue[] = [];
	readFields('Request', bytes, (field, reader, budget) => {
		switch (field) {
			case requestTag.service:
				service = readString(reader);
				return true;
			case requestTag.method:
				method = readString(reader);
				return true;
			case requestTag.payload:
				payload = readBytes(reader);
				return true;
			case requestTag.timeoutNano:
				timeoutNano = readInt64(reader);
				return true;
			case requestTag.metadata:
				append(metadata, decodeKeyValue(readBytes(reader), budget));
				return true;
			default:
				return false;
		}
	});
	return {service, method, payload, timeoutNano, metadata};
}

/**
 * Reads the parts for a log line and skips the rest. Undefined if the bytes are not a request: the server will report
 * that.
 */
export function peekMethod(bytes: Buffer): RequestSummary | undefined {
	let service = '';
	let method = '';
	let timeoutNano = 0n;
	try {
		readFields('Request', bytes, (field, reader) => {
			switch (field) {
				case requestTag.service:
					service = readString(reader);
					return true;
				case requestTag.method:
					method = readString(reader);
					return true;
				case requestTag.timeoutNano:
					timeoutNano = readInt64(reader);
					return true;
				default:
					return false;
			}
		});
	} catch {
		return undefined;
	}

	return {service, method, timeoutNano};
}

export function encodeRequest({service, method, payload, timeoutNano, metadata}: Request): Buffer {
	const writer = protobuf.Writer.create();
	writeString(writer, requestTag.service, service);
	writeString(writer, requestTag.method, method);
	writeBytes(writer, requestTag.payload, payload);
	if (timeoutNano !== 0n) {
		writer.uint32(requestTag.timeoutNano).int64(String(BigInt.asIntN(64, timeoutNano)));
	}

	for (const {key, value} of metadata) {
		writer.uint32(requestTag.metadata).fork();
		writeString(writer, keyValueTag.key, key);
		writeString(writer, keyValueTag.value, value);
		writer.ldelim();
	}

	return finish(writer);
}

/** @throws 'invalid-argument' if the bytes are not such a message */
export function decodeResponse(bytes: Buffer): Response {
	let status: Status | undefined;
	let payload: Buffer = noBytes;
	readFields('Response', bytes, (field, reader, budget) => {
		switch (field) {
			case responseTag.status:
				status = decodeStatus(readBytes(reader), budget);
				return true;
			case responseTag.payload:
				payload = readBytes(reader);
				return true;
			default:
				return false;
		}
	});
	return status === undefined ? {payload} : {status, payload};
}

/** The code of the status, without reading the rest: 0 if there is none, or if the bytes are not a response. */
export function peekStatus(bytes: Buffer): number {
	let code = 0;
	try {
		readFields('Response', bytes, (field, reader, budget) => {
			if (field !== responseTag.status) {
				return false;
			}

			readFields(
				'Status',
				readBytes(reader),
				(part, status) => {
					if (part !== statusTag.code) {
						return false;
					}

					code = status.int32();
					return true;
				},
				budget,
			);
			return true;
		});
	} catch {
		// The receiver of the response will report it.
	}

	return code;
}

/** Success with an empty payload is an empty message, as in the reference implementation. */
export function encodeResponse({status, payload}: Response): Buffer {
	const writer = protobuf.Writer.create();
	if (status !== undefined) {
		writer.uint32(responseTag.status).fork();
		writeStatus(writer, status);
		writer.ldelim();
	}

	writeBytes(writer, responseTag.payload, payload);
	return finish(writer);
}

function decodeKeyValue(bytes: Buffer, budget: FieldBudget): KeyValue {
	let key = '';
	let value = '';
	readFields(
		'KeyValue',
		bytes,
		(field, reader) => {
			switch (field) {
				case keyValueTag.key:
					key = readString(reader);
					return true;
				case keyValueTag.value:
					value = readString(reader);
					return true;
				default:
					return false;
			}
		},
		budget,
	);
	return {key, value};
}

function decodeStatus(bytes: Buffer, budget: FieldBudget): Status {
	let code = 0;
	let message = '';
	const details: StatusDetail[] = [];
	readFields(
		'Status',
		bytes,
		(field, reader) => {
			switch (field) {
				case statusTag.code:
					code = reader.int32();
					return true;
				case statusTag.message:
					message = readString(reader);
					return true;
				case statusTag.details:
					append(details, decodeAny(readBytes(reader), budget));
					return true;
				default:
					return false;
			}
		},
		budget,
	);
	return details.length === 0 ? {code, message} : {code, message, details};
}

function writeStatus(writer: protobuf.Writer, {code, message, details = []}: Status): void {
	if (code !== 0) {
		writer.uint32(statusTag.code).int32(code);
	}

	writeString(writer, statusTag.message, message);
	for (const {typeUrl, value} of details) {
		writer.uint32(statusTag.details).fork();
		writeString(writer, anyTag.typeUrl, typeUrl);
		writeBytes(writer, anyTag.value, value);
		writer.ldelim();
	}
}

function decodeAny(bytes: Buffer, budget: FieldBudget): StatusDetail {
	let typeUrl = '';
	let value: Buffer = noBytes;
	readFields(
		'Any',
		bytes,
		(field, reader) => {
			switch (field) {
				case anyTag.typeUrl:
					typeUrl = readString(reader);
					return true;
				case anyTag.value:
					value = readBytes(reader);
					return true;
				default:
					return false;
			}
		},
		budget,
	);
	return {typeUrl, value};
}

/** The number of fields that may still be read. */
interface FieldBudget {
	left: number;
}

/**
 * Passes each field to `take`, which reads it and returns true, or returns false to skip it.
 * @param budget of the enclosing message
 */
function readFields(
	message: string,
	bytes: Buffer,
	take: (field: number, reader: protobuf.Reader, budget: FieldBudget) => boolean,
	budget: FieldBudget = {left: maxFields},
): void {
	const reader = protobuf.Reader.create(bytes);
	const groups: number[] = [];
	try {
		while (reader.pos < reader.len) {
			const field = reader.uint32();
			if (field >>> 3 === 0) {
				throw new RangeError('field number 0');
			}

			if (budget.left-- === 0) {
				throw new RangeError(`more than ${maxFields} fields`);
			}

			// Proto3 has no groups. `skipType` of the reader would skip a whole group without counting its fields.
			if ((field & 7) === startOfGroup) {
				groups.push(field >>> 3);
			} else if ((field & 7) === endOfGroup) {
				if (groups.pop() !== field >>> 3) {
					throw new RangeError('the end of a group that did not begin');
				}
			} else if (groups.length > 0 || !take(field, reader, budget)) {
				reader.skipType(field & 7);
			}
		}

		if (groups.length > 0) {
			throw new RangeError('a group that does not end');
		}
	} catch (error) {
		throw error instanceof AdaptorError
			? error
			: new AdaptorError({
					code: 'invalid-argument',
					what: `Malformed ttrpc ${message}: ${error instanceof Error ? error.message : String(error)}`,
					cause: error,
				});
	}
}

/** The reader returns plain views; over a Buffer they are Buffers. */
function readBytes(reader: protobuf.Reader): Buffer {
	const bytes = reader.bytes();
	return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Not `string()` of the reader, which accepts a truncated text. */
function readString(reader: protobuf.Reader): string {
	return readBytes(reader).toString();
}

function readInt64(reader: protobuf.Reader): bigint {
	const {high, low} = reader.int64();
	// protobufjs accepts a 64-bit number that is truncated at the end of the message.
	if (reader.pos > reader.len || ((reader.buf[reader.pos - 1] ?? 0) & 0x80) !== 0) {
		throw new RangeError('a number is cut off');
	}

	return (BigInt(high) << 32n) | BigInt(low >>> 0);
}

function append<T>(list: T[], item: T): void {
	if (list.length === maxRepeated) {
		throw new RangeError(`more than ${maxRepeated} entries in a list`);
	}

	list.push(item);
}

function writeString(writer: protobuf.Writer, field: number, value: string): void {
	if (value !== '') {
		writer.uint32(field).string(value);
	}
}

function writeBytes(writer: protobuf.Writer, field: number, value: Buffer): void {
	if (value.length > 0) {
		writer.uint32(field).bytes(value);
	}
}

/** Over Buffers, the writer returns a Buffer. */
function finish(writer: protobuf.Writer): Buffer {
	const bytes = writer.finish();
	return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes);
}
