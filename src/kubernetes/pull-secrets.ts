/**
 * Collects the registry credentials of a pod: first from its image pull secrets, in their order, then from its service
 * account, then from the file of the administrator. The kubelet tries several credentials in this order; a pod VM
 * supports one per registry. Missing credentials are reported in the log and in an event of the pod, but do not prevent
 * the start: the images may need none. Credentials are held as `Secret` and never written to a file here.
 *
 * The owner of a pod decides the number and the content of the secrets. So each secret has a size limit, the daemon
 * holds only a few at a time, and each step runs in a separate turn of the event loop.
 */
import {readFile} from 'node:fs/promises';
import {AdaptorError, toError} from '../core/errors.ts';
import {Semaphore} from '../core/concurrency/semaphore.ts';
import {isWithinBounds} from '../core/json.ts';
import {Scope} from '../core/lifetime.ts';
import {Secret, type Logger} from '../core/log.ts';
import type {Cluster, PodIdentity} from '../sandbox/ports.ts';
import type {KubernetesClient} from './client.ts';
import {isNotFound} from './errors.ts';
import {listAt, textAt} from '../core/json.ts';
import {ownersBounds, type ApiObject, type Kind, type ObjectName} from './objects.ts';
import {Pieces} from './pieces.ts';
import {isSamePod, wholePods} from './pods.ts';
import {
	authJson,
	bytesOf,
	maxRegistryLength,
	parseRegistryAuth,
	type ParsedAuth,
	type RegistryAuth,
} from './registry-auth.ts';

export interface PullSecretsOptions {
	readonly client: Pick<KubernetesClient, 'get'>;
	/** Receives events for the owner of the pod about missing credentials. */
	readonly tell: Cluster['recordEvent'];
	/** The credentials of the administrator for all pods; optional. */
	readonly authFile?: string;
	/** Time limit of all requests of a start; later answers are ignored. */
	readonly timeoutMs?: number;
	readonly log: Logger;
}

/** Most pods name one to three. A pod could name tens of thousands, and flood the log and the API server. */
const maxSecrets = 32;
/** Number of objects that are read and held at the same time, for all pods together. */
const maxReads = 4;
/**
 * Limit for the credentials in one secret, and for all credentials that a pod brings: enough for thousands of
 * registries. They are written to the VM's disk.
 */
const maxCredentialBytes = 262_144;
/** Limits for the credentials in one secret. An entry with "auth" has two parts. */
const credentialBounds = {parts: 5000, depth: 20};

/** Where the OpenShift sandboxed containers operator mounts the secret `auth-json-secret`. */
const defaultAuthFile = '/root/containers/auth.json';

interface PodSettings {
	readonly serviceAccount: string;
	readonly pullSecrets: readonly string[];
}

interface PullSecret {
	/** As in the API, in base64; undefined for a secret of another type. */
	readonly data: {readonly format: 'dockerconfigjson' | 'dockercfg'; readonly text: Secret<string>} | undefined;
}

const podSettings: Kind<PodSettings> = {
	...wholePods,
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
	bounds: ownersBounds,
	read: raw => ({pullSecrets: namesAt(raw, 'imagePullSecrets')}),
};

