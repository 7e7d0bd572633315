/**
 * Checks whether the API can be reached in the way of a shim: by the path of the socket, whichever daemon serves there.
 */
import {loadContract, type Contract, type Version} from './contract.ts';
import {connect, type ClientMethod} from '../ttrpc/client.ts';

/** A working daemon answers at once; a probe of kubelet has one second by default. */
const answerTimeoutMs = 5000;

/**
 * Calls Version on the socket.
 * @throws AdaptorError or TtrpcError with the cause if nobody answers; the reason of the signal
 */
export async function assertReachable(
	path: string,
	{hypervisor}: Pick<Contract, 'hypervisor'> = loadContract(),
	signal: AbortSignal,
): Promise<void> {
	const method = hypervisor['Version'] as unknown as ClientMethod<Version, Version>;
	await using client = await connect(path, signal);
	await client.call(method, {version: ''}, {timeoutMs: answerTimeoutMs}, signal);
}
