/**
 * What no schema can say: that objects which name each other exist and fit. Each rule is a function from the objects to
 * its complaints. Knows the kinds that deploy/ uses.
 */
import type {MutatingWebhookConfiguration} from 'kubernetes-types/admissionregistration/v1.js';
import type {CustomResourceDefinition, JSONSchemaProps} from 'kubernetes-types/apiextensions/v1.js';
import type {Service} from 'kubernetes-types/core/v1.js';
import type {LabelSelector} from 'kubernetes-types/meta/v1.js';
import type {NetworkPolicy} from 'kubernetes-types/networking/v1.js';
import type {RuntimeClass} from 'kubernetes-types/node/v1.js';
import type {PodDisruptionBudget} from 'kubernetes-types/policy/v1.js';
import type {ClusterRoleBinding} from 'kubernetes-types/rbac/v1.js';
import {containersOf, ofKind, workloads, type Manifest, type Workload} from './manifests.ts';
import {nameOf} from './types.ts';

export interface Surroundings {
	/**
	 * `Secret peer-pods-secret`: what others make, in our namespace or in the cluster; `ServiceAccount a in b` in
	 * another namespace.
	 */
	readonly others: ReadonlySet<string>;
}

type Rule = (manifests: readonly Manifest[], surroundings: Surroundings) => Iterable<string>;

export const namespace = 'openshift-sandboxed-containers-operator';
const clusterWide = new Set([
	'Namespace',
	'CustomResourceDefinition',
	'RuntimeClass',
	'ClusterRole',
	'ClusterRoleBinding',
	'MutatingWebhookConfiguration',
	'PriorityClass',
	'SecurityContextConstraints',
]);

/**
 * Words that Kubernetes takes in a field, where the field's type says `string` only. Source: Kubernetes API reference
 * 1.30.
 */
const words: Readonly<Record<string, readonly string[]>> = {
	imagePullPolicy: ['Always', 'IfNotPresent', 'Never'],
	restartPolicy: ['Always', 'OnFailure', 'Never'],
	dnsPolicy: ['Default', 'ClusterFirst', 'ClusterFirstWithHostNet', 'None'],
	mountPropagation: ['None', 'HostToContainer', 'Bidirectional'],
	priorityClassName: ['system-node-critical', 'system-cluster-critical'],
	failurePolicy: ['Fail', 'Ignore'],
	sideEffects: ['None', 'NoneOnDryRun'],
	reinvocationPolicy: ['Never', 'IfNeeded'],
	matchPolicy: ['Exact', 'Equivalent'],
	protocol: ['TCP', 'UDP', 'SCTP'],
	whenUnsatisfiable: ['DoNotSchedule', 'ScheduleAnyway'],
	topologyKey: ['kubernetes.io/hostname', 'topology.kubernetes.io/zone'],
	policyTypes: ['Ingress', 'Egress'],
	operator: ['In', 'NotIn', 'Exists', 'DoesNotExist'],
	'updateStrategy.type': ['RollingUpdate', 'OnDelete'],
	'strategy.type': ['RollingUpdate', 'Recreate'],
	'seccompProfile.type': ['RuntimeDefault'],
	'hostPath.type': ['Directory', 'DirectoryOrCreate', 'File', 'FileOrCreate', 'Socket'],
};

/** How kinds that are about pods say which. */
const podSelectors: Readonly<Record<string, (manifest: Manifest) => LabelSelector | undefined>> = {
	PodDisruptionBudget: manifest => (manifest as Manifest & PodDisruptionBudget).spec?.selector,
	NetworkPolicy: manifest => (manifest as Manifest & NetworkPolicy).spec?.podSelector,
	Service: manifest => ({matchLabels: (manifest as Manifest & Service).spec?.selector ?? {}}),
};

