/**
 * Checks manifests against the types of the Kubernetes API by handing them to the TypeScript compiler: each becomes a
 * constant of its kind's type, so that a field that the kind does not have, one that it must have, and a value of the
 * wrong type are errors. The types are those of Kubernetes 1.30, the oldest that the manifests are for; what is valid
 * there stays valid, since all are of API versions that only grow. Custom resources get a type from their definition.
 */
import {join} from 'node:path';
import type {CustomResourceDefinition, JSONSchemaProps} from 'kubernetes-types/apiextensions/v1.js';
import ts from 'typescript';
import type {Manifest} from './manifests.ts';

/** API version to the module of its types. */
const modules: Readonly<Record<string, string>> = {
	v1: 'core/v1',
	'apps/v1': 'apps/v1',
	'batch/v1': 'batch/v1',
	'policy/v1': 'policy/v1',
	'node.k8s.io/v1': 'node/v1',
	'networking.k8s.io/v1': 'networking/v1',
	'rbac.authorization.k8s.io/v1': 'rbac/v1',
	'apiextensions.k8s.io/v1': 'apiextensions/v1',
	'admissionregistration.k8s.io/v1': 'admissionregistration/v1',
};

/** Kinds that others define, as far as they are used here. */
const foreign: Readonly<Record<string, string>> = {
	// cert-manager, "API reference", cert-manager.io/v1
	'cert-manager.io/v1 Issuer': '{metadata: ObjectMeta; spec: {selfSigned: {}} | {ca: {secretName: string}}}',
	'cert-manager.io/v1 Certificate':
		'{metadata: ObjectMeta; spec: {secretName: string; dnsNames?: string[]; isCA?: boolean; commonName?: string; duration?: string; renewBefore?: string; ' +
		'privateKey?: {algorithm?: "RSA" | "ECDSA" | "Ed25519"; size?: number; rotationPolicy?: "Always" | "Never"}; ' +
		'issuerRef: {name: string; kind?: "Issuer" | "ClusterIssuer"; group?: string}}}',
	// prometheus-operator, "API reference", monitoring.coreos.com/v1
	'monitoring.coreos.com/v1 ServiceMonitor':
		'{metadata: ObjectMeta; spec: {selector: {matchLabels: {[name: string]: string}}; endpoints: Array<{port: string; scheme: "http" | "https"; path: string; interval: string; ' +
		'bearerTokenFile?: string; tlsConfig?: {serverName: string; caFile?: string; ca?: {secret: {name: string; key: string}}}; ' +
		'relabelings?: Array<{sourceLabels: string[]; targetLabel: string}>}>}}',
	'monitoring.coreos.com/v1 PrometheusRule':
		'{metadata: ObjectMeta; spec: {groups: Array<{name: string; rules: Array<{alert: string; expr: string; for?: string; labels: {severity: "critical" | "warning" | "info"}; ' +
		'annotations: {summary: string; description: string; runbook_url: string}}>}>}}',
	// OpenShift, openshift/api, security/v1
	'security.openshift.io/v1 SecurityContextConstraints':
		'{metadata: ObjectMeta; allowHostDirVolumePlugin: boolean; allowHostIPC: boolean; allowHostNetwork: boolean; allowHostPID: boolean; ' +
		'allowHostPorts: boolean; allowPrivilegedContainer: boolean; allowPrivilegeEscalation?: boolean; allowedCapabilities: string[]; readOnlyRootFilesystem: boolean; ' +
		'runAsUser: {type: "RunAsAny"}; seLinuxContext: {type: "RunAsAny"}; fsGroup: {type: "RunAsAny"}; supplementalGroups: {type: "RunAsAny"}; ' +
		'seccompProfiles?: string[]; volumes: string[]; users: string[]; groups: string[]}',
	// OpenShift, openshift/api, machineconfiguration/v1; Ignition, "Configuration Specification v3.2.0"
	'machineconfiguration.openshift.io/v1 MachineConfig':
		'{metadata: ObjectMeta; spec: {extensions?: string[]; config: {ignition: {version: "3.2.0"}; ' +
		'storage: {files: Array<{path: string; mode: number; overwrite?: boolean; contents: {source: string}}>}}}}',
};

