/**
 * Connects to libvirt's socket on the host over an ssh connection: by forwarding to the socket, by virt-ssh-helper, or
 * by nc, whichever the host supports. The next connection tries the route that worked first. Does not know libvirt's
 * protocol.
 *
 * All refused forwardings look alike ("open failed"), whether sshd forbids them or nothing listens, so each failure
 * leads to the next route. A command that cannot work fails only after its channel is open, and libvirt sends nothing
 * before it is asked. So a short command first surveys what the host has, and a channel that ends without a byte lowers
 * the rank of its route for the next connection.
 */
import type {ClientChannel} from 'ssh2';
import {AdaptorError, toError} from '../../core/errors.ts';
import {abortable, Scope} from '../../core/lifetime.ts';
import {quoted} from '../../core/shell.ts';
import type {OpenPipe, Pipe} from './pipe.ts';
import {SshChannel, type ChannelEvents} from './ssh-channel.ts';
import {connectSsh, type SshConnection, type SshOptions} from './ssh-connection.ts';
import {runRemote} from './ssh-command.ts';
import {socketPaths, type SshUri} from '../uri.ts';

export interface SshPipeOptions extends SshOptions {
	/**
	 * Time-out of the whole connection: name resolution, connection, keys, authentication, route to the socket.
	 * Default: 20000.
	 */
	readonly connectTimeoutMs?: number;
}

type Route =
	| {readonly kind: 'socket'; readonly name: string; readonly socket: string}
	| {readonly kind: 'helper'; readonly name: string; readonly command: string}
	| {readonly kind: 'netcat'; readonly name: string; readonly command: string; readonly socket: string};

/** The commands and sockets that the survey found; undefined if the survey failed. */
type Survey = ReadonlySet<string> | undefined;

export function openSshPipe(uri: SshUri, options: SshPipeOptions): OpenPipe {
	const routes = routesFor(uri);
	/** Lowest first: 0 worked last time, 1 unknown, 2 closed without a byte. */
	const ranks = new Map<Route, 0 | 1 | 2>(routes.map(route => [route, 1]));
	const worked = (route: Route): void => {
		for (const [other, rank] of ranks) {
			ranks.set(other, other === route ? 0 : rank === 0 ? 1 : rank);
		}
	};

	return async signal => {
		const timeoutMs = options.connectTimeoutMs ?? 20_000;
		using scope = new Scope(signal).deadline(timeoutMs, `libvirt at ${uri.host} over ssh`);
		const connection = await connectSsh(uri, options, scope.signal);
		try {
			const ranked = [...routes].sort((a, b) => (ranks.get(a) ?? 1) - (ranks.get(b) ?? 1));
			const settled = (route: Route): boolean => ranks.get(route) === 0;
			const {channel, route} = await firstThatOpens(connection, uri, ranked, settled, scope.signal, way => ({
				onFirstBytes: () => worked(way),
				onSilence: () => ranks.set(way, 2),
			}));
			const description = `ssh ${uri.host}:${uri.port}, ${route.name}`;
			options.log.debug({host: uri.host, transport: description}, 'connection to libvirt opened');
			const cut = (): void => {
				connection.cut();
				channel.destroy();
			};

			return {duplex: channel, description, close: () => void channel.destroy(), cut} satisfies Pipe;
		} catch (error) {
			connection.hangUp();
			scope.signal.throwIfAborted();
			throw error;
		}
	};
}

function routesFor(uri: SshUri): readonly Route[] {
	const sockets = socketPaths(uri);
	const forwarded =
		uri.proxy === 'auto'
			? sockets.map((socket): Route => ({kind: 'socket', name: `socket ${socket}`, socket}))
			: [];
	// virt-ssh-helper uses the default sockets and ignores the parameters (libvirt, src/remote/remote_ssh_helper.c).
	const helps = uri.proxy === 'native' || (uri.proxy === 'auto' && uri.socket === undefined && uri.mode === 'auto');
	const helper: Route[] = helps
		? [{kind: 'helper', name: 'virt-ssh-helper', command: `virt-ssh-helper ${quoted(uri.remoteUri)}`}]
		: [];
	const netcats =
		uri.proxy === 'native'
			? []
			: sockets.map((socket): Route => ({
					kind: 'netcat',
					name: `${uri.netcat} -U ${socket}`,
					command: netcatCommand(uri.netcat, socket),
					socket,
				}));
	return [...forwarded, ...helper, ...netcats];
}

