/**
 * Loaded before the program, for the big-endian tests only: what our code uses and Node.js 20 does not have yet. Of the
 * language that is core-js's matter, as a whole, so that no test here fails because some file has begun to use another
 * new function; of Node.js it is written out below. Syntax is emit.ts's.
 */
import {X509Certificate} from 'node:crypto';
import 'core-js/es/index.js';

for (const [name, text] of [
	['validFromDate', 'validFrom'],
	['validToDate', 'validTo'],
] as const) {
	Object.defineProperty(X509Certificate.prototype, name, {
		get(this: X509Certificate) {
			return new Date(this[text]);
		},
	});
}