/** What kubernetes-types 1.30.0 leaves out of an interface. */
const supplement =
	'import type {} from "kubernetes-types/admissionregistration/v1.js"; declare module "kubernetes-types/admissionregistration/v1.js" {interface RuleWithOperations {resources?: string[]; scope?: string} interface NamedRuleWithOperations {resources?: string[]; scope?: string}}';

const path = join(import.meta.dirname, 'manifests.generated.ts');
const options: ts.CompilerOptions = {
	strict: true,
	exactOptionalPropertyTypes: true,
	noEmit: true,
	skipLibCheck: true,
	types: [],
	lib: ['lib.es5.d.ts'],
	module: ts.ModuleKind.NodeNext,
	moduleResolution: ts.ModuleResolutionKind.NodeNext,
};

/** Everything of the compiler's that does not depend on the manifests, parsed once. */
const host = ts.createCompilerHost(options);
const parsed = new Map<string, ts.SourceFile | undefined>();
const parse = host.getSourceFile.bind(host);

/** @returns what is wrong, each with the object that it is in; nothing when all is well */
export function typeErrors(manifests: readonly Manifest[], definitions: readonly CustomResourceDefinition[]): string[] {
	const custom = new Map(
		definitions.flatMap(({spec}) =>
			spec.versions.map(({name, schema}) => [
				`${spec.group}/${name} ${spec.names.kind}`,
				typeOf(schema?.openAPIV3Schema ?? {}),
			]),
		),
	);
	const unknown: string[] = [];
	const lines = [`import type {ObjectMeta} from "kubernetes-types/meta/v1.js"; ${supplement}`];
	const names: string[] = [''];
	for (const manifest of manifests) {
		const {apiVersion, kind, ...rest} = manifest;
		const module = modules[apiVersion];
		const type =
			custom.get(`${apiVersion} ${kind}`) ??
			foreign[`${apiVersion} ${kind}`] ??
			(module === undefined ? undefined : `import("kubernetes-types/${module}.js").${kind}`);
		if (type === undefined) {
			unknown.push(`${nameOf(manifest)}: there is no type for ${apiVersion}`);
			continue;
		}

		// One line each, so that an error's line tells the object.
		const value = module === undefined || custom.has(`${apiVersion} ${kind}`) ? rest : manifest;
		names.push(nameOf(manifest));
		lines.push(`export const m${lines.length}: ${type} = ${JSON.stringify(value)};`);
	}

	const text = lines.join('\n');
	const program = ts.createProgram([path], options, {
		...host,
		fileExists: name => name === path || host.fileExists(name),
		getSourceFile(name, version) {
			if (name === path) {
				return ts.createSourceFile(name, text, version);
			}

			if (!parsed.has(name)) {
				parsed.set(name, parse(name, version));
			}

			return parsed.get(name);
		},
	});
	return [
		...unknown,
		...ts.getPreEmitDiagnostics(program).map(({start, file, messageText}) => {
			const line = file?.getLineAndCharacterOfPosition(start ?? 0).line ?? 0;
			return `${names[line] ?? ''}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`;
		}),
	];
}

/** The TypeScript of a structural schema. */
function typeOf(
	{type, properties = {}, required = [], additionalProperties, enum: words}: JSONSchemaProps,
	isRoot = true,
): string {
	switch (type) {
		case 'object': {
			if (typeof additionalProperties === 'object') {
				return `{[name: string]: ${typeOf(additionalProperties, false)}}`;
			}

			const fields = Object.entries(properties)
				.filter(([name]) => !isRoot || (name !== 'apiVersion' && name !== 'kind'))
				.map(
					([name, schema]) =>
						`${JSON.stringify(name)}${required.includes(name) ? '' : '?'}: ${isRoot && name === 'metadata' ? 'ObjectMeta' : typeOf(schema, false)}`,
				);
			return `{${fields.join('; ')}}`;
		}

		case 'string': {
			return words === undefined ? 'string' : words.map(word => JSON.stringify(word)).join(' | ');
		}

		case 'integer': {
			return 'number';
		}

		case 'boolean': {
			return 'boolean';
		}

		case undefined:
		default: {
			throw new TypeError(`A schema without a type that is known here: ${JSON.stringify(type)}`);
		}
	}
}

export function nameOf({kind, metadata}: Manifest): string {
	return `${kind} ${metadata.name}`;
}
