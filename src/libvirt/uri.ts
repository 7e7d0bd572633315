/**
 * Connection URIs in libvirt's syntax, parsed into the parts that the transports need. Source: libvirt, docs/uri.rst
 * and docs/remote.rst. Knows no sockets or files; paths are only text.
 */
import {AdaptorError} from '../core/errors.ts';

export type LibvirtUri = UnixUri | SshUri;

interface Connection {
	readonly driver: 'qemu' | 'test';
	/** `/system`; for the test driver `/default`, or the path of a file on the daemon's host. */
	readonly path: string;
	/** The URI that the daemon opens: without transport, host and parameters. */
	readonly remoteUri: string;
	/** `socket=`: the socket of the daemon, instead of the default ones. */
	readonly socket: string | undefined;
	/**
	 * Which daemon to connect to: that of the driver (`direct`, for example virtqemud) or libvirtd (`legacy`). `auto`
	 * tries both, in this order.
	 */
	readonly mode: 'auto' | 'direct' | 'legacy';
	/** Parameters without a meaning here; logged once. */
	readonly warnings: readonly string[];
	/** The original text. Contains no secret: passwords are refused. */
	readonly text: string;
}

export interface UnixUri extends Connection {
	readonly transport: 'unix';
}

export interface SshUri extends Connection {
	readonly transport: 'ssh';
	/** The name of the current user is used if absent. */
	readonly user: string | undefined;
	/** A name or an address; IPv6 without brackets. */
	readonly host: string;
	readonly port: number;
	/** `keyfile=`: the only key file to use. */
	readonly keyfile: string | undefined;
	/** `known_hosts=`: instead of `~/.ssh/known_hosts`. */
	readonly knownHosts: string | undefined;
	/** `normal` refuses unknown and changed host keys, `auto` only changed ones, `ignore` (and `no_verify=1`) none. */
	readonly hostKeys: 'normal' | 'auto' | 'ignore';
	/** `sshauth=`: only these methods, in this order. */
	readonly sshauth: readonly SshAuth[] | undefined;
	/**
	 * How to reach the socket of the daemon: `native` with virt-ssh-helper, `netcat` with nc, `auto` with the first
	 * that works.
	 */
	readonly proxy: 'auto' | 'native' | 'netcat';
	/** The name of nc on the host. */
	readonly netcat: string;
}

export type SshAuth = 'agent' | 'privkey';

/** The parameters: supported by this client, or only known to libvirt. */
const parameterNames = {
	socket: 'used',
	mode: 'used',
	keyfile: 'ssh',
	known_hosts: 'ssh',
	known_hosts_verify: 'ssh',
	no_verify: 'ssh',
	sshauth: 'ssh',
	proxy: 'ssh',
	netcat: 'ssh',
	no_tty: 'silent',
	command: 'ignored',
	name: 'ignored',
	auth: 'ignored',
	no_sanity: 'ignored',
	pkipath: 'ignored',
	tls_priority: 'ignored',
} as const;
type ParameterName = keyof typeof parameterNames;

const examples =
	'Examples: qemu:///system, qemu+ssh://root@192.168.122.1/system?keyfile=/root/.ssh/id_rsa, test:///default.';

/**
 * @param text for example `qemu+ssh://root@kvm.example:22/system?keyfile=/root/.ssh/id_ed25519`
 * @throws AdaptorError 'invalid-argument', naming the invalid part; never contains anything that could be a password
 */
