/**
 * Modules of Node without their ESM facade. An `import` of `node:http` or `node:https` evaluates every export, also
 * those that load undici: 3 to 4 MiB resident (record 22). Types may be imported as usual.
 */
import {createRequire} from 'node:module';

interface Builtins {
	readonly 'node:http': typeof import('node:http');
	readonly 'node:https': typeof import('node:https');
}

const require = createRequire(import.meta.url);

export function builtin<Name extends keyof Builtins>(name: Name): Builtins[Name] {
	return require(name) as Builtins[Name];
}
