/**
 * Prints the byte order and the digests of all vectors, as JSON; an error in the place of the digest that it prevented.
 */
import {endianness} from 'node:os';
import {digestOf, vectors} from './vectors.ts';

const digests = Object.fromEntries(
	Object.entries(vectors).map(([name, cases]) => {
		try {
			return [name, digestOf(cases())];
		} catch (error) {
			return [name, String(error)];
		}
	}),
);
process.stdout.write(JSON.stringify({endianness: endianness(), arch: process.arch, digests}));
