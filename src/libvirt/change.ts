/** The one rule for calls that change something: they are never abandoned. */
import type {LibvirtSession} from './session.ts';
import {LibvirtConnectionError} from './wire/errors.ts';
import type {Procedure} from './wire/procedures.ts';

/** Starting QEMU on a busy host, and making, writing or removing a large volume, takes longer than a look. */
const changeTimeoutMs = 120_000;

/**
 * Makes a change and waits for its outcome, whatever the caller's signal says meanwhile: libvirt carries out a call
 * that it has received, and works on several at once. A clean-up that did not wait could look before the change is
 * made, and leave it behind. A signal that is aborted before sends nothing. Look at the signal again before the next
 * change.
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