const rules: readonly Rule[] = [
	function* eachObjectOnce(manifests) {
		const seen = new Set<string>();
		for (const manifest of manifests) {
			if (seen.has(nameOf(manifest))) {
				yield `${nameOf(manifest)}: is there twice`;
			}

			seen.add(nameOf(manifest));
		}
	},

	function* inTheNamespaceOrNone(manifests) {
		for (const {metadata, ...manifest} of manifests) {
			const expected = clusterWide.has(manifest.kind)
				? undefined
				: metadata.labels?.['console.openshift.io/dashboard'] === 'true'
					? 'openshift-config-managed'
					: namespace;
			if (metadata.namespace !== expected) {
				yield `${nameOf({metadata, ...manifest})}: namespace is ${String(metadata.namespace)}, expected ${String(expected)}`;
			}
		}
	},

	function* knownWords(manifests) {
		for (const manifest of manifests) {
			for (const [path, value] of leaves(manifest)) {
				const names = path.filter(name => !/^\d+$/.test(name));
				const known =
					manifest.kind === 'CustomResourceDefinition'
						? undefined
						: (words[names.slice(-2).join('.')] ?? words[names.at(-1) ?? '']);
				if (known !== undefined && !known.includes(String(value))) {
					yield `${nameOf(manifest)}: ${path.join('.')} is ${JSON.stringify(value)}, expected one of ${known.join(', ')}`;
				}
			}
		}
	},

	function* whatPodsUseExists(manifests, {others}) {
		const there = new Set([
			...others,
			...manifests.map(nameOf),
			...manifests.flatMap(certificateSecret).map(name => `Secret ${name}`),
		]);
		for (const workload of workloads(manifests)) {
			yield* [...usedBy(workload)]
				.filter(name => !there.has(name))
				.map(name => `${nameOf(workload)}: there is no ${name}`);
		}
	},

	function* everyVolumeIsMountedAndEveryMountHasAVolume(manifests) {
		for (const workload of workloads(manifests)) {
			const volumes = (workload.spec.template.spec.volumes ?? []).map(({name}) => name);
			const mounts = containersOf(workload).flatMap(({volumeMounts = []}) => volumeMounts.map(({name}) => name));
			yield* volumes
				.filter(name => !mounts.includes(name))
				.map(name => `${nameOf(workload)}: nobody mounts the volume ${name}`);
			yield* mounts
				.filter(name => !volumes.includes(name))
				.map(name => `${nameOf(workload)}: there is no volume ${name} to mount`);
		}
	},

	function* portsThatProbesName(manifests) {
		for (const workload of workloads(manifests)) {
			for (const {ports = [], startupProbe, livenessProbe, readinessProbe} of containersOf(workload)) {
				for (const port of [startupProbe, livenessProbe, readinessProbe].flatMap(
					probe => probe?.httpGet?.port ?? probe?.tcpSocket?.port ?? [],
				)) {
					if (
						workload.spec.template.spec.hostNetwork !== true &&
						!ports.some(({name, containerPort}) => name === port || containerPort === port)
					) {
						yield `${nameOf(workload)}: a probe asks port ${port}, which the container does not have`;
					}
				}
			}
		}
	},

	function* selectorsThatSelect(manifests) {
		const pods = workloads(manifests).map(workload => ({
			workload,
			labels: workload.spec.template.metadata?.labels ?? {},
		}));
		for (const {workload, labels} of pods) {
			if (workload.kind !== 'Job' && !selects(workload.spec.selector, labels)) {
				yield `${nameOf(workload)}: its selector does not match its pods`;
			}

			const spreads = workload.spec.template.spec.topologySpreadConstraints ?? [];
			yield* spreads
				.filter(({labelSelector}) => !selects(labelSelector, labels))
				.map(() => `${nameOf(workload)}: its topology spread does not count its own pods`);
		}

		for (const manifest of manifests) {
			const selector = podSelectors[manifest.kind]?.(manifest);
			if (selector !== undefined && pods.filter(({labels}) => selects(selector, labels)).length !== 1) {
				yield `${nameOf(manifest)}: does not select the pods of one workload`;
			}
		}
	},

	function* servicesLeadToPorts(manifests) {
		for (const service of ofKind<Manifest & Service>(manifests, 'Service')) {
			const target = workloads(manifests).find(({spec}) =>
				selects({matchLabels: service.spec?.selector ?? {}}, spec.template.metadata?.labels ?? {}),
			);
			const ports = target === undefined ? [] : containersOf(target).flatMap(({ports = []}) => ports);
			for (const {port, targetPort} of service.spec?.ports ?? []) {
				if (
					!ports.some(
						({name, containerPort}) => name === targetPort || containerPort === (targetPort ?? port),
					)
				) {
					yield `${nameOf(service)}: no container has the port ${String(targetPort ?? port)}`;
				}
			}
		}

		for (const configuration of ofKind<Manifest & MutatingWebhookConfiguration>(
			manifests,
			'MutatingWebhookConfiguration',
		)) {
			for (const {
				name,
				clientConfig: {service},
			} of configuration.webhooks ?? []) {
				const found = ofKind<Manifest & Service>(manifests, 'Service').find(
					({metadata}) => metadata.name === service?.name && metadata.namespace === service.namespace,
				);
				if (found?.spec?.ports?.some(({port}) => port === (service?.port ?? 443)) !== true) {
					yield `${nameOf(configuration)}: ${name} calls a service or port that is not there`;
				}
			}
		}
	},

	function* certificatesAreForWhoUsesThem(manifests) {
		const secrets = new Set(
			workloads(manifests)
				.flatMap(({spec}) => spec.template.spec.volumes ?? [])
				.map(({secret}) => secret?.secretName),
		);
		const services = new Set(
			ofKind<Manifest & Service>(manifests, 'Service').map(({metadata}) => `${metadata.name}.${namespace}.svc`),
		);
		for (const certificate of ofKind<Certificate>(manifests, 'Certificate').filter(({spec}) =>
			secrets.has(spec.secretName),
		)) {
			const strays = certificate.spec.dnsNames?.filter(name => !services.has(name)) ?? ['no name'];
			yield* strays.map(name => `${nameOf(certificate)}: there is no service ${name}`);
		}

		const issued = ofKind<Certificate>(manifests, 'Certificate').map(
			({metadata}) => `${namespace}/${metadata.name}`,
		);
		for (const configuration of ofKind(manifests, 'MutatingWebhookConfiguration')) {
			const {['cert-manager.io/inject-ca-from']: from, ['service.beta.openshift.io/inject-cabundle']: inject} =
				configuration.metadata.annotations ?? {};
			if (from === undefined ? inject !== 'true' : !issued.includes(from)) {
				yield `${nameOf(configuration)}: the API server is not told whom to trust`;
			}
		}
	},

	function* bindingsBind(manifests, {others}) {
		for (const binding of ofKind<Manifest & ClusterRoleBinding>(manifests, 'RoleBinding', 'ClusterRoleBinding')) {
			const {roleRef, subjects = []} = binding;
			const role = `${roleRef.kind} ${roleRef.name}`;
			if (!others.has(role) && !manifests.some(each => nameOf(each) === role)) {
				yield `${nameOf(binding)}: there is no ${role}`;
			}

			for (const subject of subjects) {
				const account = `${subject.kind} ${subject.name}`;
				const isOurs =
					subject.namespace === namespace &&
					(others.has(account) || manifests.some(each => nameOf(each) === account));
				if (!isOurs && !others.has(`${account} in ${String(subject.namespace)}`)) {
					yield `${nameOf(binding)}: there is no ${account} in ${String(subject.namespace)}`;
				}
			}
		}

		const bound = new Set(
			ofKind<Manifest & ClusterRoleBinding>(manifests, 'RoleBinding', 'ClusterRoleBinding').map(
				({roleRef}) => `${roleRef.kind} ${roleRef.name}`,
			),
		);
		yield* ofKind(manifests, 'Role', 'ClusterRole')
			.filter(role => !bound.has(nameOf(role)))
			.map(role => `${nameOf(role)}: nobody has it`);
	},

	function* peerPodsGoWhereTheDaemonIs(manifests) {
		const daemon = workloads(manifests).find(({kind}) => kind === 'DaemonSet');
		for (const runtimeClass of ofKind<Manifest & RuntimeClass>(manifests, 'RuntimeClass')) {
			for (const [label, value] of Object.entries(runtimeClass.scheduling?.nodeSelector ?? {})) {
				if (daemon?.spec.template.spec.nodeSelector?.[label] !== value) {
					yield `${nameOf(runtimeClass)}: its pods may come to nodes without the daemon: ${label}=${value}`;
				}
			}
		}
	},

	function* definitionsAreStructural(manifests) {
		for (const definition of ofKind<Manifest & CustomResourceDefinition>(manifests, 'CustomResourceDefinition')) {
			const {group, names, versions} = definition.spec;
			if (definition.metadata.name !== `${names.plural}.${group}`) {
				yield `${nameOf(definition)}: must be called ${names.plural}.${group}`;
			}

			if (versions.filter(({storage}) => storage).length !== 1) {
				yield `${nameOf(definition)}: one version must be the stored one`;
			}

			for (const {schema} of versions) {
				yield* untyped(schema?.openAPIV3Schema ?? {}, []).map(
					path => `${nameOf(definition)}: ${path} has no type`,
				);
			}
		}
	},
];

