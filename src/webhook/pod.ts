/**
 * The parts of a Pod that the webhook needs, read from its JSON and checked once; the rest is ignored. Quantities are
 * parsed here, so that no other file calculates with text. resource-rules.ts checks which quantities are valid. Knows
 * no policy. Source of the shape: Kubernetes API reference, core/v1 Pod.
 */
import {AdaptorError, echoed} from '../core/errors.ts';
import {parseQuantity} from './quantity.ts';

/** Nano-units by resource name. */
export type Amounts = ReadonlyMap<string, bigint>;

export interface Resources {
	/** Whether the member `resources` exists, even if it is empty. */
	readonly isPresent: boolean;
	readonly requests: Amounts;
	readonly limits: Amounts;
	/** The same quantities as text of the document, for denials. */
	readonly written: {readonly requests: JsonObject; readonly limits: JsonObject};
	/** Other members (`claims`), unchanged. */
	readonly others: Readonly<Record<string, unknown>>;
}

export interface Container {
	/** An init container that keeps running: `restartPolicy: Always`. */
	readonly isSidecar: boolean;
	readonly resources: Resources;
}

export interface Pod {
	/** `undefined` if the Pod has none: for a patch, that differs from an empty object. */
	readonly annotations: Readonly<Record<string, unknown>> | undefined;
	readonly containers: readonly Container[];
	readonly initContainers: readonly Container[];
	/** Resources of the pod as a whole: `spec.resources`. */
	readonly resources: Resources;
}

export type JsonObject = Readonly<Record<string, unknown>>;

/** @throws AdaptorError 'invalid-argument' that names the field */
export function parsePod(document: JsonObject): Pod {
	const metadata = objectAt(document, 'metadata', '');
	const spec = objectAt(document, 'spec', '');
	return {
		annotations:
			member(metadata, 'annotations') === undefined ? undefined : objectAt(metadata, 'annotations', 'metadata.'),
		containers: containersAt(spec, 'containers'),
		initContainers: containersAt(spec, 'initContainers'),
		resources: resourcesAt(spec, 'spec.'),
	};
}

/** A member that exists and is not null: Go, which wrote the document, reads null as absent. */
export function member(parent: JsonObject, name: string): unknown {
	return Object.hasOwn(parent, name) ? (parent[name] ?? undefined) : undefined;
}

/** @throws AdaptorError 'invalid-argument' unless it is an object */
export function objectAt(parent: JsonObject, name: string, where: string): JsonObject {
	const value = member(parent, name);
	if (typeof value !== 'object' || Array.isArray(value)) {
		throw malformed(`${where}${name}`, 'an object');
	}

	return value as JsonObject;
}

function containersAt(spec: JsonObject, name: string): Container[] {
	const list = member(spec, name) ?? [];
	if (!Array.isArray(list)) {
		throw malformed(`spec.${name}`, 'a list');
	}

	return list.map((container: unknown, index) => {
		const where = `spec.${name}[${index}]`;
		if (typeof container !== 'object' || container === null || Array.isArray(container)) {
			throw malformed(where, 'an object');
		}

		return {
			isSidecar: name === 'initContainers' && member(container as JsonObject, 'restartPolicy') === 'Always',
			resources: resourcesAt(container as JsonObject, `${where}.`),
		};
	});
}

function resourcesAt(parent: JsonObject, where: string): Resources {
	const given = member(parent, 'resources') === undefined ? {} : objectAt(parent, 'resources', where);
	const {requests: _, limits: __, ...others} = given;
	const written = {requests: quantitiesAt(given, 'requests', where), limits: quantitiesAt(given, 'limits', where)};
	return {
		isPresent: Object.hasOwn(parent, 'resources'),
		requests: amountsOf(written.requests, `${where}resources.requests`),
		limits: amountsOf(written.limits, `${where}resources.limits`),
		written,
		others,
	};
}

function quantitiesAt(resources: JsonObject, list: string, where: string): JsonObject {
	return member(resources, list) === undefined ? {} : objectAt(resources, list, `${where}resources.`);
}

function amountsOf(quantities: JsonObject, where: string): Amounts {
	return new Map(
		Object.entries(quantities).map(([name, quantity]) => {
			const amount =
				typeof quantity === 'string' || typeof quantity === 'number'
					? parseQuantity(String(quantity))
					: undefined;
			if (amount === undefined) {
				throw malformed(`${where}[${JSON.stringify(echoed(name))}]`, 'a quantity, such as 500m or 2Gi');
			}

			return [name, amount];
		}),
	);
}

export function malformed(field: string, expected: string): AdaptorError {
	return new AdaptorError({code: 'invalid-argument', what: `${field} is not ${expected}`});
}
