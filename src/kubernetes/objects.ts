/**
 * Objects of the Kubernetes API, only with the fields that are used. Input is checked once, when it is read. An object
 * is never written back as a whole, because unknown fields would be lost: changes are patches.
 */
import {AdaptorError} from '../core/errors.ts';
import type {JsonBounds} from '../core/json.ts';
import {at, listAt, textAt, textsAt} from '../core/json.ts';

export interface OwnerReference {
	readonly apiVersion: string;
	readonly kind: string;
	readonly name: string;
	readonly uid: string;
	readonly controller?: boolean;
	readonly blockOwnerDeletion?: boolean;
}

export interface ObjectMeta {
	readonly name: string;
	/** Absent for objects without a namespace. */
	readonly namespace?: string;
	readonly uid: string;
	readonly resourceVersion: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly annotations: Readonly<Record<string, string>>;
	readonly finalizers: readonly string[];
	readonly ownerReferences: readonly OwnerReference[];
	/** RFC 3339. */
	readonly creationTimestamp?: string;
	/** RFC 3339. If present, the object is deleted as soon as its last finalizer is removed. */
	readonly deletionTimestamp?: string;
}

/** An object of a kind whose other fields are `Fields`. */
export type ApiObject<Fields> = Fields & {readonly metadata: ObjectMeta};

/** Limits of an answer. A larger one is not parsed. */
export interface AnswerBounds extends JsonBounds {
	readonly bytes: number;
}

/**
 * Limits of an object that a pod's owner can write. Most have a few KiB. The bytes are enough for the largest
 * credentials that are passed on (350 KB in base64) and the largest annotations (256 KiB); the API server itself allows
 * about 1.5 MiB. The parts are enough for a pod of ten containers with fifty variables each and its managed fields;
 * parsing them takes about 10 ms.
 */
export const ownersBounds: AnswerBounds = {bytes: 1024 * 1024, parts: 10_000, depth: 100};

/** A kind of objects: its path in the API, and how its fields are read. */
export interface Kind<Fields> {
	/** `v1` for the core group, else `group/version`. */
	readonly apiVersion: string;
	readonly kind: string;
	/** The name in paths, e.g. `pods`. */
	readonly plural: string;
	readonly isNamespaced: boolean;
	/** Limits for reading a single object. Set for kinds that a pod's owner can write. */
	readonly bounds?: AnswerBounds;
	/** A single object is requested with its metadata only. */
	readonly isMetadataOnly?: boolean;
	/** Selects the fields; missing fields and fields of another type are undefined, or empty. */
	readonly read: (raw: unknown) => Fields;
}

export interface ObjectName {
	readonly name: string;
	/** True for kinds with namespaces. */
	readonly namespace?: string;
}

/** @throws AdaptorError 'data-loss' if it is not an object */
export function readObject<Fields>(kind: Kind<Fields>, raw: unknown): ApiObject<Fields> {
	return {...kind.read(raw), metadata: readMetadata(kind.kind, raw)};
}

function readMetadata(kind: string, raw: unknown): ObjectMeta {
	const [name, uid, resourceVersion] = ['name', 'uid', 'resourceVersion'].map(field =>
		textAt(raw, 'metadata', field),
	);
	if (name === undefined || uid === undefined || resourceVersion === undefined) {
		throw new AdaptorError({
			code: 'data-loss',
			what: `The Kubernetes API sent a ${kind} without a name, uid or resourceVersion`,
		});
	}

	const optional = Object.fromEntries(
		['namespace', 'creationTimestamp', 'deletionTimestamp'].flatMap(field => {
			const value = textAt(raw, 'metadata', field);
			return value === undefined ? [] : [[field, value]];
		}),
	);
	return {
		name,
		uid,
		resourceVersion,
		...optional,
		labels: textsAt(raw, 'metadata', 'labels'),
		annotations: textsAt(raw, 'metadata', 'annotations'),
		finalizers: listAt(raw, 'metadata', 'finalizers').filter(each => typeof each === 'string'),
		ownerReferences: listAt(raw, 'metadata', 'ownerReferences').map(each => ({
			apiVersion: textAt(each, 'apiVersion') ?? '',
			kind: textAt(each, 'kind') ?? '',
			name: textAt(each, 'name') ?? '',
			uid: textAt(each, 'uid') ?? '',
			controller: at(each, 'controller') === true,
			blockOwnerDeletion: at(each, 'blockOwnerDeletion') === true,
		})),
	};
}

/**
 * The path of all objects of a kind, of those in one namespace, or of one object.
 * @throws AdaptorError 'invalid-argument' for a name that would change the path
 */
export function pathOf(
	{apiVersion, plural, isNamespaced}: Kind<unknown>,
	{name, namespace}: Partial<ObjectName>,
	...subresource: readonly string[]
): string {
	const root = apiVersion.includes('/') ? ['apis', ...apiVersion.split('/')] : ['api', apiVersion];
	const segments = [
		...root,
		...(isNamespaced && namespace !== undefined ? ['namespaces', namespace] : []),
		plural,
		...(name === undefined ? [] : [name]),
		...subresource,
	];
	// Kubernetes, "Object Names and IDs", path segment names.
	if (
		segments.some(segment => /^\.{0,2}$|[\/%\p{Cc}]/v.test(segment)) ||
		(isNamespaced && name !== undefined && namespace === undefined)
	) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Not the name of a Kubernetes object',
			where: {name: String(name), namespace: String(namespace), kind: plural},
		});
	}

	return `/${segments.map(encodeURIComponent).join('/')}`;
}
