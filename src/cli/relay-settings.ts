/** Settings of `cloud-api-adaptor relay`: the settings of the daemon that concern the work of the relay process. */
import {listenAddress, port} from '../config/setting-types.ts';
import {settings, type SettingsTable} from '../config/settings.ts';

const {
	socketPath,
	forwarderPort,
	caCertFile,
	certFile,
	certKeyFile,
	tlsSkipVerify,
	tlsMinVersion,
	tlsCipherSuites,
	logLevel,
	logFormat,
} = settings;

export const relaySettings = {
	socketPath,
	forwarderPort,
	probePort: {
		env: 'RELAY_PROBE_PORT',
		section: 'Sockets and timeouts',
		type: port,
		example: '8002',
		description:
			'TCP port on 127.0.0.1 for `/startup` and `/healthz` of the relay process (not in upstream). Not set: none. Use it for readiness only, not for liveness: restarting a relay process ends its pods.',
	},
	caCertFile,
	certFile,
	certKeyFile,
	tlsSkipVerify,
	tlsMinVersion,
	tlsCipherSuites,
	logLevel,
	logFormat,
	metricsAt: {
		env: 'RELAY_METRICS_PORT',
		section: 'Metrics',
		type: listenAddress,
		example: '8004',
		description: 'The same for the relay process: agent calls and connections to the pod VMs (not in upstream).',
	},
} as const satisfies SettingsTable;
