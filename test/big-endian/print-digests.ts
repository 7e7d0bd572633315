/** Prints the byte order and the digests of all vectors, as JSON. */
import {endianness, machine} from 'node:os';
import {digestOf, vectors} from './vectors.ts';

const digests = Object.fromEntries(Object.entries(vectors).map(([name, cases]) => [name, digestOf(cases())]));
process.stdout.write(JSON.stringify({endianness: endianness(), arch: process.arch, machine: machine(), digests}));
