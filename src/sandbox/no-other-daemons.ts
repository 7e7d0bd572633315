/** This daemon is the only one on its PODS_DIR. */
import type {OtherDaemons} from './ports.ts';

export const noOtherDaemons: OtherDaemons = {
	hasPredecessor: () => false,
	async predecessorsEnded() {
		// There are none.
	},
	hasSuccessor: async () => false,
};
