/** Reading JSON that somebody else wrote: nothing is believed about its shape. */

/** The member of that name, if the value is an object that has one of its own. */
export function member(value: unknown, name: string): unknown {
	return typeof value === 'object' && value !== null && Object.hasOwn(value, name)
		? (value as Record<string, unknown>)[name]
		: undefined;
}