/**
 * If nc has -q, it needs the option to exit when the connection ends; otherwise it keeps a connection to the daemon
 * open.
 */
function netcatCommand(netcat: string, socket: string): string {
	return `sh -c ${quoted(`if "$0" -h 2>&1 | grep -q -e "-q "; then exec "$0" -q0 -U "$1"; else exec "$0" -U "$1"; fi`)} ${quoted(netcat)} ${quoted(socket)}`;
}

interface Opened {
	readonly channel: SshChannel;
	readonly route: Route;
}

async function firstThatOpens(
	connection: SshConnection,
	uri: SshUri,
	routes: readonly Route[],
	isSettled: (route: Route) => boolean,
	signal: AbortSignal,
	eventsOf: (route: Route) => ChannelEvents,
): Promise<Opened> {
	const failures: string[] = [];
	let surveying: Promise<Survey> | undefined;
	for (const route of routes) {
		if (!(route.kind !== 'socket' && isSettled(route))) {
			// Started early, although only commands depend on its result: sshd turns off Nagle's algorithm once a
			// command has run. Otherwise each small call may take 40 ms.
			surveying ??= survey(connection, uri, signal);
		}

		if (route.kind !== 'socket' && surveying !== undefined) {
			const missing = missingFor(route, uri, await abortable(surveying, signal));
			if (missing !== undefined) {
				failures.push(`${route.name}: ${missing}`);
				continue;
			}
		}

		try {
			const channel = await abortable(openRoute(connection, route, eventsOf(route)), signal);
			if (channel.takeConnection()) {
				return {channel, route};
			}

			throw channel.errored ?? new Error('closed without a byte');
		} catch (error) {
			signal.throwIfAborted();
			const lost = connection.lossReason();
			if (lost !== undefined) {
				throw new AdaptorError({
					code: 'unavailable',
					what: `The ssh connection to the host was lost: ${lost.message}`,
					where: {host: uri.host, port: uri.port},
					cause: error,
				});
			}

			failures.push(`${route.name}: ${toError(error).message}`);
		}
	}

	throw new AdaptorError({
		code: 'unavailable',
		what: `Could not reach libvirt on the host over ssh; tried ${failures.join('; ')}`,
		where: {host: uri.host, port: uri.port},
		remedy: 'Check that libvirtd (or virtqemud and its socket unit) runs on the host. If it does: turn on AllowStreamLocalForwarding in sshd_config, install virt-ssh-helper (libvirt-clients or libvirt-daemon) or nc, or name the socket with socket= in the URI.',
	});
}

async function openRoute(connection: SshConnection, route: Route, events: ChannelEvents): Promise<SshChannel> {
	const {client} = connection;
	const {promise, resolve, reject} = Promise.withResolvers<SshChannel>();
	const onOpen = (error: Error | undefined, channel: ClientChannel): void => {
		if (error === undefined) {
			resolve(new SshChannel(channel, connection, route.name, route.kind !== 'socket', events));
		} else {
			reject(error);
		}
	};
	if (route.kind === 'socket') {
		client.openssh_forwardOutStreamLocal(route.socket, onOpen);
	} else {
		client.exec(route.command, onOpen);
	}

	return promise;
}

/**
 * Finds the commands and sockets on the host. A key with a forced command runs that instead, with its input closed;
 * then the result is unknown.
 */
async function survey(connection: SshConnection, uri: SshUri, signal: AbortSignal): Promise<Survey> {
	const script = `for c in virt-ssh-helper ${quoted(uri.netcat)}; do if command -v "$c" >/dev/null; then echo "$c"; fi; done; for s in ${socketPaths(uri).map(quoted).join(' ')}; do if test -S "$s"; then echo "$s"; fi; done; echo surveyed`;
	const output = await runRemote(connection.client, `sh -c ${quoted(script)}`, signal).catch(() => '');
	const lines = new Set(output.split('\n'));
	return lines.has('surveyed') ? lines : undefined;
}

function missingFor(route: Exclude<Route, {kind: 'socket'}>, uri: SshUri, found: Survey): string | undefined {
	if (found === undefined) {
		return undefined;
	}

	switch (route.kind) {
		case 'helper':
			return found.has('virt-ssh-helper') ? undefined : 'not installed';
		case 'netcat':
			return !found.has(uri.netcat) ? 'not installed' : found.has(route.socket) ? undefined : 'no such socket';
	}
}
