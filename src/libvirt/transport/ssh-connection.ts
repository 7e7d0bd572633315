/**
 * One authenticated ssh connection: address, host key, keys and agent, keepalive, and errors with a remedy. Knows
 * nothing about libvirt. Only the ssh-*.ts files use the ssh2 library.
 */
import type {Socket} from 'node:net';
import ssh2, {type AnyAuthMethod, type AuthHandlerMiddleware, type Client} from 'ssh2';
import {AdaptorError, echoed, toError} from '../../core/errors.ts';
import {hostKeyCheck, type HostKeyCheck, type Unproven} from './host-keys.ts';
import {loadIdentities, type Identities} from './ssh-identities.ts';
import {connectTcp, resetTcp} from './tcp.ts';
import type {SshAuth, SshUri} from '../uri.ts';

export interface PipeLog {
	debug(fields: PipeLogFields, message: string): void;
	warn(fields: PipeLogFields, message: string): void;
}

export interface PipeLogFields {
	readonly host?: string;
	readonly path?: string;
	readonly port?: number;
	readonly reason?: string;
	readonly transport?: string;
	readonly uri?: string;
}

export interface SshOptions {
	readonly log: PipeLog;
	/** The home directory whose `.ssh` contains known_hosts and keys. */
	readonly home: string;
	/** The user on the host if the URI contains none. */
	readonly user: string;
	/** SSH_AUTH_SOCK. */
	readonly agentSocket: string | undefined;
	/** The user id of this process. */
	readonly uid?: number | undefined;
	/** The interval of keepalive requests. Default: 4000. */
	readonly keepaliveIntervalMs?: number;
	/**
	 * After this many unanswered requests the connection is lost; this is noticed after (count + 1) intervals. Default:
	 * 3.
	 */
	readonly keepaliveCount?: number;
}

export interface SshConnection {
	readonly client: Client;
	/** Why the connection was lost; ssh2 reports it before 'close'. */
	lossReason(): Error | undefined;
	/** Sends a disconnect message and closes the socket; after a time-out, forces it closed. Idempotent. */
	hangUp(): void;
	/**
	 * Resets the connection without a disconnect message: written data that has not arrived is discarded. Idempotent.
	 */
	cut(): void;
}

/** How long the disconnect message may wait for a peer that no longer reads. */
const disconnectMs = 1000;

/**
 * @param signal ends the attempt at any point; the caller adds the deadline
 * @throws HostKeyError; AdaptorError 'unauthenticated' or 'unavailable'; the error of the key file
 */
export async function connectSsh(uri: SshUri, options: SshOptions, signal: AbortSignal): Promise<SshConnection> {
	const hostKeys = await hostKeyCheck(uri, options.home, signal);
	const usesKeys = uri.sshauth?.includes('privkey') ?? true;
	const identities = usesKeys
		? await loadIdentities(uri.keyfile, options.home, options.uid, signal)
		: {usable: [], unusable: []};
	for (const {path} of identities.usable.filter(({exposed}) => exposed)) {
		options.log.warn({path, host: uri.host}, 'ssh key file is accessible to users other than its owner');
	}

	// A separate socket, so that the attempt can be aborted at any point.
	const socket = await connectTcp(uri.host, uri.port, signal).catch((error: unknown) => {
		signal.throwIfAborted();
		throw unreachable(uri, 'Could not connect to the host', toError(error));
	});
	const onAbort = (): void => {
		socket.destroy();
	};
	signal.addEventListener('abort', onAbort, {once: true});
	try {
		signal.throwIfAborted();
		return await handshake(socket, uri, options, hostKeys, identities);
	} catch (error) {
		socket.destroy();
		signal.throwIfAborted();
		throw error;
	} finally {
		signal.removeEventListener('abort', onAbort);
	}
}

async function handshake(
	socket: Socket,
	uri: SshUri,
	options: SshOptions,
	hostKeys: HostKeyCheck,
	identities: Identities,
): Promise<SshConnection> {
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	const client = new ssh2.Client();
	const auth = new Authentication(uri, options, identities);
	let stage: Stage = 'handshake';
	let refusal: Error | undefined;
	let broken: Error | undefined;
	let unproven: Unproven | undefined;
	client.on('handshake', () => {
		// This event also follows every later key exchange.
		stage = stage === 'handshake' ? 'authentication' : stage;
	});
	client.on('ready', () => {
		stage = 'ready';
		resolve(undefined);
	});
	client.on('error', error => {
		// An agent that does not run, or a key that cannot sign: ssh2 continues with the next.
		if (error.level === 'agent' || error.level === 'client-authentication') {
			auth.note(error.message);
			return;
		}

		broken ??= error;
		if (stage === 'ready') {
			resetTcp(socket); // ssh2 would only close it.
		}

		reject(refusal ?? failure(uri, stage, error, auth));
	});
	client.on('close', () =>
		reject(refusal ?? failure(uri, stage, broken ?? new Error('the host closed the connection'), auth)),
	);
	client.connect({
		sock: socket,
		username: auth.user,
		authHandler: auth.handler(() => {
			refusal ??= auth.failure();
			reject(refusal);
		}),
		hostVerifier: (key: Buffer): boolean => {
			try {
				const accepted = hostKeys.accept(key);
				if (accepted !== undefined && stage !== 'ready') {
					unproven = accepted;
				}

				return true;
			} catch (error) {
				refusal = toError(error);
				return false;
			}
		},
		algorithms: {serverHostKey: [...hostKeys.algorithms]},
		keepaliveInterval: options.keepaliveIntervalMs ?? 4000,
		keepaliveCountMax: options.keepaliveCount ?? 3,
		readyTimeout: 0,
	});
	await promise;
	await reportUnproven(unproven, uri, options.log);
	return {client, lossReason: () => broken, hangUp: () => hangUp(client, socket), cut: () => resetTcp(socket)};
}

