/** What `cloud-api-adaptor controller` is told. */
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
			"Not in upstream. Labels of the daemon's pods, in the controller's own namespace: where one is ready, its node's VMs are its own business.",
	},
	abandonedGraceMs: {
		env: 'ABANDONED_GRACE',
		section: 'Kubernetes',
		type: duration,
		default: '5m',
		description:
			"Not in upstream. How long the node of a deleted pod must be without a ready daemon before the pod's VM is deleted in its place.",
	},
	probePort: {
		env: 'CONTROLLER_PROBE_PORT',
		section: 'Kubernetes',
		type: integer(1, 65_535),
		default: '8081',
		description: 'TCP port of `/healthz`, on all addresses of the pod.',
	},
	logLevel,
	logFormat,
} as const satisfies SettingsTable;
