/** JSON patches (RFC 6902: add, replace, remove, test) and merge patches (RFC 7396), for the in-memory API server. */
import {isDeepStrictEqual} from 'node:util';

type Members = Record<string, unknown>;

/** An error that the server answers with status 422. */
export class PatchError extends Error {
	override readonly name = 'PatchError';
}

export function mergePatched(target: unknown, patch: unknown): unknown {
	if (!isMembers(patch)) {
		return patch;
	}

	const merged: Members = isMembers(target) ? {...target} : {};
	for (const [name, value] of Object.entries(patch)) {
		if (value === null) {
			// eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- a copy of plain data
			delete merged[name];
		} else {
			merged[name] = mergePatched(merged[name], value);
		}
	}

	return merged;
}

export function jsonPatched(target: unknown, patch: unknown): unknown {
	const result: unknown = structuredClone(target);
	if (!Array.isArray(patch)) {
		throw new PatchError('a JSON patch is an array');
	}

	for (const operation of patch as ReadonlyArray<{op?: string; path?: string; value?: unknown}>) {
		const segments = (operation.path ?? '')
			.split('/')
			.slice(1)
			.map(segment => segment.replaceAll('~1', '/').replaceAll('~0', '~'));
		const last = segments.pop();
		const parent = segments.reduce<unknown>(childOf, result);
		if (last === undefined || (!isMembers(parent) && !Array.isArray(parent))) {
			throw new PatchError(`there is nothing at ${String(operation.path)}`);
		}

		apply(parent, last, operation);
	}

	return result;
}

function apply(
	parent: Members | unknown[],
	last: string,
	{op, path, value}: {op?: string; path?: string; value?: unknown},
): void {
	const exists = Array.isArray(parent) ? Number(last) < parent.length : Object.hasOwn(parent, last);
	if (op !== 'add' && !exists) {
		throw new PatchError(`there is nothing at ${String(path)}`);
	}

	if (op === 'test') {
		if (!isDeepStrictEqual(childOf(parent, last), value)) {
			throw new PatchError(`testing value ${String(path)} failed`);
		}
	} else if (Array.isArray(parent)) {
		const index = last === '-' ? parent.length : Number(last);
		parent.splice(index, op === 'add' ? 0 : 1, ...(op === 'remove' ? [] : [value]));
	} else if (op === 'remove') {
		// eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- a copy of plain data
		delete parent[last];
	} else {
		parent[last] = value;
	}
}

function childOf(parent: unknown, segment: string): unknown {
	return Array.isArray(parent)
		? parent[Number(segment)]
		: isMembers(parent) && Object.hasOwn(parent, segment)
			? parent[segment]
			: undefined;
}

function isMembers(value: unknown): value is Members {
	return typeof value === 'object' && value !== null && !Array.isArray(value);
}
