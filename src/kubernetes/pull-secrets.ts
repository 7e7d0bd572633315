/**
 * The registry credentials of a pod: those of its own image pull secrets first, in their order, then its service
 * account's, then the administrator's file. The kubelet tries them in that order where it knows several; a pod VM knows
 * one for each registry. What cannot be had is said, in the log and to the pod, and is no reason for a pod not to
 * start: its images may need none. Credentials are held as secrets, and written nowhere here.
 */
import {readFile} from 'node:fs/promises';
import {AdaptorError, toError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {Secret, type Logger} from '../core/log.ts';
import type {Cluster, PodIdentity} from '../sandbox/ports.ts';
import type {KubernetesClient} from './client.ts';
import {isNotFound} from './errors.ts';
import {listAt, textAt} from './fields.ts';
import type {Kind} from './objects.ts';
import {isSamePod, pods} from './pods.ts';
import {authJson, parseRegistryAuth, type RegistryAuth} from './registry-auth.ts';

export interface PullSecretsOptions {
	readonly client: Pick<KubernetesClient, 'get'>;
	/** Where the pod's owner gets to see what is missing. */
	readonly tell: Cluster['recordEvent'];
	/** The administrator's credentials for all pods; there need not be any. */
	readonly authFile?: string;
	/** How long a start waits for all look-ups together: what is not known by then is not known. */
	readonly timeoutMs?: number;
	readonly log: Logger;
}

/**
 * A pod can name tens of thousands, and each may hold 1 MiB: no tenant is to fill the node's memory and log with them.
 */
const maxSecrets = 50;

/** Where the OpenShift sandboxed containers operator mounts the secret `auth-json-secret`. */
const defaultAuthFile = '/root/containers/auth.json';

interface PodSettings {
	readonly serviceAccount: string;
	readonly pullSecrets: readonly string[];
}

interface PullSecret {
	/** As the API gives it, in base64; undefined for a secret of another type. */
	readonly data: {readonly format: 'dockerconfigjson' | 'dockercfg'; readonly text: Secret<string>} | undefined;
}

const podSettings: Kind<PodSettings> = {
	...pods,
	read: raw => ({
		serviceAccount: textAt(raw, 'spec', 'serviceAccountName') ?? 'default',
		pullSecrets: namesAt(raw, 'spec', 'imagePullSecrets'),
	}),
};

const serviceAccounts: Kind<{readonly pullSecrets: readonly string[]}> = {
	apiVersion: 'v1',
	kind: 'ServiceAccount',
	plural: 'serviceaccounts',
	isNamespaced: true,
	read: raw => ({pullSecrets: namesAt(raw, 'imagePullSecrets')}),
};

const secrets: Kind<PullSecret> = {
	apiVersion: 'v1',
	kind: 'Secret',
	plural: 'secrets',
	isNamespaced: true,
	read(raw) {
		const format = (['dockerconfigjson', 'dockercfg'] as const).find(
			each => textAt(raw, 'data', `.${each}`) !== undefined,
		);
		return {
			data:
				format === undefined ? undefined : {format, text: new Secret(textAt(raw, 'data', `.${format}`) ?? '')},
		};
	},
};

export class PullSecrets {
	readonly #options: Required<PullSecretsOptions>;

	constructor(options: PullSecretsOptions) {
		this.#options = {authFile: defaultAuthFile, timeoutMs: 4000, ...options};
	}

	/** As `Cluster` promises it. */
	async pullCredentials(pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		const [own, administrators] = await Promise.all([this.#ofPod(pod, signal), this.#ofAdministrator()]);
		signal.throwIfAborted();
		const text = authJson([...own, ...administrators]);
		return text === undefined ? undefined : new Secret(text);
	}

	async #ofPod(pod: PodIdentity, caller: AbortSignal): Promise<readonly RegistryAuth[]> {
		const {client, tell, timeoutMs, log} = this.#options;
		using scope = new Scope(caller).deadline(timeoutMs, 'the Kubernetes API');
		const {signal} = scope;
		const {namespace} = pod;
		const failures: string[] = [];
		const attempt = async <T>(what: string, work: () => Promise<T>): Promise<T | undefined> => {
			try {
				return await work();
			} catch (thrown) {
				caller.throwIfAborted();
				const error = signal.aborted ? toError(signal.reason) : toError(thrown);
				failures.push(
					`${what}: ${isNotFound(error) ? 'not found' : error instanceof AdaptorError ? error.what : error.message}`,
				);
				log.warn(
					{pod: `${namespace}/${pod.name}`, reason: what, err: error},
					'image pull secrets cannot be read, the pod goes on without',
				);
				return undefined;
			}
		};

		const found = await attempt(`pod ${pod.name}`, async () => {
			const object = await client.get(podSettings, pod, signal);
			if (!isSamePod(pod.uid, object.metadata)) {
				throw new AdaptorError({code: 'not-found', what: 'The pod of this name is another one'});
			}

			return object;
		});
		const account =
			found === undefined
				? undefined
				: await attempt(`service account ${found.serviceAccount}`, async () =>
						client.get(serviceAccounts, {namespace, name: found.serviceAccount}, signal),
					);
		// Mostly the same: Kubernetes gives a pod that names none its service account's.
		const names = [...new Set([...(found?.pullSecrets ?? []), ...(account?.pullSecrets ?? [])])];
		if (names.length > maxSecrets) {
			await attempt(`${names.length - maxSecrets} secrets beyond the first ${maxSecrets}`, async () => {
				throw new AdaptorError({code: 'resource-exhausted', what: 'not read, there are too many'});
			});
		}

		const read = await Promise.all(
			names.slice(0, maxSecrets).map(async name =>
				attempt(`secret ${name}`, async () => {
					const {data} = await client.get(secrets, {namespace, name}, signal);
					if (data === undefined) {
						throw new AdaptorError({code: 'data-loss', what: 'no registry credentials in it'});
					}

					return parseRegistryAuth(Buffer.from(data.text.reveal(), 'base64').toString(), data.format);
				}),
			),
		);
		if (failures.length > 0) {
			// The kubelet's word for it.
			tell(pod, {
				type: 'Warning',
				reason: 'FailedToRetrieveImagePullSecret',
				message: `Images that need these credentials cannot be pulled into the pod VM: ${failures.join('; ')}`,
			});
		}

		return read.filter(each => each !== undefined);
	}

	/** Read each time: the kubelet replaces it when the secret changes. */
	async #ofAdministrator(): Promise<readonly RegistryAuth[]> {
		const {authFile, log} = this.#options;
		try {
			return [parseRegistryAuth(await readFile(authFile, 'utf8'), 'dockerconfigjson')];
		} catch (error) {
			if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
				log.warn(
					{path: authFile, err: error},
					'registry credentials of the administrator cannot be read, pods go on without',
				);
			}

			return [];
		}
	}
}

/** References to objects of the same namespace. An empty name, which the API lets pass, refers to none. */
function namesAt(raw: unknown, ...path: readonly string[]): readonly string[] {
	return listAt(raw, ...path)
		.map(each => textAt(each, 'name') ?? '')
		.filter(name => name !== '');
}
