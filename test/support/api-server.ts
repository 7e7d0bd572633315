/**
 * A small Kubernetes API server in memory, over real HTTPS with its own CA. It authenticates by token, checks content
 * types, serves watches with bookmarks and 410, and injects faults for tests. api-store.ts has the objects.
 */
import {randomBytes} from 'node:crypto';
import {once} from 'node:events';
import {mkdtemp, rename, rm, writeFile} from 'node:fs/promises';
import type {IncomingMessage, ServerResponse} from 'node:http';
import {createServer, type Server} from 'node:https';
import type {AddressInfo} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {at, textAt} from '../../src/core/json.ts';
import {ServiceAccount, type ApiServerAddress} from '../../src/kubernetes/service-account.ts';
import {makeCa, makeServerCertificate} from '../../src/relay/certificates.ts';
import {ApiFault, ApiStore, type Raw, type ServedKind, type StoreEvent} from './api-store.ts';

export type {Raw} from './api-store.ts';

/** One request, with the attributes that RBAC uses. */
export interface ApiCall {
	readonly verb: 'get' | 'list' | 'watch' | 'create' | 'update' | 'patch' | 'delete';
	/** Empty for the core group. */
	readonly group: string;
	readonly plural: string;
	readonly namespace: string | undefined;
	readonly name: string | undefined;
	readonly subresource: string | undefined;
	readonly contentType: string | undefined;
	/** Whether only the metadata of a single object is requested. */
	readonly isMetadataOnly: boolean;
	readonly body: unknown;
}

/**
 * What replaces the answer to a call. `drop-after` performs the call and closes the connection; `no-route` is the 404
 * of a proxy; `retryAfterSeconds` is the answer of a server that is busy or not ready.
 */
export type Fault =
	| 'drop'
	| 'drop-after'
	| 'forbidden'
	| 'error'
	| 'busy'
	| 'silence'
	| 'garbage'
	| 'no-route'
	| {readonly retryAfterSeconds: number};

