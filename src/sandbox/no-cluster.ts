/** The cluster port outside of a cluster: no pull secrets, no registration, no events. */
import type {Cluster} from './ports.ts';

export const noCluster: Cluster = {
	async pullCredentials() {
		return undefined;
	},
	async registerVm() {
		// Does nothing: there is no cluster.
	},
	unregisterVm() {
		// Does nothing: there is no cluster.
	},
	async podPresence() {
		return 'unknown';
	},
	reconcile() {
		// Does nothing: there is no cluster.
	},
	recordEvent() {
		// Does nothing: there is no cluster.
	},
};
