/** Reads fields of JSON that somebody else has written, without trust in its shape. */

/** The value at a path of member names, or undefined where there is none. */
export function at(value: unknown, ...path: readonly string[]): unknown {
	let found = value;
	for (const name of path) {
		if (typeof found !== 'object' || found === null || !Object.hasOwn(found, name)) {
			return undefined;
		}

		found = (found as Readonly<Record<string, unknown>>)[name];
	}

	return found;
}

export function textAt(value: unknown, ...path: readonly string[]): string | undefined {
	const found = at(value, ...path);
	return typeof found === 'string' ? found : undefined;
}

export function numberAt(value: unknown, ...path: readonly string[]): number | undefined {
	const found = at(value, ...path);
	return typeof found === 'number' ? found : undefined;
}

/** Empty where there is no array. */
export function listAt(value: unknown, ...path: readonly string[]): readonly unknown[] {
	const found = at(value, ...path);
	return Array.isArray(found) ? found : [];
}

/** Members that are texts; the others are left out. Empty where there is no object. */
export function textsAt(value: unknown, ...path: readonly string[]): Readonly<Record<string, string>> {
	const found = at(value, ...path);
	return typeof found === 'object' && found !== null
		? Object.fromEntries(
				Object.entries(found).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
			)
		: {};
}
