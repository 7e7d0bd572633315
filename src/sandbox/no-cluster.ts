/** Outside a cluster there are no pull secrets, nobody takes over, and the log is all that is read. */
import type {Cluster} from './ports.ts';

export const noCluster: Cluster = {
	async pullCredentials() {
		return undefined;
	},
	async claim() {
		// Nobody to tell.
	},
	disclaim() {
		// Nobody to tell.
	},
	async podPresence() {
		return 'unknown';
	},
	reconcile() {
		// Nobody to tell.
	},
	tell() {
		// Nobody to tell.
	},
};