/** @returns every complaint; nothing when all is well */
export function relationErrors(manifests: readonly Manifest[], surroundings: Surroundings): string[] {
	return rules.flatMap(rule => [...rule(manifests, surroundings)]);
}

/** What kubelet needs to run the workload's pods, as `Secret peer-pods-secret`. */
function* usedBy(workload: Workload): Generator<string> {
	const {serviceAccountName, volumes = []} = workload.spec.template.spec;
	yield `ServiceAccount ${String(serviceAccountName)}`;
	const containers = containersOf(workload);
	for (const name of [
		...volumes.map(({secret}) => secret?.secretName),
		...containers.flatMap(({envFrom = []}) => envFrom.map(({secretRef}) => secretRef?.name)),
		...containers.flatMap(({env = []}) => env.map(({valueFrom}) => valueFrom?.secretKeyRef?.name)),
	]) {
		yield* name === undefined ? [] : [`Secret ${name}`];
	}

	for (const name of [
		...volumes.map(({configMap}) => configMap?.name),
		...containers.flatMap(({envFrom = []}) => envFrom.map(({configMapRef}) => configMapRef?.name)),
		...containers.flatMap(({env = []}) => env.map(({valueFrom}) => valueFrom?.configMapKeyRef?.name)),
	]) {
		yield* name === undefined ? [] : [`ConfigMap ${name}`];
	}
}

