/** This daemon is the only one on its PODS_DIR. */
import type {OtherDaemons} from './ports.ts';

export const noOtherDaemons: OtherDaemons = {
	hasPredecessor: () => false,
	async predecessorsEnded() {
		// Resolves at once: there are no other daemons.
	},
	hasSuccessor: async () => false,
};
