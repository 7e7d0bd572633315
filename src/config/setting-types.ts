/**
 * Parsers for the text of settings. Each type describes its valid values for messages and documentation. Knows no
 * setting, environment or file: only the form of a path is checked, not whether the file exists.
 */
import {isPrefix} from '../core/ipv4.ts';
import {parseListenAddress, type ListenAddress} from '../core/listen-address.ts';
import {highestCpu, parseCpuset} from '../libvirt/cpuset.ts';
import {parseLibvirtUri, type LibvirtUri} from '../libvirt/uri.ts';
import {parseInitdata} from '../initdata/initdata.ts';
import type {Initdata} from '../sandbox/pod-request.ts';
import {parseCipherSuites, parseTlsMinVersion, type TlsMinVersion} from '../relay/tls-options.ts';
import {parseQuantity} from '../webhook/quantity.ts';

export interface ValueType<T> {
	/** Completes "expected …". */
	readonly expected: string;
	/** A flag of this type needs no value: `-name` means `-name=true`. */
	readonly isSwitch?: true;
	/** The value is not trimmed: `parse` also gets white space around it. */
	readonly isVerbatim?: true;
	/**
	 * The value of non-empty, trimmed text; `undefined` if the text is invalid.
	 * @throws AdaptorError if `expected` is not specific enough; the text is then not shown, so it may contain a secret
	 */
	parse(text: string): T | undefined;
}

export const boolean: ValueType<boolean> = {
	expected: 'true or false',
	isSwitch: true,
	parse(text) {
		const word = text.toLowerCase();
		return ['true', 't', '1'].includes(word) ? true : ['false', 'f', '0'].includes(word) ? false : undefined;
	},
};

export function integer(min: number, max: number, unit = ''): ValueType<number> {
	return {
		expected: `a whole number${unit === '' ? '' : ` of ${unit}`} from ${min} to ${max}`,
		parse(text) {
			const value = /^\d{1,15}$/v.test(text) ? Number(text) : Number.NaN;
			return value >= min && value <= max ? value : undefined;
		},
	};
}

export const port = integer(1, 65_535);
export const portOrAny = integer(0, 65_535);

export const listenAddress: ValueType<ListenAddress> = {
	expected: 'a port, which is served on 127.0.0.1, or an IP address and a port, such as 0.0.0.0:8003',
	parse: parseListenAddress,
};

export function oneOf<const T extends string>(...words: readonly T[]): ValueType<T> {
	return {
		expected: words.length === 1 ? `"${String(words[0])}", the only one supported` : `one of ${words.join(', ')}`,
		parse: text => words.find(word => word === text),
	};
}

export function textLike(expected: string, pattern: RegExp): ValueType<string> {
	return {expected, parse: text => (pattern.test(text) ? text : undefined)};
}

/** Identifiers are used in XML, file names and log lines. */
export const identifier = textLike('letters, digits and . _ - (at most 253)', /^[A-Za-z0-9._\-]{1,253}$/v);

/** The name of most Kubernetes objects (Kubernetes, "Object Names and IDs", DNS subdomain names). */
export const objectName = textLike(
	'lower-case letters, digits, - and . (at most 253)',
	/^[a-z\d](?:[a-z\d.\-]{0,251}[a-z\d])?$/v,
);

/** A resource outside kubernetes.io (Kubernetes, "Extended resources"). */
export const resourceName = textLike(
	'a domain and a name, as in example.com/device',
	/^(?=[^\/]{1,253}\/)[a-z\d](?:[a-z\d.\-]*[a-z\d])?\/[A-Za-z\d](?:[A-Za-z\d._\-]{0,61}[A-Za-z\d])?$/v,
);

/**
 * libvirt refuses `/` and control characters in the names of its objects; a path would be outside of the pool.
 */
export const libvirtName = textLike('a name without "/" and control characters', /^(?!\.{1,2}$)[^\/\p{Cc}]{1,255}$/v);

/**
 * A pattern for names of libvirt objects, with `*` and `?`. Commas separate patterns, so a comma in the name of a
 * volume is written as `?`.
 */
export const glob = textLike('a name or pattern without "/" and control characters', /^[^\/\p{Cc}]{1,255}$/v);

