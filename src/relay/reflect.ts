/**
 * What @peculiar/x509 2.x wants of `Reflect` before it is imported: its container (tsyringe 4) refuses to load without the metadata
 * functions, and asks them only for constructor parameters that none of the classes it makes has. So "no metadata" is the whole answer,
 * and a polyfill package is not needed. May go when @peculiar/x509 no longer depends on tsyringe.
 */
if (!('getMetadata' in Reflect)) {
	Object.assign(Reflect, {
		getMetadata: () => undefined,
		getOwnMetadata: () => undefined,
		defineMetadata: () => undefined,
	});
}

export {};
