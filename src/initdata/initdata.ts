/**
 * Initdata: the TOML document with which the owner of a pod configures the programs in its VM (attestation agent, data
 * hub, policy). Attestation covers its digest. Checks the text and converts it to the form that pod VMs read. Pure;
 * knows neither pods nor settings. It is not part of the domain because it needs a TOML parser; the domain gets it as a
 * function.
 *
 * Sources: confidential-containers/trustee, kbs/docs/initdata.md (the document); cloud-api-adaptor, pkg/initdata.
 */
import {createHash} from 'node:crypto';
import {crc32, gunzipSync} from 'node:zlib';
import {parse, TomlError} from 'smol-toml';
import {AdaptorError, type ErrorWhere} from '../core/errors.ts';
import type {Initdata} from '../sandbox/pod-request.ts';
import {tomlSize} from './toml-bounds.ts';

/** The limit of all annotations of a Kubernetes object. */
const maxBytes = 262_144;
/**
 * Real documents have a few dozen keys, with values of many lines. The parser needs a few milliseconds for this number.
 */
const maxParts = 2000;
const maxLines = 20_000;
const algorithms = ['sha256', 'sha384', 'sha512'] as const;
const remedy = 'Use the TOML document, or the output of "gzip -c initdata.toml | base64 -w0".';

/**
 * @param text the document, base64 of the gzipped document, or base64 of the plain document for images before v0.14;
 * the plain form is passed to the VM unchanged
 * @param where for errors
 * @throws AdaptorError 'invalid-argument', without the content of the document
 */
export function parseInitdata(text: string, where: ErrorWhere = {}): Initdata {
	const refuse = (what: string): never => {
		throw new AdaptorError({code: 'invalid-argument', what: `The initdata ${what}`, where, remedy});
	};

	// Twice: base64, and gzip of incompressible data, add to the size.
	if (text.length > 2 * maxBytes) {
		refuse(`is larger than ${maxBytes} bytes`);
	}

	// Base64 contains no quotes; a document needs them for its algorithm.
	const isEncoded = !/["']/v.test(text);
	if (!text.isWellFormed()) {
		refuse('is not valid Unicode');
	}

	const given = isEncoded ? (bytesOfBase64(text) ?? refuse('is neither TOML nor base64')) : Buffer.from(text);
	const isCompressed = given.subarray(0, 2).equals(gzipMagic);
	const document = isCompressed ? unpacked(given, refuse) : given;
	if (document.length > maxBytes) {
		refuse(`is larger than ${maxBytes} bytes`);
	}

	const algorithm = algorithmOf(document, refuse);
	return Object.freeze({
		content: (isEncoded && !isCompressed ? document : storedGzip(document)).toString('base64'),
		digest: `${algorithm}:${createHash(algorithm).update(document).digest('hex')}`,
	});
}

type Refuse = (what: string) => never;

function bytesOfBase64(text: string): Buffer | undefined {
	const digits = text.replaceAll(/\s/gv, '');
	return digits.length % 4 === 0 && /^[A-Za-z\d+\/]+={0,2}$/v.test(digits)
		? Buffer.from(digits, 'base64')
		: undefined;
}

function unpacked(bytes: Buffer, refuse: Refuse): Buffer {
	try {
		return gunzipSync(bytes, {maxOutputLength: maxBytes});
	} catch (error) {
		return refuse(
			error instanceof RangeError
				? `is larger than ${maxBytes} bytes when it is unpacked`
				: 'is damaged: gzip cannot decompress it',
		);
	}
}

/** The parts that the VM and attestation require. The content of the files is not checked here. */
function algorithmOf(document: Buffer, refuse: Refuse): (typeof algorithms)[number] {
	const {algorithm, version, data} = parsed(document, refuse);
	if (typeof version !== 'string' || version.length > 64 || !/^\d+\.\d+\.\d+$/v.test(version)) {
		refuse('has no version such as "0.1.0"');
	}

	if (
		typeof data !== 'object' ||
		data === null ||
		Array.isArray(data) ||
		Object.values(data).some(value => typeof value !== 'string')
	) {
		refuse('has no table [data] that contains only strings');
	}

	return (
		algorithms.find(known => known === algorithm) ??
		refuse(`has no algorithm that is one of ${algorithms.join(', ')}`)
	);
}

function parsed(document: Buffer, refuse: Refuse): Readonly<Record<string, unknown>> {
	let text: string;
	try {
		text = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(document);
	} catch {
		return refuse('is not UTF-8');
	}

	const {parts, lines} = tomlSize(text);
	if (parts > maxParts) {
		refuse(`has more than ${maxParts} keys, tables and values`);
	}

	if (lines > maxLines) {
		refuse(`has more than ${maxLines} lines`);
	}

	try {
		return parse(text);
	} catch (error) {
		// The message of the parser quotes the lines around the error.
		return refuse(
			`is not valid TOML${error instanceof TomlError ? ` (line ${error.line}, column ${error.column})` : ''}`,
		);
	}
}

const gzipMagic = Buffer.from([0x1f, 0x8b]);
const maxBlockBytes = 0xff_ff;

/**
 * gzip without compression: the same bytes on every machine and with every version of zlib, and there is room on a
 * disk. Source: RFC 1952 (no time, no name, OS unknown), RFC 1951 3.2.4 (stored blocks).
 */
function storedGzip(content: Buffer): Buffer {
	const parts: Buffer[] = [Buffer.from([...gzipMagic, 8, 0, 0, 0, 0, 0, 0, 255])];
	for (let start = 0; start < content.length; start += maxBlockBytes) {
		const block = content.subarray(start, start + maxBlockBytes);
		const header = Buffer.alloc(5);
		header.writeUInt8(start + maxBlockBytes >= content.length ? 1 : 0);
		header.writeUInt16LE(block.length, 1);
		header.writeUInt16LE(block.length ^ 0xff_ff, 3);
		parts.push(header, block);
	}

	const trailer = Buffer.alloc(8);
	trailer.writeUInt32LE(crc32(content));
	trailer.writeUInt32LE(content.length, 4);
	return Buffer.concat([...parts, trailer]);
}
