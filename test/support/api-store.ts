/**
 * The objects of the in-memory API server: versions, conflicts, finalizers, owners, history. Does not know HTTP. The
 * semantics are those of the Kubernetes documents "API Concepts" and "API conventions", limited to what this project
 * uses.
 */
import {randomUUID} from 'node:crypto';
import {isDeepStrictEqual} from 'node:util';
import {at, listAt, textAt} from '../../src/core/json.ts';
import {jsonPatched, mergePatched, PatchError} from './json-patch.ts';

export interface ServedKind {
	/** `v1` or `group/version`. */
	readonly apiVersion: string;
	readonly kind: string;
	readonly plural: string;
	readonly isNamespaced: boolean;
	/**
	 * Whether `status` is a subresource: `status` can only be changed through it, and nothing else can (for nodes,
	 * everything except `spec`).
	 */
	readonly hasStatus?: boolean;
}

export type Raw = Record<string, unknown> & {
	metadata: Record<string, unknown> & {name: string; namespace?: string; uid: string; resourceVersion: string};
};

export interface StoreEvent {
	readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
	readonly kind: ServedKind;
	readonly version: number;
	readonly object: Raw;
	readonly before: Raw | undefined;
}

/** An error that is answered as a Status. */
export class ApiFault extends Error {
	override readonly name = 'ApiFault';
	readonly status: number;
	readonly reason: string;
	readonly details: Readonly<Record<string, unknown>>;

	constructor(status: number, reason: string, message: string, details: Readonly<Record<string, unknown>> = {}) {
		super(message);
		this.status = status;
		this.reason = reason;
		this.details = details;
	}
}

export class ApiStore {
	readonly #objects = new Map<ServedKind, Map<string, Raw>>();
	readonly #listeners = new Set<(event: StoreEvent) => void>();
	#history: StoreEvent[] = [];
	#version = 100;
	/** The version of the last dropped event. */
	#compacted = 0;

	get version(): number {
		return this.#version;
	}

	/** The events after a version. @throws ApiFault 410 if they were dropped */
	since(version: number): readonly StoreEvent[] {
		if (version < this.#compacted) {
			throw new ApiFault(410, 'Expired', `too old resource version: ${version} (${this.#compacted})`);
		}

		return this.#history.filter(event => event.version > version);
	}

	compact(): void {
		this.#history = [];
		this.#compacted = ++this.#version;
	}

	onEvent(listener: (event: StoreEvent) => void): () => void {
		this.#listeners.add(listener);
		return () => {
			this.#listeners.delete(listener);
		};
	}

	/** Removes the kind with its objects, like the deletion of a custom resource definition. */
	forget(kind: ServedKind): void {
		this.#objects.delete(kind);
	}