/** Stores the key, if configured. A failure to store it does not fail the connection. */
async function reportUnproven(unproven: Unproven | undefined, {host, port}: SshUri, log: PipeLog): Promise<void> {
	if (unproven === undefined) {
		return;
	}

	const outcome =
		(await unproven.record?.().then(
			({path}) => `; stored in ${path}: from now on no other key is accepted`,
			(error: unknown) => `; ${toError(error).message}`,
		)) ?? '';
	log.warn({host, port, reason: `${unproven.warning}${outcome}`}, 'ssh host key accepted without verification');
}

function hangUp(client: Client, socket: Socket): void {
	if (socket.destroyed) {
		return;
	}

	client.end();
	socket.destroySoon();
	const force = setTimeout(() => resetTcp(socket), disconnectMs).unref();
	socket.once('close', () => clearTimeout(force));
}

interface Attempt {
	readonly label: string;
	readonly method: AnyAuthMethod;
}

/** The authentication methods, in order, and a record of their results for errors. */
class Authentication {
	readonly user: string;
	readonly #uri: SshUri;
	readonly #attempts: readonly Attempt[];
	readonly #identities: Identities;
	readonly #notes: string[] = [];
	#accepted: readonly string[] = [];

	constructor(uri: SshUri, options: SshOptions, identities: Identities) {
		this.#uri = uri;
		this.#identities = identities;
		const username = uri.user ?? options.user;
		this.user = username;
		const ways: Record<SshAuth, readonly Attempt[]> = {
			privkey: identities.usable.map(({path, key}) => ({
				label: `key ${path}`,
				method: {type: 'publickey', username, key},
			})),
			agent:
				options.agentSocket === undefined
					? []
					: [
							{
								label: `agent ${options.agentSocket}`,
								method: {type: 'agent', username, agent: options.agentSocket},
							},
						],
		};
		// A configured key is tried before the keys of an agent, because an agent may have so many that the server
		// gives up first.
		const order =
			uri.sshauth ??
			(uri.keyfile === undefined ? (['agent', 'privkey'] as const) : (['privkey', 'agent'] as const));
		this.#attempts = order.flatMap(way => ways[way]);
	}

	/** @param onExhausted called when no method is left */
	handler(onExhausted: () => void): AuthHandlerMiddleware {
		// 'none' makes the server list the methods that it accepts, which explains a failure.
		const left: AnyAuthMethod[] = [
			{type: 'none', username: this.user},
			...this.#attempts.map(({method}) => method),
		];
		return (accepted: readonly string[] | null, _partialSuccess, next) => {
			this.#accepted = accepted ?? this.#accepted;
			const method = left.shift();
			if (method === undefined) {
				onExhausted();
			} else {
				next(method);
			}
		};
	}

	note(text: string): void {
		this.#notes.push(text);
	}

	failure(cause?: Error): AdaptorError {
		const {host, port} = this.#uri;
		const tried = this.#attempts.map(({label}) => label);
		const unusable = this.#identities.unusable.map(({path, reason}) => `${path}: ${reason}`);
		return new AdaptorError({
			code: 'unauthenticated',
			what: `The host refused the ssh login of user ${this.user}; tried: ${tried.join(', ') || 'nothing, because there is neither a key file nor an agent'}${unusable.length > 0 ? `; not usable: ${unusable.join(', ')}` : ''}${this.#notes.length > 0 ? `; ${this.#notes.join('; ')}` : ''}`,
			where: {host, port, user: this.user, hostAccepts: this.#accepted.join(',')},
			remedy: `Add the public key to ~${this.user}/.ssh/authorized_keys on the host, or name the right key with keyfile= or the right user in the URI.`,
			cause,
		});
	}
}

type Stage = 'handshake' | 'authentication' | 'ready';

const networkRemedies: Readonly<Record<string, string>> = {
	ENOTFOUND: 'The name does not resolve: correct the host in the URI, or the resolver of this node.',
	EAI_AGAIN: 'The name cannot be resolved at present: check the resolver of this node.',
	ECONNREFUSED: 'Nothing listens on that port: check that sshd runs on the host, and the port in the URI.',
	EHOSTUNREACH: 'Check the network between this node and the host.',
	ENETUNREACH: 'Check the network between this node and the host.',
	ETIMEDOUT: 'The host does not answer: check the host in the URI, and the firewalls.',
};

function failure(uri: SshUri, stage: Stage, error: Error, auth: Authentication): AdaptorError {
	if (stage === 'authentication' && /authentication/i.test(error.message)) {
		return auth.failure(error);
	}

	return unreachable(uri, 'Could not open an ssh session on the host', error);
}

function unreachable({host, port}: SshUri, what: string, cause: Error): AdaptorError {
	const code = 'code' in cause && typeof cause.code === 'string' ? cause.code : '';
	return new AdaptorError({
		code: 'unavailable',
		what: `${what}: ${echoed(code || cause.message)}`,
		where: {host, port},
		remedy: networkRemedies[code] ?? 'Check that sshd runs on the host, and check its log.',
		cause,
	});
}
