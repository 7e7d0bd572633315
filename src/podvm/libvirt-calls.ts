/**
 * The part of a libvirt session that pod VMs need, and the one rule for using it: a call that changes something is
 * never abandoned.
 */
import {LibvirtConnectionError} from '../libvirt/wire/errors.ts';
import type {Procedure} from '../libvirt/wire/procedures.ts';
import type {LibvirtSession} from '../libvirt/session.ts';

/** What `LibvirtSession` has, so that it fits as it is. */
export type LibvirtCalls = Pick<LibvirtSession, 'call' | 'upload' | 'download' | 'onLifecycle' | 'onState' | 'console'>;

/** Starting QEMU on a busy host and writing a large volume take longer than a look at something. */
const changeTimeoutMs = 120_000;

/**
 * Makes a change and waits for its outcome, whatever the caller's signal says meanwhile: libvirt carries out a call
 * that it has received, and works on several at once. A clean-up that did not wait could look before the change is
 * made, and leave it behind. Nothing is sent any more when the signal aborts before. Whoever goes on with more changes
 * looks at the signal again.
 */
export async function change<Args, Result>(
	session: LibvirtCalls,
	procedure: Procedure<Args, Result>,
	args: Args,
	signal: AbortSignal,
): Promise<Result> {
	return session.call(procedure, args, signal, {timeoutMs: changeTimeoutMs, seeThrough: true});
}

/** What became of a change that got no answer. A clean-up for nothing would wait for a host that is away. */
export function mayHaveBeenMade(error: unknown, signal: AbortSignal): boolean {
	return error instanceof LibvirtConnectionError
		? error.mayHaveBeenExecuted
		: !signal.aborted || error !== signal.reason;
}