type Certificate = Manifest & {spec: {secretName: string; dnsNames?: readonly string[]}};

/** The secret that cert-manager or OpenShift's service CA makes for the object, if any. */
function certificateSecret(manifest: Manifest): string[] {
	const name =
		manifest.kind === 'Certificate'
			? (manifest as Certificate).spec.secretName
			: manifest.metadata.annotations?.['service.beta.openshift.io/serving-cert-secret-name'];
	return name === undefined ? [] : [name];
}

/** As Kubernetes does; an empty selector is a mistake here. */
function selects(selector: LabelSelector | undefined, labels: Readonly<Record<string, string>>): boolean {
	const wanted = Object.entries(selector?.matchLabels ?? {});
	return (
		wanted.length > 0 &&
		selector?.matchExpressions === undefined &&
		wanted.every(([name, value]) => labels[name] === value)
	);
}

function* leaves(value: unknown, path: readonly string[] = []): Generator<[path: readonly string[], value: unknown]> {
	if (typeof value === 'object' && value !== null) {
		for (const [name, inner] of Object.entries(value)) {
			yield* leaves(inner, [...path, name]);
		}
	} else {
		yield [path, value];
	}
}

/** Kubernetes, "Custom Resources", "Specifying a structural schema". */
function untyped(
	{type, properties = {}, additionalProperties, items}: JSONSchemaProps,
	path: readonly string[],
): string[] {
	const inner = [
		...Object.entries(properties),
		...(typeof additionalProperties === 'object' ? [['*', additionalProperties] as const] : []),
		...(typeof items === 'object' ? [['[]', items] as const] : []),
	];
	return [
		...(type === undefined ? [path.join('.') || 'the root'] : []),
		...inner.flatMap(([name, schema]) => untyped(schema as JSONSchemaProps, [...path, name])),
	];
}