const secrets: Kind<PullSecret> = {
	apiVersion: 'v1',
	kind: 'Secret',
	plural: 'secrets',
	isNamespaced: true,
	bounds: ownersBounds,
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
	readonly #reads = new Semaphore(maxReads);
	readonly #pieces = new Pieces();

	constructor(options: PullSecretsOptions) {
		this.#options = {authFile: defaultAuthFile, timeoutMs: 4000, ...options};
	}

	/** See `Cluster`. */
	async pullCredentials(pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		const [own, administrators] = await Promise.all([this.#ofPod(pod, signal), this.#ofAdministrator()]);
		signal.throwIfAborted();
		const text = await this.#pieces.run(() => authJson([...own, ...administrators]), signal);
		return text === undefined ? undefined : new Secret(text);
	}

	async #ofPod(pod: PodIdentity, caller: AbortSignal): Promise<readonly RegistryAuth[]> {
		const {tell, timeoutMs, log} = this.#options;
		using scope = new Scope(caller).deadline(timeoutMs, 'the Kubernetes API');
		const {signal} = scope;
		const {namespace} = pod;
		const failures: string[] = [];
		const report = (what: string, error: Error): void => {
			failures.push(
				`${what}: ${isNotFound(error) ? 'not found' : error instanceof AdaptorError ? error.what : error.message}`,
			);
			log.warn(
				{pod: `${namespace}/${pod.name}`, reason: what, err: error},
				'could not read image pull secrets; the pod starts without them',
			);
		};
		const attempt = async <T>(what: string, work: () => Promise<T>): Promise<T | undefined> => {
			try {
				return await work();
			} catch (thrown) {
				caller.throwIfAborted();
				report(what, signal.aborted ? toError(signal.reason) : toError(thrown));
				return undefined;
			}
		};

		const found = await attempt(`pod ${pod.name}`, async () => {
			const object = await this.#get(podSettings, pod, signal);
			if (!isSamePod(pod.uid, object.metadata)) {
				throw new AdaptorError({code: 'not-found', what: 'The pod with this name has another UID'});
			}

			return object;
		});
		const account =
			found === undefined
				? undefined
				: await attempt(`service account ${found.serviceAccount}`, async () =>
						this.#get(serviceAccounts, {namespace, name: found.serviceAccount}, signal),
					);
		// Usually the same secrets: Kubernetes adds the secrets of the service account to a pod that has none.
		const given = [...new Set([...(found?.pullSecrets ?? []), ...(account?.pullSecrets ?? [])])];
		const names = given.filter(name => isSecretName(name));
		if (names.length < given.length) {
			report(
				`${given.length - names.length} secrets`,
				new AdaptorError({code: 'invalid-argument', what: 'these are not valid names of secrets'}),
			);
		}

		if (names.length > maxSecrets) {
			report(
				`${names.length - maxSecrets} secrets beyond the first ${maxSecrets}`,
				new AdaptorError({code: 'resource-exhausted', what: 'not read because there are too many'}),
			);
		}

		const read = await Promise.all(
			names.slice(0, maxSecrets).map(async name =>
				attempt(`secret ${name}`, async () => ({
					name,
					...(await this.#credentialsIn({namespace, name}, signal)),
				})),
			),
		);
		const kept: RegistryAuth[] = [];
		let bytes = 0;
		for (const {name, credentials, refused, bytes: added} of read.filter(each => each !== undefined)) {
			if (refused > 0) {
				report(`secret ${name}`, refusedNames(refused));
			}

			if (bytes + added > maxCredentialBytes) {
				report(
					`secret ${name}`,
					new AdaptorError({
						code: 'resource-exhausted',
						what: `its ${added} bytes of credentials exceed the limit of ${maxCredentialBytes} together with ${bytes} bytes of other secrets`,
					}),
				);
			} else {
				bytes += added;
				kept.push(credentials);
			}
		}

		if (failures.length > 0) {
			// The reason that the kubelet uses.
			tell(pod, {
				type: 'Warning',
				reason: 'FailedToRetrieveImagePullSecret',
				message: `The pod VM cannot pull images that need these credentials: ${failures.join('; ')}`,
			});
		}

		return kept;
	}

	async #get<Fields>(kind: Kind<Fields>, name: ObjectName, signal: AbortSignal): Promise<ApiObject<Fields>> {
		using _ = await this.#turn(name, signal);
		return await this.#options.client.get(kind, name, signal);
	}

	/** Namespaces take turns, so that one tenant's many secrets do not delay another tenant's few. */
	async #turn({namespace}: ObjectName, signal: AbortSignal): Promise<Disposable> {
		return this.#reads.acquire(signal, namespace);
	}

	/** @throws AdaptorError 'data-loss', 'resource-exhausted', without content of the secret; KubernetesError */
	async #credentialsIn(name: ObjectName, signal: AbortSignal): Promise<ParsedAuth & {readonly bytes: number}> {
		// Held until the secret is parsed and no longer needed.
		using _ = await this.#turn(name, signal);
		const {data} = await this.#options.client.get(secrets, name, signal);
		if (data === undefined) {
			throw new AdaptorError({code: 'data-loss', what: 'contains no registry credentials'});
		}

		return await this.#pieces.run(() => {
			const encoded = data.text.reveal();
			if (encoded.length > Math.ceil(maxCredentialBytes / 3) * 4) {
				throw new AdaptorError({
					code: 'resource-exhausted',
					what: `its credentials are larger than ${maxCredentialBytes} bytes`,
				});
			}

			const json = Buffer.from(encoded, 'base64');
			if (!isWithinBounds(json, credentialBounds)) {
				throw new AdaptorError({
					code: 'resource-exhausted',
					what: `its credentials have more than ${credentialBounds.parts} values, or more than ${credentialBounds.depth} levels`,
				});
			}

			const parsed = parseRegistryAuth(json.toString(), data.format);
			return {...parsed, bytes: bytesOf(parsed.credentials)};
		}, signal);
	}

	/** Read each time, because the kubelet replaces it when the secret changes. */
	async #ofAdministrator(): Promise<readonly RegistryAuth[]> {
		const {authFile, log} = this.#options;
		try {
			const {credentials, refused} = parseRegistryAuth(await readFile(authFile, 'utf8'), 'dockerconfigjson');
			if (refused > 0) {
				log.warn(
					{path: authFile, err: refusedNames(refused)},
					'omitting registry credentials of the administrator with unusable registry names',
				);
			}

			return [credentials];
		} catch (error) {
			if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
				log.warn(
					{path: authFile, err: error},
					'could not read the registry credentials of the administrator; pods start without them',
				);
			}

			return [];
		}
	}
}

function refusedNames(count: number): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `${count} of its registries have invalid names or names of more than ${maxRegistryLength} characters`,
	});
}

/** Kubernetes, "Object Names and IDs", DNS subdomain names. */
function isSecretName(name: string): boolean {
	return name.length <= 253 && /^[a-z\d](?:[a-z\d\-]*[a-z\d])?(?:\.[a-z\d](?:[a-z\d\-]*[a-z\d])?)*$/v.test(name);
}

/** References to objects in the same namespace. The API accepts an empty name, which refers to none. */
function namesAt(raw: unknown, ...path: readonly string[]): readonly string[] {
	return listAt(raw, ...path)
		.map(each => textAt(each, 'name') ?? '')
		.filter(name => name !== '');
}
