/** A sandbox as it is at one moment, for those who only look: the status API. */
import type {SandboxState} from './admission.ts';
import type {SandboxNames} from './events.ts';
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, PodVm} from './ports.ts';

export interface SandboxView {
	readonly names: SandboxNames;
	readonly state: SandboxState['name'];
	readonly since: Date;
	/** The current step of a start. */
	readonly stage: string | undefined;
	readonly stageSince: Date | undefined;
	readonly request: PodRequest | undefined;
	readonly network: PodNetwork | undefined;
	/** Until its removal begins. */
	readonly vm: PodVm | undefined;
	/** Verified by TLS. */
	readonly address: string | undefined;
	/** Why the sandbox has failed. */
	readonly failure: string | undefined;
	/** Something could not be removed yet, and is retried. */
	readonly isRemovalPending: boolean;
}

/** The verified address of the VM, if it is known in this state. */
export function addressIn(state: SandboxState): string | undefined {
	switch (state.name) {
		case 'booting':
		case 'running': {
			return state.relay?.address;
		}

		case 'recovering': {
			return state.record.state === 'running' ? state.record.address : undefined;
		}

		case 'creating':
		case 'created':
		case 'starting':
		case 'failed':
		case 'stopping':
		case 'gone': {
			return undefined;
		}
	}
}
