/** Settings of `cloud-api-adaptor controller`. */
import {duration, integer, textLike} from '../config/setting-types.ts';
import {settings, type SettingsTable} from '../config/settings.ts';

const {libvirtUri, clusterId, logLevel, logFormat} = settings;

export const controllerSettings = {
	libvirtUri,
	clusterId,
	daemonSelector: {
		env: 'DAEMON_SELECTOR',
		section: 'Kubernetes',
		type: textLike(
			'a label as name=value, or several separated by commas',
			/^[\w.\/\-]+=[\w.\-]+(?:,[\w.\/\-]+=[\w.\-]+)*$/v,
		),
		default: 'name=osc-caa-ds',
		description:
			'Labels of the daemon pods in the namespace of the controller (not in upstream). The controller does not delete VMs of nodes with a ready daemon.',
	},
	abandonedGraceMs: {
		env: 'ABANDONED_GRACE',
		section: 'Kubernetes',
		type: duration,
		default: '5m',
		description:
			'The controller deletes the VM of a deleted pod after its node had no ready daemon for this time (not in upstream).',
	},
	probePort: {
		env: 'CONTROLLER_PROBE_PORT',
		section: 'Kubernetes',
		type: integer(1, 65_535),
		default: '8081',
		description: 'TCP port for `/healthz`, on all addresses of the pod.',
	},
	logLevel,
	logFormat,
} as const satisfies SettingsTable;
