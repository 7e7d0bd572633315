/**
 * One authenticated ssh connection: address, host key, keys and agent, keepalive, and errors that say what to do.
 * Knows nothing of libvirt. With the other ssh-*.ts files the only place that knows the ssh2 library.
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
	/** Whose `.ssh` holds known_hosts and keys. */
	readonly home: string;
	/** The user on the host when the URI names none. */
	readonly user: string;
	/** SSH_AUTH_SOCK. */
	readonly agentSocket: string | undefined;
	/** Of this process. */
	readonly uid?: number | undefined;
	/** How often the host is asked whether it is still there. Default 4000. */
	readonly keepaliveIntervalMs?: number;
	/**
	 * How many unanswered questions mean that it is not: the loss is noticed after (count + 1) intervals. Default 3.
	 */
	readonly keepaliveCount?: number;
}

export interface SshConnection {
	readonly client: Client;
	/** Why the connection broke, once it did: ssh2 tells it before 'close'. */
	lossReason(): Error | undefined;
	/** Says goodbye and closes the socket, by force if the goodbye does not get through. Idempotent. */
	hangUp(): void;
	/** Ends it without a word: what was written and has not arrived never will. Idempotent. */
	cut(): void;
}

/** How long a goodbye may take to leave a socket that its peer no longer reads. */
const goodbyeMs = 1000;

/**
 * @param signal ends the attempt at any point; the caller puts the deadline on it
 * @throws HostKeyError, AdaptorError 'unauthenticated', 'unavailable', or what is wrong with the key file
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

	// A socket of our own, so that the attempt can be ended at any point of it.
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
		// Also after every later exchange of keys.
		stage = stage === 'handshake' ? 'authentication' : stage;
	});
	client.on('ready', () => {
		stage = 'ready';
		resolve(undefined);
	});
	client.on('error', error => {
		// An agent that is not there, or a key that cannot sign: ssh2 goes on to the next.
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

/** Records the key, if it shall be. One that cannot be recorded is no reason to be without a connection. */
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
	const force = setTimeout(() => resetTcp(socket), goodbyeMs).unref();
	socket.once('close', () => clearTimeout(force));
}

interface Attempt {
	readonly label: string;
	readonly method: AnyAuthMethod;
}

/** The ways to authenticate, in order, and the story of how they went. */
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
		// A key that was named comes before an agent's, which may be so many that the server gives up first.
		const order =
			uri.sshauth ??
			(uri.keyfile === undefined ? (['agent', 'privkey'] as const) : (['privkey', 'agent'] as const));
		this.#attempts = order.flatMap(way => ways[way]);
	}

	/** @param onExhausted no way is left */
	handler(onExhausted: () => void): AuthHandlerMiddleware {
		// 'none' makes the server tell what it accepts, so that a failure can be explained.
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
