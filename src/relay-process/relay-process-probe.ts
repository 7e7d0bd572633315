/** Observes whether the relay process of this node answers. Judges nothing. */
import type {RelayProcessObservation} from '../check/observations.ts';
import {answers} from '../core/unix-listener.ts';
import {relaySocketBeside} from './socket-paths.ts';

/** @throws the error of the relay process */
export async function observeRelayProcess(
	use: RelayProcessObservation['use'],
	hypervisorSocket: string,
	signal: AbortSignal,
): Promise<RelayProcessObservation> {
	const path = relaySocketBeside(hypervisorSocket);
	if (use === 'off' || !(await answers(path, signal))) {
		return {use, path};
	}

	// The module is loaded only if there is a relay process.
	const [{loadRelayContract}, {RelayLink}] = await Promise.all([import('./contract.ts'), import('./relay-link.ts')]);
	await using link = await RelayLink.to(path, loadRelayContract(), signal);
	return {use, path, pods: link.sandboxes.size};
}
