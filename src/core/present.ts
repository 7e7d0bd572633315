/** Omits optional properties that are undefined, because exactOptionalPropertyTypes does not allow undefined values. */
export type Present<T> = {[K in keyof T]?: Exclude<T[K], undefined>};

/** The fields whose values are not undefined: `{...present({image, cause})}`. */
export function present<T extends object>(fields: T): Present<T> {
	return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Present<T>;
}
