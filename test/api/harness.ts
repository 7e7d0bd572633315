/** An API server on a socket of the test's own, in front of sandboxes that the test scripts. */
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import {serveApi} from '../../src/api/server.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {logObserver} from '../../src/observers/log-observer.ts';
import type {Sandboxes} from '../../src/sandbox/ports.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';

export const never = new AbortController().signal;

/** @param scripted the calls that the test expects; any other fails as unimplemented */
export async function serving(
	t: ExecutionContext,
	scripted: Partial<Sandboxes>,
	drainTimeoutMs = 1000,
): Promise<{path: string; log: ReturnType<typeof recordingLog>; server: AsyncDisposable}> {
	const unexpected = async (): Promise<never> => {
		throw new AdaptorError({code: 'unimplemented', what: 'Not scripted by this test'});
	};

	const path = join(await directoryOf(t), 'sub', 'h.sock');
	const log = recordingLog();
	const server = await serveApi(
		{
			path,
			sandboxes: {create: unexpected, start: unexpected, stop: unexpected, vmOf: unexpected, ...scripted},
			drainTimeoutMs,
			observer: logObserver(log),
			log,
		},
		never,
	);
	t.teardown(async () => server[Symbol.asyncDispose]());
	return {path, log, server};
}

/** A promise that the test settles, and one that tells that it is waited for. */
export function gate(): {
	entered: Promise<void>;
	open: () => void;
	pass: (signal: AbortSignal) => Promise<void>;
	aborted: Promise<unknown>;
} {
	const entered = Promise.withResolvers<undefined>();
	const opened = Promise.withResolvers<undefined>();
	const aborted = Promise.withResolvers<unknown>();
	return {
		entered: entered.promise,
		open: () => opened.resolve(undefined),
		aborted: aborted.promise,
		async pass(signal) {
			signal.addEventListener('abort', () => aborted.resolve(signal.reason), {once: true});
			entered.resolve(undefined);
			await opened.promise;
		},
	};
}
