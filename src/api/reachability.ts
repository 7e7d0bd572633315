/** Whether the API can be reached the way a shim reaches it: by the socket's path, by whichever daemon serves there. */
import {loadContract, type Contract, type Version} from './contract.ts';
import {connect, type ClientMethod} from '../ttrpc/client.ts';

/** A daemon that is at work answers at once; a probe of kubelet's has a second by default. */
const answerTimeoutMs = 5000;

/**
 * Calls Version on the socket.
 * @throws AdaptorError or TtrpcError saying why nobody answers there; the signal's reason
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
