/** The rule for calls that change something: the caller always waits for their outcome. */
import type {LibvirtSession} from './session.ts';
import {LibvirtConnectionError} from './wire/errors.ts';
import type {Procedure} from './wire/procedures.ts';

/**
 * On a busy host, starting QEMU and creating, writing or deleting a large volume takes longer than a read-only call.
 */
const changeTimeoutMs = 120_000;

/**
 * Makes a change and waits for its outcome, even if the signal aborts meanwhile. libvirt executes every call that it
 * has received, several in parallel; a clean-up that did not wait could run before the change and miss it. If the
 * signal has already aborted, nothing is sent. Check the signal again before the next change.
 */
export async function change<Args, Result>(
	session: Pick<LibvirtSession, 'call'>,
	procedure: Procedure<Args, Result>,
	args: Args,
	signal: AbortSignal,
): Promise<Result> {
	return session.call(procedure, args, signal, {timeoutMs: changeTimeoutMs, seeThrough: true});
}

/** Whether a change that failed without an answer may have been made. If not, there is nothing to clean up. */
export function mayHaveBeenMade(error: unknown, signal: AbortSignal): boolean {
	return error instanceof LibvirtConnectionError
		? error.mayHaveBeenExecuted
		: !signal.aborted || error !== signal.reason;
}