	/** In the order of their keys. */
	all(kind: ServedKind): readonly Raw[] {
		return [...this.#of(kind)].toSorted(([one], [other]) => (one < other ? -1 : 1)).map(([, object]) => object);
	}

	get(kind: ServedKind, namespace: string | undefined, name: string): Raw {
		const object = this.#of(kind).get(key(namespace, name));
		if (object === undefined) {
			throw new ApiFault(404, 'NotFound', `${kind.plural} "${name}" not found`, {name, kind: kind.plural});
		}

		return object;
	}

	create(kind: ServedKind, namespace: string | undefined, given: unknown): Raw {
		const prefix = textAt(given, 'metadata', 'generateName');
		const name =
			textAt(given, 'metadata', 'name') ??
			(prefix === undefined ? undefined : `${prefix}${randomUUID().slice(0, 5)}`);
		if (name === undefined || !/^[a-z0-9](?:[a-z0-9.\-]{0,251}[a-z0-9])?$/v.test(name)) {
			throw new ApiFault(
				422,
				'Invalid',
				`${kind.kind} "${name ?? ''}" is invalid: metadata.name: not a lowercase RFC 1123 subdomain`,
			);
		}

		if ((textAt(given, 'metadata', 'namespace') ?? namespace) !== namespace) {
			throw new ApiFault(
				400,
				'BadRequest',
				'the namespace of the provided object does not match the namespace sent on the request',
			);
		}

		if (textAt(given, 'kind') !== kind.kind || textAt(given, 'apiVersion') !== kind.apiVersion) {
			throw new ApiFault(400, 'BadRequest', 'the kind of the provided object does not match the request');
		}

		if (this.#of(kind).has(key(namespace, name))) {
			throw new ApiFault(409, 'AlreadyExists', `${kind.plural} "${name}" already exists`, {
				name,
				kind: kind.plural,
			});
		}

		const {metadata, status, ...rest} = structuredClone(given) as Raw;
		const object = {
			...rest,
			...(kind.hasStatus === true && !isBuiltIn(kind) ? {} : {status}),
			metadata: {
				...metadata,
				name,
				...(namespace === undefined ? {} : {namespace}),
				uid: randomUUID(),
				resourceVersion: '',
				creationTimestamp: now(),
			},
		};
		const stored = this.#store('ADDED', kind, object);
		// The garbage collector deletes an object if none of its owners exists.
		if (ownersOf(stored).length > 0 && ownersOf(stored).every(uid => !this.#exists(uid))) {
			queueMicrotask(() => this.#collect(stored.metadata.uid));
		}

		return stored;
	}

	/** @param contentType of the patch */
	patch(
		kind: ServedKind,
		namespace: string | undefined,
		name: string,
		subresource: string | undefined,
		contentType: string,
		patch: unknown,
	): Raw {
		const before = this.get(kind, namespace, name);
		let changed: unknown;
		try {
			changed =
				contentType === 'application/json-patch+json'
					? jsonPatched(before, patch)
					: mergePatched(before, patch);
		} catch (error) {
			if (error instanceof PatchError) {
				throw new ApiFault(
					422,
					'Invalid',
					`the server rejected our request due to an error in our request: ${error.message}`,
				);
			}

			throw error;
		}

		return this.#replace(kind, before, changed as Raw, subresource);
	}

	update(
		kind: ServedKind,
		namespace: string | undefined,
		name: string,
		subresource: string | undefined,
		changed: unknown,
	): Raw {
		const before = this.get(kind, namespace, name);
		if (textAt(changed, 'metadata', 'resourceVersion') === undefined) {
			throw new ApiFault(
				422,
				'Invalid',
				'metadata.resourceVersion: Invalid value: must be specified for an update',
			);
		}

		return this.#replace(kind, before, changed as Raw, subresource);
	}

	delete(kind: ServedKind, namespace: string | undefined, name: string, options: unknown): Raw | undefined {
		const object = this.get(kind, namespace, name);
		for (const field of ['uid', 'resourceVersion']) {
			const expected = textAt(options, 'preconditions', field);
			if (expected !== undefined && expected !== textAt(object, 'metadata', field)) {
				throw new ApiFault(409, 'Conflict', `Precondition failed: ${field} in precondition: ${expected}`, {
					name,
					kind: kind.plural,
				});
			}
		}

		return this.#delete(kind, object);
	}

	#replace(kind: ServedKind, before: Raw, changed: Raw, subresource: string | undefined): Raw {
		const {name} = before.metadata;
		if (
			changed.metadata.resourceVersion !== before.metadata.resourceVersion ||
			changed.metadata.uid !== before.metadata.uid
		) {
			throw new ApiFault(
				409,
				'Conflict',
				`Operation cannot be fulfilled on ${kind.plural} "${name}": the object has been modified`,
				{name, kind: kind.plural},
			);
		}

		const {name: _, uid, namespace, ...others} = before.metadata;
		const immutable = {
			name,
			uid,
			...(namespace === undefined ? {} : {namespace}),
			...pick(others, 'creationTimestamp', 'deletionTimestamp'),
		};
		let after: Raw = {...changed, metadata: {...changed.metadata, ...immutable}};
		if (subresource === 'status') {
			after = isBuiltIn(kind) ? {...after, ...pick(before, 'spec')} : {...before, ...pick(after, 'status')};
		} else if (kind.hasStatus === true) {
			after = {...withoutStatus(after), ...pick(before, 'status')} as Raw;
		}

		const added = listAt(after, 'metadata', 'finalizers').filter(
			each => !listAt(before, 'metadata', 'finalizers').includes(each),
		);
		if (at(before, 'metadata', 'deletionTimestamp') !== undefined && added.length > 0) {
			throw new ApiFault(
				422,
				'Invalid',
				'metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted',
			);
		}

		if (isDeepStrictEqual(after, before)) {
			return before;
		}

		const isDone =
			at(before, 'metadata', 'deletionTimestamp') !== undefined &&
			listAt(after, 'metadata', 'finalizers').length === 0;
		return isDone ? this.#remove(kind, after) : this.#store('MODIFIED', kind, after);
	}

	#delete(kind: ServedKind, object: Raw): Raw | undefined {
		if (listAt(object, 'metadata', 'finalizers').length === 0) {
			this.#remove(kind, object);
			return undefined;
		}

		return at(object, 'metadata', 'deletionTimestamp') === undefined
			? this.#store('MODIFIED', kind, {
					...object,
					metadata: {...object.metadata, deletionTimestamp: now(), deletionGracePeriodSeconds: 0},
				})
			: object;
	}

	#store(type: 'ADDED' | 'MODIFIED', kind: ServedKind, object: Raw): Raw {
		const version = ++this.#version;
		const stored = structuredClone({...object, metadata: {...object.metadata, resourceVersion: String(version)}});
		const {namespace, name} = stored.metadata;
		const before = this.#of(kind).get(key(namespace, name));
		this.#of(kind).set(key(namespace, name), stored);
		this.#emit({type, kind, version, object: stored, before});
		return stored;
	}

	#remove(kind: ServedKind, object: Raw): Raw {
		const version = ++this.#version;
		const {namespace, name, uid} = object.metadata;
		const before = this.#of(kind).get(key(namespace, name));
		const last = {...object, metadata: {...object.metadata, resourceVersion: String(version)}};
		this.#of(kind).delete(key(namespace, name));
		this.#emit({type: 'DELETED', kind, version, object: last, before});
		for (const dependent of [...this.#objects.values()].flatMap(objects => [...objects.values()])) {
			if (ownersOf(dependent).includes(uid)) {
				queueMicrotask(() => this.#collect(dependent.metadata.uid));
			}
		}

		return last;
	}

	/** Deletes an object if none of its owners exists. */
	#collect(uid: string): void {
		for (const [kind, objects] of this.#objects) {
			const object = [...objects.values()].find(each => each.metadata.uid === uid);
			if (object !== undefined && ownersOf(object).every(owner => !this.#exists(owner))) {
				this.#delete(kind, object);
			}
		}
	}

	#emit(event: StoreEvent): void {
		this.#history.push(event);
		for (const listener of this.#listeners) {
			listener(event);
		}
	}

	#exists(uid: string): boolean {
		return [...this.#objects.values()].some(objects =>
			[...objects.values()].some(each => each.metadata.uid === uid),
		);
	}

	#of(kind: ServedKind): Map<string, Raw> {
		const objects = this.#objects.get(kind) ?? new Map<string, Raw>();
		this.#objects.set(kind, objects);
		return objects;
	}
}

function isBuiltIn({apiVersion}: ServedKind): boolean {
	return !apiVersion.includes('/') || apiVersion.split('/')[0]?.endsWith('.k8s.io') === true;
}

function ownersOf(object: Raw): readonly string[] {
	return listAt(object, 'metadata', 'ownerReferences').map(owner => textAt(owner, 'uid') ?? '');
}

function key(namespace: string | undefined, name: string): string {
	return `${namespace ?? ''}/${name}`;
}

/** In seconds, in the format of Kubernetes. */
function now(): string {
	return new Date().toISOString().replace(/\.\d+Z$/v, 'Z');
}

function pick<const Names extends readonly string[]>(
	object: Readonly<Record<string, unknown>>,
	...names: Names
): Partial<Record<Names[number], unknown>> {
	return Object.fromEntries(
		names.filter(name => Object.hasOwn(object, name)).map(name => [name, object[name]]),
	) as Partial<Record<Names[number], unknown>>;
}

function withoutStatus({status: _, ...rest}: Raw): Omit<Raw, 'status'> {
	return rest;
}
