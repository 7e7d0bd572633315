/** Error texts of calls that the relay answers itself. */
import {maxMessageLength, type OversizedFrame} from '../ttrpc/frame.ts';

export const reasons = {
	tooMuchHeld: 'Too much data waits until the connection to the pod VM is restored',
	tooManyCalls: 'Too many calls are open on this connection',
	callerEnded: 'The connection to the pod VM is lost, and the caller has already ended its sending direction',
	/** The request was sent to the VM, but late. */
	late: 'This call had to wait for the connection to the pod VM, and the VM did not answer it before its deadline',
	silent: 'The pod VM did not answer before the deadline of this call, neither on its connection nor on a second one',
	unreached: (loss: Error | undefined) =>
		`The pod VM could not be reached before the deadline of this call${loss === undefined ? '' : `: the connection was lost (${loss.message})`}`,
	lost: (loss: Error) =>
		`The connection to the pod VM was lost while this call was under way (${loss.message}); it is unknown whether the call was executed`,
	/** Further data of a request. */
	torn: 'The connection to the pod VM was replaced while this call was sent; it is unknown whether the call was executed',
	/** @param status how the agent answered WaitProcess on another connection */
	exitStatusLost: (status: string) =>
		`The exit status is lost: the connection to the pod VM was lost before the answer to this call arrived. On another connection, the agent answered ${status}, as it also does if it has already sent the exit status`,
	gone: (reason: Error) => `The pod VM is gone: ${reason.message}`,
	busy: (streamId: number) => `Stream ${streamId} already has an open call`,
	tooLarge: (what: 'request' | 'response', {messageLength}: OversizedFrame) =>
		`A ${what} of ${messageLength} bytes exceeds the limit of ${maxMessageLength}`,
};
