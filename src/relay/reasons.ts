/** What the relay tells a shim whose call it answers itself. */
import {maxMessageLength, type OversizedFrame} from '../ttrpc/frame.ts';

export const reasons = {
	tooMuchHeld: 'Too much waits for the connection to the pod VM, which is dialled',
	tooManyCalls: 'Too many calls are open on this connection',
	callerEnded: 'The connection to the pod VM is lost, and the caller has ended its side',
	/** The VM was asked, late. */
	late: 'This call had to wait for the connection to the pod VM, and the VM did not answer it before its deadline',
	silent: "Nothing arrived from the pod VM before this call's deadline: its connection is silent, and another was not answered in time either",
	unreached: (loss: Error | undefined) =>
		`The pod VM could not be reached before this call's deadline${loss === undefined ? '' : `: the connection was lost (${loss.message})`}`,
	lost: (loss: Error) =>
		`The connection to the pod VM was lost while this call was under way (${loss.message}): whether it was carried out is not known`,
	gone: (reason: Error) => `The pod VM is gone: ${reason.message}`,
	busy: (streamId: number) => `A call is running on stream ${streamId}`,
	tooLarge: (what: 'request' | 'response', {messageLength}: OversizedFrame) =>
		`A ${what} of ${messageLength} bytes exceeds the limit of ${maxMessageLength}`,
};