/** Linux: at most 15 bytes (IFNAMSIZ), no `/`, no white space, not `.` or `..`. */
export const interfaceName = textLike(
	'the name of a network interface (at most 15 characters)',
	/^(?!\.{1,2}$)[!-.0-~]{1,15}$/v,
);

/** @param maxBytes the limit where the path is used; by default that of the file system (PATH_MAX) */
export function absolutePath(maxBytes = 4095): ValueType<string> {
	return {
		expected: `an absolute path${maxBytes < 4095 ? ` of at most ${maxBytes} bytes` : ''}`,
		parse: text => (/^\/\P{Cc}*$/v.test(text) && Buffer.byteLength(text) <= maxBytes ? text : undefined),
	};
}

export const cpuset: ValueType<string> = {
	expected: `CPU numbers (0 to ${highestCpu}), rising ranges and, after "^", exclusions, separated by commas`,
	parse: text => (parseCpuset(text) === undefined ? undefined : text.replaceAll(/\s/gv, '')),
};

export function listOf(item: ValueType<string>, items: string): ValueType<readonly string[]> {
	return {
		expected: `${items} separated by commas`,
		parse(text) {
			const values = text.split(',').map(part => item.parse(part.trim()));
			return values.every(value => value !== undefined) ? Object.freeze(values) : undefined;
		},
	};
}

export const ipv4Prefix: ValueType<string> = {
	expected: 'an IPv4 prefix',
	parse: text => (isPrefix(text) ? text : undefined),
};

// The following types use the parsers of other folders, whose errors are the most specific. The error of the libvirt
// client never contains the password.

export const libvirtUri: ValueType<LibvirtUri> = {
	expected:
		'a libvirt URI without a password: qemu+ssh://[user@]host[:port]/system, qemu:///system or test:///default',
	parse: parseLibvirtUri,
};

/** Initdata is hashed byte by byte, so a final newline matters. */
export const initdata: ValueType<Initdata> = {
	expected: 'an initdata document: TOML, or TOML compressed with gzip and encoded with base64',
	isVerbatim: true,
	parse: parseInitdata,
};

export const tlsMinVersion: ValueType<TlsMinVersion> = {
	expected: 'VersionTLS12 or VersionTLS13',
	parse: parseTlsMinVersion,
};

export const cipherSuites: ValueType<readonly string[]> = {
	expected: 'IANA names of cipher suites separated by commas',
	parse: text => Object.freeze(parseCipherSuites(text)),
};

/** In nano-units. */
export const quantity: ValueType<bigint> = {
	expected: 'a non-negative Kubernetes quantity, such as 500m or 256Mi',
	parse(text) {
		const amount = parseQuantity(text);
		return amount !== undefined && amount >= 0n ? amount : undefined;
	},
};

/** A Go duration in whole milliseconds. */
export const duration: ValueType<number> = {
	expected: 'a duration with unit (ms, s, m, h) from 1ms to 24h',
	parse(text) {
		const ms = Math.round(parseGoDuration(text) ?? 0);
		return ms >= 1 && ms <= 86_400_000 ? ms : undefined;
	},
};

const unitMs: Readonly<Record<string, number>> = {
	ns: 1e-6,
	us: 1e-3,
	µs: 1e-3,
	μs: 1e-3,
	ms: 1,
	s: 1000,
	m: 60_000,
	h: 3_600_000,
};
const maxGoDurationMs = 2 ** 63 / 1e6;

/**
 * Milliseconds, to the nanosecond, of text such as `1h30m`, `1.5h` or `-100ms`; `undefined` if it is invalid.
 * Source: Go, package time, ParseDuration.
 */
export function parseGoDuration(text: string): number | undefined {
	const [, sign = '', amounts] = /^([+\-]?)(0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[nuµμm]s|[smh]))+)$/v.exec(text) ?? [];
	if (amounts === undefined) {
		return undefined;
	}

	let ms = 0;
	for (const [, amount, unit = ''] of amounts.matchAll(/([\d.]+)([a-zµμ]+)/gv)) {
		ms += Number(amount) * (unitMs[unit] ?? Number.NaN);
	}

	const rounded = Math.round(ms * 1e6) / 1e6;
	return rounded < maxGoDurationMs ? (sign === '-' && rounded > 0 ? -rounded : rounded) : undefined;
}
