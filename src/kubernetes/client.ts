/**
 * The required verbs of the Kubernetes API, typed by `Kind`. Defines no kinds and no policy. It deliberately has no
 * update of a whole object: see objects.ts.
 */
import {AdaptorError} from '../core/errors.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import {ApiConnection, type ConnectionOptions} from './connection.ts';
import {isExpired, isKindMissing, isRefusal, retryAfterOf} from './errors.ts';
import {listAt, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import {pathOf, readObject, type ApiObject, type Kind, type ObjectMeta, type ObjectName} from './objects.ts';
import {watchEvents} from './watch.ts';

/** Selects objects: those that match the selectors, in one namespace or in all. */
export interface Selection {
	readonly namespace?: string;
	/** e.g. `metadata.name=worker-0` */
	readonly fieldSelector?: string;
	readonly labelSelector?: string;
}

export interface ObjectList<Fields> {
	readonly items: ReadonlyArray<ApiObject<Fields>>;
	/** The version from which a watch continues. */
	readonly resourceVersion: string;
}

/** An object to create, with a name or a name prefix. */
export interface NewObject {
	readonly metadata: Partial<ObjectMeta> & ({readonly name: string} | {readonly generateName: string});
	readonly [field: string]: unknown;
}

/** RFC 6902. */
export type JsonPatch = ReadonlyArray<
	| {readonly op: 'add' | 'replace' | 'test'; readonly path: string; readonly value: unknown}
	| {readonly op: 'remove'; readonly path: string}
>;

export type Patch =
	| {readonly json: JsonPatch}
	/** RFC 7396. With `metadata.resourceVersion`, it is refused (409) if the object has changed. */
	| {readonly merge: Readonly<Record<string, unknown>>};

export interface Preconditions {
	readonly uid?: string;
	readonly resourceVersion?: string;
}

/** `all` replaces all known objects. It is the first event, and follows when changes may have been missed. */
export type WatchEvent<Fields> =
	| {readonly type: 'all'; readonly objects: ReadonlyArray<ApiObject<Fields>>}
	| {readonly type: 'changed' | 'deleted'; readonly object: ApiObject<Fields>}
	/**
	 * The server does not allow the watch, or does not know the kind (`isKindMissing`). Sent for each refusal; `all`
	 * follows when the watch is allowed again.
	 */
	| {readonly type: 'refused'; readonly error: AdaptorError};

export interface ClientOptions extends ConnectionOptions {
	readonly log: Logger;
	/**
	 * Requested duration of a watch. A connection that died silently is noticed after this time.
	 */
	readonly watchTimeoutMs?: number;
	/**
	 * Pauses after failures of a watch. The longest is the maximum delay before a recovered server is noticed.
	 */
	readonly watchRetryMs?: readonly [first: number, longest: number];
	/** Pauses after refusals of a watch. */
	readonly refusedRetryMs?: readonly [first: number, longest: number];
	/**
	 * A watch connection without events counts as synchronised after this time: a server reports an unknown version at
	 * once.
	 */
	readonly settleMs?: number;
}

/** Kubernetes, "API Concepts", "Metadata-only fetches"; a server that does not support it sends the whole object. */
const metadataOnly = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json';
/** Objects per page of a list: objects can be large, and a whole answer is held in memory. */
const pageSize = 250;
/** Extra time for the server to end a watch. */
const watchSlackMs = 15_000;

export class KubernetesClient implements Disposable {
	readonly #connection: ApiConnection;
	readonly #options: Required<
		Pick<ClientOptions, 'log' | 'watchTimeoutMs' | 'watchRetryMs' | 'refusedRetryMs' | 'settleMs'>
	>;

	constructor({
		log,
		watchTimeoutMs = 240_000,
		watchRetryMs = [500, 5000],
		refusedRetryMs = [500, 30_000],
		settleMs = 1000,
		...connection
	}: ClientOptions) {
		this.#connection = new ApiConnection(connection);
		this.#options = {log, watchTimeoutMs, watchRetryMs, refusedRetryMs, settleMs};
	}

	/** @throws KubernetesError: 404 if the object does not exist; 'data-loss' if it exceeds the limits of its kind */
	async get<Fields>(kind: Kind<Fields>, name: ObjectName, signal: AbortSignal): Promise<ApiObject<Fields>> {
		const {bounds, isMetadataOnly = false} = kind;
		return readObject(
			kind,
			await this.#connection.request(
				{
					method: 'GET',
					path: pathOf(kind, name),
					...(isMetadataOnly ? {accept: metadataOnly} : {}),
					...present({bounds}),
				},
				signal,
			),
		);
	}

	/** Lists all objects, page by page. */
	async list<Fields>(kind: Kind<Fields>, selection: Selection, signal: AbortSignal): Promise<ObjectList<Fields>> {
		const items: Array<ApiObject<Fields>> = [];
		let token: string | undefined;
		for (;;) {
			const path = `${pathOf(kind, selection)}?${query(selection, {limit: String(pageSize), ...present({continue: token})})}`;
			const page = await this.#connection.request({method: 'GET', path}, signal);
			items.push(...listAt(page, 'items').map(item => readObject(kind, item)));
			token = textAt(page, 'metadata', 'continue');
			if (token === undefined || token === '') {
				return {items, resourceVersion: textAt(page, 'metadata', 'resourceVersion') ?? ''};
			}
		}
	}

	/**
	 * Without an answer, it is only retried if it was certainly not executed.
	 * @throws KubernetesError, for example AlreadyExists
	 */
	async create<Fields>(
		kind: Kind<Fields>,
		namespace: string | undefined,
		object: NewObject,
		signal: AbortSignal,
	): Promise<ApiObject<Fields>> {
		const body = {apiVersion: kind.apiVersion, kind: kind.kind, ...object};
		return readObject(
			kind,
			await this.#connection.request(
				{method: 'POST', path: pathOf(kind, namespace === undefined ? {} : {namespace}), body},
				signal,
			),
		);
	}

	/**
	 * @param subresource a part of the object that can only be changed separately
	 * @throws KubernetesError: 404; 409 if the resourceVersion in the patch is outdated; 422 if a `test` fails or the
	 * result is invalid
	 */
	async patch<Fields>(
		kind: Kind<Fields>,
		name: ObjectName,
		patch: Patch,
		signal: AbortSignal,
		subresource?: 'status',
	): Promise<ApiObject<Fields>> {
		const [body, type] =
			'json' in patch ? ([patch.json, 'json-patch'] as const) : ([patch.merge, 'merge-patch'] as const);
		const path = pathOf(kind, name, ...(subresource === undefined ? [] : [subresource]));
		return readObject(
			kind,
			await this.#connection.request(
				{method: 'PATCH', path, body, contentType: `application/${type}+json`},
				signal,
			),
		);
	}

	/**
	 * Requests the deletion of an object, which stays until its finalizers are removed.
	 * @throws KubernetesError: 404; 409 if the preconditions do not hold
	 */
	async delete(
		kind: Kind<unknown>,
		name: ObjectName,
		preconditions: Preconditions,
		signal: AbortSignal,
	): Promise<void> {
		const body = {apiVersion: 'v1', kind: 'DeleteOptions', preconditions, propagationPolicy: 'Background'};
		await this.#connection.request({method: 'DELETE', path: pathOf(kind, name), body}, signal);
	}

	/**
	 * Yields all objects, then each change, until the signal aborts; then it ends without an error. Continues after
	 * lost connections, failures and refusals, and lists again after a long interruption.
	 *
	 * It is synchronised when a connection has delivered an event or a bookmark, has ended normally, or has lasted for
	 * `settleMs`: a restarted server first opens the connection, then reports that the version is unknown (410).
	 */
	async *watch<Fields>(
		kind: Kind<Fields>,
		selection: Selection,
		signal: AbortSignal,
	): AsyncGenerator<WatchEvent<Fields>, void> {
		const {log, watchRetryMs, refusedRetryMs} = this.#options;
		const failures = new FailureLog();
		let pauses = {afterFailure: backOff(...watchRetryMs), afterRefusal: backOff(...refusedRetryMs)};
		let mayListAtOnce = true;
		let resourceVersion: string | undefined;
		const synchronised = (): void => {
			pauses = {afterFailure: backOff(...watchRetryMs), afterRefusal: backOff(...refusedRetryMs)};
			mayListAtOnce = true;
			if (failures.recovered()) {
				log.info({event: kind.plural}, 'watch of the Kubernetes API restored');
			}
		};
		const isOver = (): boolean => signal.aborted;
		while (!isOver()) {
			let pauseMs: number;
			try {
				if (resourceVersion === undefined) {
					const {items, ...list} = await this.list(kind, selection, signal);
					({resourceVersion} = list);
					yield {type: 'all', objects: items};
				}

				for await (const {type, object, resourceVersion: next} of this.#watchOnce(
					kind,
					selection,
					resourceVersion,
					synchronised,
					signal,
				)) {
					resourceVersion = next;
					if (type !== 'BOOKMARK') {
						yield {type: type === 'DELETED' ? 'deleted' : 'changed', object: readObject(kind, object)};
					}
				}

				// The server ends every watch after a time limit; no events are missed.
				synchronised();
				pauseMs = pauses.afterFailure.next().value;
			} catch (error) {
				if (isOver()) {
					return;
				}

				if (isExpired(error)) {
					resourceVersion = undefined;
					if (mayListAtOnce) {
						mayListAtOnce = false;
						continue;
					}

					pauseMs = pauses.afterFailure.next().value;
				} else if (isRefusal(error)) {
					resourceVersion = undefined;
					if (!isKindMissing(error)) {
						failures.failed();
					}

					yield {type: 'refused', error};
					pauseMs = pauses.afterRefusal.next().value;
				} else {
					pauseMs = pauses.afterFailure.next().value;
					log[failures.failed() ? 'warn' : 'debug'](
						{event: kind.plural, err: error, retryInMs: pauseMs},
						'watch of the Kubernetes API lost; retrying',
					);
				}

				pauseMs = Math.max(pauseMs, retryAfterOf(error) ?? 0);
			}

			await pause(pauseMs, signal).catch(() => undefined);
		}
	}

	/** Ends all requests and watches. */
	[Symbol.dispose](): void {
		this.#connection[Symbol.dispose]();
	}

	async *#watchOnce(
		kind: Kind<unknown>,
		selection: Selection,
		resourceVersion: string,
		onSynchronised: () => void,
		signal: AbortSignal,
	): ReturnType<typeof watchEvents> {
		const {watchTimeoutMs, settleMs} = this.#options;
		using scope = new Scope(signal).deadline(watchTimeoutMs + watchSlackMs, 'the end of a watch');
		let settled: NodeJS.Timeout | undefined;
		try {
			const path = `${pathOf(kind, selection)}?${query(selection, {
				watch: 'true',
				allowWatchBookmarks: 'true',
				resourceVersion,
				timeoutSeconds: String(Math.ceil(watchTimeoutMs / 1000)),
			})}`;
			const body = await this.#connection.stream({method: 'GET', path}, scope.signal);
			settled = setTimeout(onSynchronised, settleMs);
			for await (const event of watchEvents(body, this.#connection.maxResponseBytes)) {
				clearTimeout(settled);
				onSynchronised();
				yield event;
			}
		} finally {
			clearTimeout(settled);
			scope.abort(new AdaptorError({code: 'cancelled', what: 'The watch has ended'}));
		}
	}
}

function query({fieldSelector, labelSelector}: Selection, others: Readonly<Record<string, string>>): string {
	return new URLSearchParams({
		...others,
		...present({fieldSelector, labelSelector}),
	}).toString();
}
