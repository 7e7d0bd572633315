/** Outside a cluster there are no pull secrets, nobody takes over, and the log is all that is read. */
import type {Cluster} from './ports.ts';

export const noCluster: Cluster = {
	async pullCredentials() {
		return undefined;
	},
	async registerVm() {
		// Nobody to tell.
	},
	unregisterVm() {
		// Nobody to tell.
	},
	async podPresence() {
		return 'unknown';
	},
	reconcile() {
		// Nobody to tell.
	},
	recordEvent() {
		// Nobody to tell.
	},
};
