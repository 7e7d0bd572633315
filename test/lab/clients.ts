/**
 * Clients and a server on the pod network of the lab. Each is a process of peer.ts in the namespace of a pod or on the
 * worker.
 */
import {once} from 'node:events';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable, Scope} from '../../src/core/lifetime.ts';
import type {Lab} from './lab.ts';
import {Service} from './service.ts';
import type {PodNamespace} from './worker.ts';

const peer = [process.execPath, fileURLToPath(new URL('peer.ts', import.meta.url))];
/** Transfers are slow when many guests are emulated at once. */
const timeoutMs = 300_000;

/** Starts a server at all addresses of the worker; resolves when it answers. */
export async function serveOnWorker(lab: Lab, port: number, signal: AbortSignal): Promise<AsyncDisposable> {
	const server = new Service(
		'server on the worker',
		lab.workerRun([...peer, 'serve', String(port)], {stdio: ['ignore', 'ignore', 'pipe']}),
	);
	try {
		await server.line(/^Serving$/, signal);
		return server;
	} catch (error) {
		await server.stop();
		throw error;
	}
}

/** Fetches a page from a pod, and returns the body. */
export async function get(from: PodNamespace, url: string, signal: AbortSignal): Promise<string> {
	return run(from, ['get', url], signal);
}

/** Fetches `/bytes`. Returns the number of received bytes, their SHA-256, and the SHA-256 according to the server. */
export async function download(
	from: PodNamespace,
	url: string,
	signal: AbortSignal,
): Promise<{readonly length: number; readonly sha256: string; readonly announced: string}> {
	const [length, sha256 = '', announced = ''] = (await run(from, ['checksum', url], signal)).trim().split(' ');
	return {length: Number(length), sha256, announced};
}

/** Sends a UDP datagram of this size, and returns the number of bytes in the answer. */
export async function echo(
	from: PodNamespace,
	host: string,
	port: number,
	size: number,
	signal: AbortSignal,
): Promise<number> {
	return Number(await run(from, ['echo', host, String(port), String(size)], signal));
}

async function run(from: PodNamespace, args: readonly string[], signal: AbortSignal): Promise<string> {
	const child = from.run([...peer, ...args], {stdio: ['ignore', 'pipe', 'pipe']});
	if (child.stdout === null || child.stderr === null) {
		throw new TypeError('stdio are pipes');
	}

	using scope = new Scope(signal).deadline(timeoutMs, `${args.join(' ')} from ${from.podIp}`);
	try {
		const [stdout, stderr] = await abortable(
			Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]),
			scope.signal,
		);
		if (child.exitCode !== 0) {
			throw new AdaptorError({
				code: 'internal',
				what: `${args.join(' ')} failed: ${stderr.trim()}`,
				where: {address: from.podIp},
			});
		}

		return stdout;
	} finally {
		child.kill('SIGKILL');
	}
}