const builtIns: readonly ServedKind[] = [
	{apiVersion: 'v1', kind: 'Namespace', plural: 'namespaces', isNamespaced: false},
	{apiVersion: 'v1', kind: 'Node', plural: 'nodes', isNamespaced: false, hasStatus: true},
	{apiVersion: 'v1', kind: 'Pod', plural: 'pods', isNamespaced: true, hasStatus: true},
	{apiVersion: 'v1', kind: 'Secret', plural: 'secrets', isNamespaced: true},
	{apiVersion: 'v1', kind: 'ConfigMap', plural: 'configmaps', isNamespaced: true},
	{apiVersion: 'v1', kind: 'ServiceAccount', plural: 'serviceaccounts', isNamespaced: true},
	{apiVersion: 'v1', kind: 'Event', plural: 'events', isNamespaced: true},
	{apiVersion: 'events.k8s.io/v1', kind: 'Event', plural: 'events', isNamespaced: true},
	{apiVersion: 'apps/v1', kind: 'DaemonSet', plural: 'daemonsets', isNamespaced: true, hasStatus: true},
	{apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', plural: 'leases', isNamespaced: true},
];

/** The custom resources of peer pods; add them with `define`. */
export const peerPodKind: ServedKind = {
	apiVersion: 'confidentialcontainers.org/v1alpha1',
	kind: 'PeerPod',
	plural: 'peerpods',
	isNamespaced: true,
	hasStatus: true,
};
export const peerPodConfigKind: ServedKind = {
	apiVersion: 'confidentialcontainers.org/v1alpha1',
	kind: 'PeerPodConfig',
	plural: 'peerpodconfigs',
	isNamespaced: true,
	hasStatus: true,
};

interface Watcher {
	readonly response: ServerResponse;
	readonly kind: ServedKind;
}

/** Disposing ends all connections and removes the files. */
export class TestApiServer implements AsyncDisposable {
	readonly store = new ApiStore();
	/** All calls, in order of arrival. */
	readonly calls: ApiCall[] = [];
	/** The namespace in `accountDirectory`. */
	readonly namespace = 'openshift-sandboxed-containers-operator';
	/** The files of a pod in /var/run/secrets/kubernetes.io/serviceaccount. */
	readonly accountDirectory: string;
	/** PEM. */
	readonly ca: string;
	readonly #server: Server;
	readonly #kinds = new Set<ServedKind>(builtIns);
	readonly #watchers = new Set<Watcher>();
	readonly #faults = new Set<(call: ApiCall) => Fault | undefined>();
	readonly #waiters = new Set<() => void>();
	#token = '';
	#connections = 0;

	static async start(): Promise<TestApiServer> {
		const validity = {notBefore: new Date(Date.now() - 3_600_000), notAfter: new Date(Date.now() + 86_400_000)};
		const ca = await makeCa('test cluster', validity);
		const {cert, key} = await makeServerCertificate('localhost', ca, validity);
		// Like a real API server, this one leaves it to the clients to close idle connections.
		const server = createServer({cert, key: key.reveal(), keepAliveTimeout: 0});
		server.listen(0, 'localhost');
		await once(server, 'listening');
		const api = new TestApiServer(server, ca.cert, await mkdtemp(join(tmpdir(), 'caat-service-account-')));
		await Promise.all([
			writeFile(join(api.accountDirectory, 'namespace'), api.namespace),
			writeFile(join(api.accountDirectory, 'ca.crt'), ca.cert),
			api.rotateToken(),
		]);
		for (const name of ['default', api.namespace]) {
			api.put('namespaces', {metadata: {name}});
		}

		return api;
	}

	private constructor(server: Server, ca: string, accountDirectory: string) {
		this.#server = server;
		this.ca = ca;
		this.accountDirectory = accountDirectory;
		server.on('secureConnection', socket => {
			this.#connections += 1;
			socket.once('close', () => {
				this.#connections -= 1;
				this.#wake();
			});
		});
		server.on('request', (request, response) => {
			void this.#serve(request, response);
		});
	}

	get address(): ApiServerAddress {
		return {host: 'localhost', port: (this.#server.address() as AddressInfo).port};
	}

	/** The environment of a pod. */
	get environment(): Readonly<Record<string, string>> {
		const {host, port} = this.address;
		return {KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: String(port)};
	}

	/** The service account of a pod, except that its files are read again for each request. */
	get account(): ServiceAccount {
		return new ServiceAccount(this.accountDirectory, () => performance.now() * 1e6);
	}

	/** Replaces the token in the file, like the kubelet. The old token is no longer accepted. */
	async rotateToken(): Promise<void> {
		const token = randomBytes(24).toString('base64url');
		await writeFile(join(this.accountDirectory, 'token.new'), token);
		await rename(join(this.accountDirectory, 'token.new'), join(this.accountDirectory, 'token'));
		this.#token = token;
	}

	/** The valid token. Tests check that it does not leak. */
	get token(): string {
		return this.#token;
	}

	define(...kinds: readonly ServedKind[]): void {
		for (const kind of kinds) {
			this.#kinds.add(kind);
		}
	}

	/** Deletes a custom resource definition: removes its objects and ends its watches. */
	undefine(kind: ServedKind): void {
		this.#kinds.delete(kind);
		this.store.forget(kind);
		this.#endWatches(watcher => watcher.kind === kind);
	}

	/** Creates or replaces an object, with its status, as an administrator of the cluster. */
	put(
		plural: string,
		object: Readonly<Record<string, unknown>> & {
			readonly metadata: Readonly<Record<string, unknown>> & {readonly name: string; readonly namespace?: string};
		},
	): Raw {
		const kind = this.#kindOf(plural);
		const {name, namespace} = object.metadata;
		const whole = {apiVersion: kind.apiVersion, kind: kind.kind, ...object};
		const {status} = object;
		const stored =
			this.find(plural, name, namespace) === undefined
				? this.store.create(kind, namespace, whole)
				: this.store.patch(kind, namespace, name, undefined, 'application/merge-patch+json', whole);
		return status === undefined
			? stored
			: this.store.patch(kind, namespace, name, 'status', 'application/merge-patch+json', {status});
	}

	find(plural: string, name: string, namespace?: string): Raw | undefined {
		return this.list(plural).find(({metadata}) => metadata.name === name && metadata.namespace === namespace);
	}

	list(plural: string): readonly Raw[] {
		return this.store.all(this.#kindOf(plural));
	}

	/** Like `kubectl delete`. */
	delete(plural: string, name: string, namespace?: string): void {
		this.store.delete(this.#kindOf(plural), namespace, name, {});
	}

	/** Drops the history: watches from an earlier version get 410. */
	compact(): void {
		this.store.compact();
	}

	bookmark(): void {
		for (const {kind, response} of this.#watchers) {
			const object = {
				apiVersion: kind.apiVersion,
				kind: kind.kind,
				metadata: {resourceVersion: String(this.store.version), creationTimestamp: null},
			};
			response.write(`${JSON.stringify({type: 'BOOKMARK', object})}\n`);
		}
	}

	/** Ends all watches: completes the answers, or closes the connections. */
	endWatches(how: 'end' | 'drop'): void {
		this.#endWatches(() => true, how);
	}

	/** Closes idle connections. */
	closeIdle(): void {
		this.#server.closeIdleConnections();
	}

	/** Number of connections from clients, including idle ones. */
	get connections(): number {
		return this.#connections;
	}

	/** Number of watches in progress. */
	get watches(): number {
		return this.#watchers.size;
	}

	/** Until disposed, calls for which `choose` returns a fault get that fault. */
	fault(choose: (call: ApiCall) => Fault | undefined): Disposable {
		this.#faults.add(choose);
		return {
			[Symbol.dispose]: () => {
				this.#faults.delete(choose);
			},
		};
	}

	/**
	 * Resolves when a condition on objects, calls, watches or connections holds. The condition is checked after each
	 * change of these.
	 */
	async until<T>(condition: () => T | undefined | false): Promise<T> {
		const giveUpAt = performance.now() + 100_000;
		for (;;) {
			const value = condition();
			if (value !== undefined && value !== false) {
				return value;
			}

			if (performance.now() >= giveUpAt) {
				throw new Error(`The condition never became true: ${String(condition)}`);
			}

			const {promise, resolve} = Promise.withResolvers<undefined>();
			const wake = (): void => resolve(undefined);
			this.#waiters.add(wake);
			const forget = this.store.onEvent(wake);
			const timer = setTimeout(wake, giveUpAt - performance.now() + 1);
			await promise;
			clearTimeout(timer);
			forget();
			this.#waiters.delete(wake);
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		const closed = this.#server.listening ? once(this.#server, 'close') : undefined;
		this.#server.close();
		this.#server.closeAllConnections();
		await closed;
		await rm(this.accountDirectory, {recursive: true, force: true});
	}

	#kindOf(plural: string): ServedKind {
		const kind = [...this.#kinds].find(each => each.plural === plural);
		if (kind === undefined) {
			throw new Error(`the test's API server has no ${plural}`);
		}

		return kind;
	}

	#wake(): void {
		for (const wake of [...this.#waiters]) {
			wake();
		}
	}

	#endWatches(isMeant: (watcher: Watcher) => boolean, how: 'end' | 'drop' = 'end'): void {
		for (const watcher of [...this.#watchers].filter(isMeant)) {
			if (how === 'end') {
				watcher.response.end();
			} else {
				watcher.response.destroy();
			}
		}
	}

	async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
		response.on('error', () => undefined);
		try {
			const body = await bodyOf(request);
			if (request.headers.authorization !== `Bearer ${this.#token}`) {
				throw new ApiFault(401, 'Unauthorized', 'Unauthorized');
			}

			await this.#route(request, body, response);
		} catch (error) {
			if (error instanceof ApiFault) {
				answerStatus(response, error);
			} else {
				answerStatus(response, new ApiFault(500, 'InternalError', String(error)));
			}
		} finally {
			this.#wake();
		}
	}

	async #route(request: IncomingMessage, body: string, response: ServerResponse): Promise<void> {
		const url = new URL(request.url ?? '/', 'https://localhost');
		const target = this.#target(url.pathname);
		if (target === undefined) {
			answerNoRoute(response);
			return;
		}

		const {kind, namespace, name, subresource} = target;
		const contentType = request.headers['content-type'];
		const isWatch = ['true', '1'].includes(url.searchParams.get('watch') ?? '');
		const verb = {
			GET: isWatch ? 'watch' : name === undefined ? 'list' : 'get',
			POST: 'create',
			PUT: 'update',
			PATCH: 'patch',
			DELETE: 'delete',
		}[request.method ?? ''];
		const parsed: unknown = body === '' ? undefined : JSON.parse(body);
		const isMetadataOnly =
			verb === 'get' &&
			/^application\/json;as=PartialObjectMetadata;g=meta\.k8s\.io;v=v1(?:,|$)/v.test(
				request.headers.accept ?? '',
			);
		const call = {
			verb,
			group: groupOf(kind),
			plural: kind.plural,
			namespace,
			name,
			subresource,
			contentType,
			isMetadataOnly,
			body: parsed,
		} as ApiCall;
		this.calls.push(call);
		const fault = [...this.#faults].map(choose => choose(call)).find(each => each !== undefined);
		if (isPrevented(fault, call, response)) {
			return;
		}

		if (call.verb === 'watch') {
			this.#watch(kind, namespace, url.searchParams, response);
			return;
		}

		const answer = this.#answer(call, kind, url.searchParams);
		if (fault === 'drop-after') {
			response.destroy();
		} else {
			response
				.writeHead(call.verb === 'create' ? 201 : 200, {'content-type': 'application/json'})
				.end(JSON.stringify(answer));
		}
	}

	#answer(
		{verb, namespace, name = '', subresource, contentType = '', isMetadataOnly, body}: ApiCall,
		kind: ServedKind,
		parameters: URLSearchParams,
	): unknown {
		switch (verb) {
			case 'get': {
				const object = this.store.get(kind, namespace, name);
				return isMetadataOnly
					? {kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata: object.metadata}
					: object;
			}

			case 'create': {
				requireType(contentType, ['application/json']);
				if (
					kind.isNamespaced &&
					(namespace === undefined || this.find('namespaces', namespace) === undefined)
				) {
					throw new ApiFault(404, 'NotFound', `namespaces "${String(namespace)}" not found`, {
						name: namespace,
						kind: 'namespaces',
					});
				}

				return this.store.create(kind, namespace, body);
			}

			case 'update': {
				requireType(contentType, ['application/json']);
				return this.store.update(kind, namespace, name, subresource, body);
			}

			case 'patch': {
				requireType(contentType, ['application/json-patch+json', 'application/merge-patch+json']);
				return this.store.patch(kind, namespace, name, subresource, contentType, body);
			}

			case 'delete': {
				return (
					this.store.delete(kind, namespace, name, body) ?? {
						kind: 'Status',
						apiVersion: 'v1',
						status: 'Success',
						details: {name, kind: kind.plural},
					}
				);
			}

			case 'list':
			case 'watch': {
				return this.#page(kind, namespace, parameters);
			}
		}
	}

	#page(kind: ServedKind, namespace: string | undefined, parameters: URLSearchParams): unknown {
		const matches = selector(namespace, parameters);
		const limit = Number(parameters.get('limit') ?? '0') || Infinity;
		const [version = '', start = '0'] = Buffer.from(parameters.get('continue') ?? '', 'base64url')
			.toString()
			.split(':');
		if (version !== '') {
			this.store.since(Number(version));
		}

		const all = this.store.all(kind).filter(matches);
		const end = Number(start) + limit;
		const resourceVersion = version === '' ? String(this.store.version) : version;
		return {
			apiVersion: kind.apiVersion,
			kind: `${kind.kind}List`,
			metadata: {
				resourceVersion,
				...(all.length > end ? {continue: Buffer.from(`${resourceVersion}:${end}`).toString('base64url')} : {}),
			},
			items: all.slice(Number(start), end),
		};
	}

	#watch(
		kind: ServedKind,
		namespace: string | undefined,
		parameters: URLSearchParams,
		response: ServerResponse,
	): void {
		const matches = selector(namespace, parameters);
		const send = (event: StoreEvent): void => {
			const [was, is] = [event.before !== undefined && matches(event.before), matches(event.object)];
			if (event.kind === kind && (was || is)) {
				const type = event.type === 'DELETED' || !is ? 'DELETED' : was ? 'MODIFIED' : 'ADDED';
				response.write(`${JSON.stringify({type, object: event.object})}\n`);
			}
		};
		response.writeHead(200, {'content-type': 'application/json'});
		response.flushHeaders();
		try {
			for (const event of this.store.since(Number(parameters.get('resourceVersion') ?? '0'))) {
				send(event);
			}
		} catch (error) {
			// Like a real API server, which reports this as the first event of an accepted watch.
			response.end(`${JSON.stringify({type: 'ERROR', object: statusOf(error as ApiFault)})}\n`);
			return;
		}

		const watcher = {response, kind};
		const forget = this.store.onEvent(send);
		this.#wake();
		const timer = setTimeout(() => response.end(), Number(parameters.get('timeoutSeconds') ?? '1800') * 1000);
		this.#watchers.add(watcher);
		response.once('close', () => {
			clearTimeout(timer);
			forget();
			this.#watchers.delete(watcher);
			this.#wake();
		});
	}

	#target(
		path: string,
	):
		| {kind: ServedKind; namespace: string | undefined; name: string | undefined; subresource: string | undefined}
		| undefined {
		const [, root, ...segments] = path.split('/').map(decodeURIComponent);
		const apiVersion = segments.splice(0, root === 'api' ? 1 : 2).join('/');
		const namespace = segments[0] === 'namespaces' && segments.length > 2 ? segments.splice(0, 2)[1] : undefined;
		const [plural, name, subresource, ...more] = segments;
		const kind = [...this.#kinds].find(each => each.apiVersion === apiVersion && each.plural === plural);
		const isPlausible =
			kind !== undefined &&
			more.length === 0 &&
			(kind.isNamespaced ? name === undefined || namespace !== undefined : namespace === undefined);
		return isPlausible && (subresource === undefined || (subresource === 'status' && kind.hasStatus === true))
			? {kind, namespace, name, subresource}
			: undefined;
	}
}

/** @returns whether the call was answered here, or is never answered */
function isPrevented(fault: Fault | undefined, {verb, plural}: ApiCall, response: ServerResponse): boolean {
	if (typeof fault === 'object') {
		response.setHeader('retry-after', String(fault.retryAfterSeconds));
		throw new ApiFault(429, 'TooManyRequests', 'storage is (re)initializing');
	}

	switch (fault) {
		case undefined:
		case 'drop-after': {
			return false;
		}

		case 'drop': {
			response.destroy();
			return true;
		}

		case 'forbidden': {
			throw new ApiFault(
				403,
				'Forbidden',
				`${plural} is forbidden: User "system:serviceaccount:test" cannot ${verb} resource "${plural}"`,
			);
		}

		case 'error': {
			throw new ApiFault(500, 'InternalError', 'etcdserver: request timed out');
		}

		case 'busy': {
			response.setHeader('retry-after', '0');
			throw new ApiFault(429, 'TooManyRequests', 'the server is currently overloaded');
		}

		case 'silence': {
			return true;
		}

		case 'no-route': {
			answerNoRoute(response);
			return true;
		}

		case 'garbage': {
			response.writeHead(200, {'content-type': 'application/json'}).end('{"secret": "hunter2"');
			return true;
		}
	}
}

function selector(namespace: string | undefined, parameters: URLSearchParams): (object: Raw) => boolean {
	const requirements = (name: string): string[][] =>
		(parameters.get(name) ?? '')
			.split(',')
			.filter(text => text !== '')
			.map(text => text.split(/==?/v));
	const fields = requirements('fieldSelector');
	const labels = requirements('labelSelector');
	return object =>
		(namespace === undefined || object.metadata.namespace === namespace) &&
		fields.every(([path = '', value]) => (textAt(object, ...path.split('.')) ?? '') === value) &&
		labels.every(([name = '', value]) => at(object, 'metadata', 'labels', name) === value);
}

function groupOf({apiVersion}: ServedKind): string {
	return apiVersion.includes('/') ? apiVersion.replace(/\/.*$/v, '') : '';
}

function requireType(contentType: string, known: readonly string[]): void {
	if (!known.includes(contentType)) {
		throw new ApiFault(
			415,
			'UnsupportedMediaType',
			`the body of the request was in an unknown format - accepted media types include: ${known.join(', ')}`,
		);
	}
}

function statusOf({status, reason, message, details}: ApiFault): unknown {
	return {kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, reason, details, code: status};
}

/** Not a Status: the answer is not from Kubernetes. */
function answerNoRoute(response: ServerResponse): void {
	response.writeHead(404, {'content-type': 'text/plain; charset=utf-8'}).end('404 page not found\n');
}

function answerStatus(response: ServerResponse, fault: ApiFault): void {
	if (response.headersSent) {
		response.destroy();
	} else {
		response.writeHead(fault.status, {'content-type': 'application/json'}).end(JSON.stringify(statusOf(fault)));
	}
}

async function bodyOf(request: IncomingMessage): Promise<string> {
	const chunks: Buffer[] = [];
	for await (const chunk of request as AsyncIterable<Buffer>) {
		chunks.push(chunk);
	}

	return Buffer.concat(chunks).toString();
}
