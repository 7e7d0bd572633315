/**
 * What `cloud-api-adaptor webhook` is told. Names without "Not in upstream" are those of upstream's webhook
 * (src/webhook/pkg/mutating-webhook).
 */
import {
	absolutePath,
	duration,
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
		description: 'Runtime class of the pods that are changed. `TARGET_RUNTIME_CLASS` is another name of it.',
	},
	extendedResource: {
		env: 'POD_VM_EXTENDED_RESOURCE',
		section: 'Webhook',
		type: resourceName,
		default: 'kata.peerpods.io/vm',
		description: 'Resource of the nodes of which each pod takes one.',
	},
	overheadCpu: {
		env: 'POD_VM_OVERHEAD_CPU',
		section: 'Webhook',
		type: quantity,
		default: '0',
		description:
			'Not in upstream. CPUs that a VM gets beside those that its pod asks for, before the sum is rounded up.',
	},
	overheadMemory: {
		env: 'POD_VM_OVERHEAD_MEMORY',
		section: 'Webhook',
		type: quantity,
		default: '256Mi',
		description:
			'Not in upstream. Memory that a VM gets beside what its pod asks for: its kernel, the agent and the forwarder live in it too.',
	},
	excludedNamespaces: {
		env: 'WEBHOOK_EXCLUDED_NAMESPACES',
		section: 'Webhook',
		type: listOf(objectName, 'names of namespaces'),
		default: 'kube-system',
		description: 'Not in upstream. Namespaces whose pods pass unchanged.',
	},
	webhookPort: {
		env: 'WEBHOOK_PORT',
		section: 'Webhook',
		type: portOrAny,
		default: '9443',
		description: 'Not in upstream. TCP port of the admission reviews. 0: any that is free; the log tells which.',
	},
	webhookProbePort: {
		env: 'WEBHOOK_PROBE_PORT',
		section: 'Webhook',
		type: portOrAny,
		default: '8081',
		description: 'Not in upstream. TCP port of the probes `/healthz` and `/readyz`.',
	},
	webhookCertDir: {
		env: 'WEBHOOK_CERT_DIR',
		flag: 'cert-dir',
		section: 'Webhook',
		type: absolutePath(),
		default: '/tmp/k8s-webhook-server/serving-certs',
		description:
			"Not in upstream. Directory with the server's certificate, `tls.crt`, and its key, `tls.key`. They are read again when they change.",
	},
	webhookClientCaFile: {
		env: 'WEBHOOK_CLIENT_CA_FILE',
		section: 'Webhook',
		type: absolutePath(),
		example: '/etc/webhook-client-ca/ca.crt',
		description:
			'PEM file of the authorities whose client certificate a caller must have. Not set: anyone who can reach the port may ask.',
	},
	webhookDrainDelayMs: {
		env: 'WEBHOOK_DRAIN_DELAY',
		section: 'Webhook',
		type: duration,
		default: '3s',
		description:
			'Not in upstream. How long admission reviews are still taken after SIGTERM: so long an API server may not know yet that this one goes.',
	},
	tlsMinVersion,
	tlsCipherSuites,
	logLevel,
	logFormat,
} as const satisfies SettingsTable;
