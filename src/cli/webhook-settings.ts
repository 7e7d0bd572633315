/**
 * The settings of `cloud-api-adaptor webhook`. Names come from the webhook of upstream
 * (src/webhook/pkg/mutating-webhook), unless the description says "(not in upstream)".
 */
import {
	absolutePath,
	duration,
	listenAddress,
	listOf,
	objectName,
	portOrAny,
	quantity,
	resourceName,
} from '../config/setting-types.ts';
import {settings, type SettingsTable} from '../config/settings.ts';

const {tlsMinVersion, tlsCipherSuites, logLevel, logFormat} = settings;

export const webhookSettings = {
	targetRuntimeClass: {
		env: 'TARGET_RUNTIMECLASS',
		alias: 'TARGET_RUNTIME_CLASS',
		section: 'Webhook',
		type: objectName,
		default: 'kata-remote',
		description: 'The webhook changes pods with this runtime class. `TARGET_RUNTIME_CLASS` is an alias.',
	},
	extendedResource: {
		env: 'POD_VM_EXTENDED_RESOURCE',
		section: 'Webhook',
		type: resourceName,
		default: 'kata.peerpods.io/vm',
		description: 'Extended resource of the nodes. Each pod requests one.',
	},
	overheadCpu: {
		env: 'POD_VM_OVERHEAD_CPU',
		section: 'Webhook',
		type: quantity,
		default: '0',
		description: 'CPUs added to the request of a pod before the sum is rounded up (not in upstream).',
	},
	overheadMemory: {
		env: 'POD_VM_OVERHEAD_MEMORY',
		section: 'Webhook',
		type: quantity,
		default: '256Mi',
		description:
			'Memory added to the request of a pod, for the kernel, the agent and the forwarder in its VM (not in upstream).',
	},
	excludedNamespaces: {
		env: 'WEBHOOK_EXCLUDED_NAMESPACES',
		section: 'Webhook',
		type: listOf(objectName, 'names of namespaces'),
		default: 'kube-system',
		description: 'The webhook does not change pods in these namespaces (not in upstream).',
	},
	webhookPort: {
		env: 'WEBHOOK_PORT',
		section: 'Webhook',
		type: portOrAny,
		default: '9443',
		description: 'TCP port for admission reviews (not in upstream). 0: any free port; the log shows which one.',
	},
	webhookProbePort: {
		env: 'WEBHOOK_PROBE_PORT',
		section: 'Webhook',
		type: portOrAny,
		default: '8081',
		description: 'TCP port for the probes `/healthz` and `/readyz` (not in upstream).',
	},
	webhookCertDir: {
		env: 'WEBHOOK_CERT_DIR',
		flag: 'cert-dir',
		section: 'Webhook',
		type: absolutePath(),
		default: '/tmp/k8s-webhook-server/serving-certs',
		description:
			'Directory with the server certificate `tls.crt` and its key `tls.key` (not in upstream). The webhook reloads them when they change.',
	},
	webhookClientCaFile: {
		env: 'WEBHOOK_CLIENT_CA_FILE',
		section: 'Webhook',
		type: absolutePath(),
		example: '/etc/webhook-client-ca/ca.crt',
		description:
			'PEM file of certificate authorities. Callers must have a client certificate from one of them. Not set: every caller that can reach the port is served.',
	},
	webhookDrainDelayMs: {
		env: 'WEBHOOK_DRAIN_DELAY',
		section: 'Webhook',
		type: duration,
		default: '3s',
		description:
			'The webhook still accepts admission reviews for this time after SIGTERM, until the API servers stop sending them (not in upstream).',
	},
	tlsMinVersion,
	tlsCipherSuites,
	logLevel,
	logFormat,
	metricsAt: {
		env: 'WEBHOOK_METRICS_PORT',
		section: 'Metrics',
		type: listenAddress,
		example: '0.0.0.0:8082',
		description: 'The same for the webhook: admission reviews (not in upstream).',
	},
} as const satisfies SettingsTable;