export function parseLibvirtUri(text: string): LibvirtUri {
	// Checked first, so that no later error can contain a password: refuses anything like `user:password@`, even if
	// malformed.
	if (/^[^?#]*?\/\/[^?#@[]*:[^?#]*@/.test(text)) {
		throw invalid(
			'The libvirt URI contains a password',
			{},
			'Remove the password from the URI. Passwords are not supported: use a key (keyfile=…) or an ssh agent.',
		);
	}

	const {scheme, authority, path, query} =
		/^(?<scheme>[\w+.-]*):\/\/(?<authority>[^/?#]*)(?<path>\/[^?#]*)?(?:\?(?<query>[^#]*))?$/.exec(text)?.groups ??
		{};
	if (scheme === undefined || authority === undefined) {
		throw invalid('The libvirt URI is malformed', {}, examples);
	}

	const [driverText = '', transportText] = scheme.split(/\+(.*)/s);
	const driver = oneOf('driver', driverText, ['qemu', 'test']);
	const transport = transportOf(transportText, authority);
	const parameters = parseQuery(query ?? '');
	const warnings = Object.keys(parameters)
		.filter(
			name =>
				parameterNames[name as ParameterName] === 'ignored' ||
				(transport === 'unix' && parameterNames[name as ParameterName] === 'ssh'),
		)
		.map(name => `The parameter ${name} of the libvirt URI is not supported and is ignored`);
	const socket = nonEmpty(parameters, 'socket');
	const decodedPath = checkPath(driver, decode('path', path ?? ''), socket);
	const connection = {
		driver,
		path: decodedPath,
		remoteUri: `${driver}://${path ?? ''}`,
		socket,
		mode: oneOf('mode', parameters.mode ?? 'auto', ['auto', 'direct', 'legacy']),
		warnings: Object.freeze(warnings),
		text,
	};
	return Object.freeze(
		transport === 'unix'
			? {...connection, transport}
			: {...connection, transport, ...parseAuthority(authority), ...sshParameters(parameters)},
	);
}

/**
 * The sockets of the daemons for this URI, best first. Source: libvirt, src/remote/remote_sockets.c. The test driver
 * has no separate daemon.
 */
export function socketPaths({socket, driver, mode}: LibvirtUri): readonly string[] {
	if (socket !== undefined) {
		return [socket];
	}

	const direct = driver === 'test' || mode === 'legacy' ? [] : ['/run/libvirt/virtqemud-sock'];
	const legacy = driver === 'qemu' && mode === 'direct' ? [] : ['/run/libvirt/libvirt-sock'];
	return [...direct, ...legacy];
}

function transportOf(transport: string | undefined, authority: string): 'unix' | 'ssh' {
	switch (transport) {
		case 'ssh':
		case 'libssh':
		case 'libssh2':
			return 'ssh';
		case 'unix':
		case undefined:
			if (authority !== '') {
				throw invalid(
					'The libvirt URI has a host but no transport',
					{},
					'Write qemu+ssh://HOST/system for a remote host, qemu:///system for this one.',
				);
			}

			return 'unix';
		default:
			throw invalid(
				'The transport of the libvirt URI is not supported',
				{transport},
				'Supported are ssh (qemu+ssh://) and unix (qemu:///).',
			);
	}
}

function checkPath(driver: 'qemu' | 'test', path: string, socket: string | undefined): string {
	if (driver === 'test') {
		if (path.length < 2) {
			throw invalid(
				'The libvirt URI has no path',
				{driver},
				"Write test:///default, or test:///PATH of a file on the daemon's host.",
			);
		}

		return path;
	}

	if (path === '/session' && socket === undefined) {
		throw invalid(
			'The libvirt URI refers to a session daemon, whose socket is unknown',
			{},
			'Use /system, or name the socket: ?socket=/run/user/UID/libvirt/libvirt-sock.',
		);
	}

	if (path !== '/system' && path !== '/session') {
		throw invalid(
			'The QEMU driver does not support the path of the libvirt URI',
			{path},
			'Write qemu:///system or qemu+ssh://HOST/system.',
		);
	}

	return path;
}

function parseAuthority(authority: string): Pick<SshUri, 'user' | 'host' | 'port'> {
	const {user, v6, name, port} =
		/^(?:(?<user>[^@]*)@)?(?:\[(?<v6>[^\]]*)\]|(?<name>[^:@[\]]*))(?::(?<port>\d*))?$/.exec(authority)?.groups ??
		{};
	const host = decode('host', v6 ?? name ?? '');
	if (!/^[^\s/\p{Cc}]+$/u.test(host)) {
		throw invalid(
			'The libvirt URI has no valid host',
			{},
			'Write qemu+ssh://[USER@]HOST[:PORT]/system, with IPv6 addresses in brackets.',
		);
	}

	const portNumber = port === undefined || port === '' ? 22 : Number(port);
	if (portNumber < 1 || portNumber > 65_535) {
		throw invalid(
			'The port of the libvirt URI is out of range',
			{port: portNumber},
			'Ports are 1 to 65535; without one it is 22.',
		);
	}

	return {user: user === undefined || user === '' ? undefined : decode('user', user), host, port: portNumber};
}

function sshParameters(
	parameters: Parameters,
): Pick<SshUri, 'keyfile' | 'knownHosts' | 'hostKeys' | 'sshauth' | 'proxy' | 'netcat'> {
	const verify = parameters.known_hosts_verify;
	const noVerify = parameters.no_verify;
	if (noVerify !== undefined && !/^\d+$/.test(noVerify)) {
		throw invalid(
			'no_verify of the libvirt URI is not a number',
			{no_verify: noVerify},
			'Write no_verify=1 to skip the check of the host key, or leave it out.',
		);
	}

	const skips = noVerify !== undefined && Number(noVerify) !== 0;
	if (skips && verify !== undefined && verify !== 'ignore') {
		throw invalid(
			'no_verify and known_hosts_verify of the libvirt URI contradict each other',
			{no_verify: noVerify, known_hosts_verify: verify},
			'Remove one of them.',
		);
	}

	const proxy = oneOf('proxy', parameters.proxy ?? 'auto', ['auto', 'native', 'netcat']);
	const netcat = nonEmpty(parameters, 'netcat');
	if (proxy === 'native' && netcat !== undefined) {
		throw invalid('netcat= and proxy=native of the libvirt URI contradict each other', {}, 'Remove one of them.');
	}

	if (proxy === 'native' && parameters.socket !== undefined) {
		throw invalid(
			'socket= and proxy=native of the libvirt URI contradict each other',
			{},
			'virt-ssh-helper only supports the default sockets: remove one of them.',
		);
	}

	return {
		keyfile: nonEmpty(parameters, 'keyfile'),
		knownHosts: nonEmpty(parameters, 'known_hosts'),
		hostKeys: skips ? 'ignore' : oneOf('known_hosts_verify', verify ?? 'normal', ['normal', 'auto', 'ignore']),
		sshauth: parameters.sshauth === undefined ? undefined : sshAuth(parameters.sshauth),
		proxy,
		netcat: netcat ?? 'nc',
	};
}

function sshAuth(text: string): readonly SshAuth[] {
	const ways = text
		.split(',')
		.map(way => oneOf('sshauth', way, ['agent', 'privkey', 'password', 'keyboard-interactive']));
	const supported = ways.filter(way => way === 'agent' || way === 'privkey');
	if (supported.length === 0) {
		throw invalid(
			'sshauth of the libvirt URI allows no method without user interaction',
			{sshauth: text},
			'Add privkey (a key file) or agent (an ssh agent).',
		);
	}

	return Object.freeze([...new Set(supported)]);
}

type Parameters = Partial<Record<ParameterName, string>>;

/** Separated by `&` or `;`; the last of equal names wins; `+` is a plus sign. As in virURIParseParams of libvirt. */
function parseQuery(query: string): Parameters {
	const parameters: Parameters = {};
	for (const part of query.split(/[&;]/).filter(text => text !== '')) {
		const [rawName = '', rawValue = ''] = part.split(/=(.*)/s);
		const name = decode('parameter name', rawName);
		if (!Object.hasOwn(parameterNames, name)) {
			throw invalid(
				'The libvirt URI has an unknown parameter',
				{parameter: name},
				`Supported are ${Object.keys(parameterNames).join(', ')}.`,
			);
		}

		parameters[name as ParameterName] = decode(name, rawValue);
	}

	return parameters;
}

function nonEmpty(parameters: Parameters, name: ParameterName): string | undefined {
	if (parameters[name] === '') {
		throw invalid(
			'A parameter of the libvirt URI is empty',
			{parameter: name},
			`Give ${name}= a value, or leave it out.`,
		);
	}

	return parameters[name];
}

function oneOf<const T extends string>(part: string, value: string, allowed: readonly T[]): T {
	const found = allowed.find(candidate => candidate === value);
	if (found === undefined) {
		throw invalid(
			`The ${part} of the libvirt URI is not supported`,
			{[part]: value},
			`Supported: ${allowed.join(', ')}.`,
		);
	}

	return found;
}

function decode(part: string, text: string): string {
	let decoded: string;
	try {
		decoded = decodeURIComponent(text);
	} catch (error) {
		throw invalid(
			`The ${part} of the libvirt URI is not validly percent-encoded`,
			{},
			'Write a percent sign as %25.',
			error,
		);
	}

	if (decoded.includes('\0')) {
		throw invalid(`The ${part} of the libvirt URI contains a null character`, {}, 'Remove it.');
	}

	return decoded;
}

function invalid(what: string, where: Record<string, string | number>, remedy: string, cause?: unknown): AdaptorError {
	return new AdaptorError({code: 'invalid-argument', what, where, remedy, cause});
}
