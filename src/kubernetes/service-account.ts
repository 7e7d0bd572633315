/**
 * The access of a pod to the API server of its cluster: address in the environment, token and CA in files. The kubelet
 * replaces the files while the pod runs (tokens before they expire, after an hour by default), so they are read again.
 * Source: Kubernetes, "Accessing the Kubernetes API from a Pod". Proxies are not used, because the API server is in the
 * cluster.
 */
import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import {Secret} from '../core/log.ts';

export interface ApiServerAddress {
	/** Name or address; an IPv6 address without brackets. */
	readonly host: string;
	readonly port: number;
}

/** KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT; undefined outside a cluster. */
export function apiServerAddress(env: Readonly<Record<string, string | undefined>>): ApiServerAddress | undefined {
	const host = env['KUBERNETES_SERVICE_HOST']?.trim();
	const port = Number(env['KUBERNETES_SERVICE_PORT']?.trim() ?? '');
	return host !== undefined && host !== '' && Number.isInteger(port) && port > 0 && port < 65_536
		? {host, port}
		: undefined;
}

export const serviceAccountDirectory = '/var/run/secrets/kubernetes.io/serviceaccount';

interface Credentials {
	readonly token: Secret<string>;
	/** PEM. */
	readonly ca: string;
}

/** How long the content of the files is cached. */
const freshMs = 10_000;

export class ServiceAccount {
	readonly #directory: string;
	readonly #now: () => number;
	#read: {readonly credentials: Promise<Credentials>; readonly at: number} | undefined;

	/** @param now milliseconds of a monotonic clock */
	constructor(directory = serviceAccountDirectory, now: () => number = () => performance.now()) {
		this.#directory = directory;
		this.#now = now;
	}

	/**
	 * The content of the files, at most ten seconds old.
	 * @param rejected credentials that the server rejected: if they are the cached ones, the files are read again at
	 * once
	 * @throws AdaptorError 'failed-precondition' if the files do not exist
	 */
	async credentials(rejected?: Credentials): Promise<Credentials> {
		if (
			this.#read === undefined ||
			this.#now() - this.#read.at >= freshMs ||
			(rejected !== undefined && (await this.#read.credentials) === rejected)
		) {
			const credentials = this.#readAll();
			this.#read = {credentials, at: this.#now()};
			credentials.catch(() => {
				this.#read = undefined;
			});
		}

		return this.#read.credentials;
	}

	/** The namespace that this pod runs in. @throws AdaptorError 'failed-precondition' */
	async namespace(): Promise<string> {
		return this.#file('namespace');
	}

	async #readAll(): Promise<Credentials> {
		const [token, ca] = await Promise.all([this.#file('token'), this.#file('ca.crt')]);
		return {token: new Secret(token), ca};
	}

	async #file(name: string): Promise<string> {
		const path = join(this.#directory, name);
		try {
			return (await readFile(path, 'utf8')).trim();
		} catch (error) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'Could not read a file of the service account of the pod',
				where: {path},
				remedy: 'The pod needs a service account whose token is mounted (automountServiceAccountToken).',
				cause: error,
			});
		}
	}
}
