/** The cluster port outside of a cluster: no pull secrets, no registration, no events. */
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
