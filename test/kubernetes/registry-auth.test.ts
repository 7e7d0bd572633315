import {isDeepStrictEqual} from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {authJson, bytesOf, parseRegistryAuth} from '../../src/kubernetes/registry-auth.ts';

const base64 = (text: string): string => Buffer.from(text).toString('base64');
const config = (auths: unknown): string => JSON.stringify({auths});
const parse = (text: string): Record<string, string> =>
	Object.fromEntries(parseRegistryAuth(text, 'dockerconfigjson').credentials);

test('the older format has no "auths" around it', t => {
	t.deepEqual(
		Object.fromEntries(
			parseRegistryAuth(JSON.stringify({'quay.io': {auth: base64('u:p')}}), 'dockercfg').credentials,
		),
		{'quay.io': base64('u:p')},
	);
	t.deepEqual(parse(JSON.stringify({'quay.io': {auth: base64('u:p')}})), {});
});

test('user name and password become "auth", which wins when it is there, and nothing else is kept', t => {
	t.deepEqual(
		parse(
			config({
				a: {username: 'u', password: 'p', email: 'e'},
				b: {username: 'x', password: 'y', auth: base64('u:p'), identitytoken: 't'},
			}),
		),
		{
			a: base64('u:p'),
			b: base64('u:p'),
		},
	);
});

test('an entry without credentials is omitted, because it would make the file unreadable for VMs', t => {
	t.deepEqual(
		parse(config({a: {}, b: {identitytoken: 't'}, c: {username: 'u'}, d: {auth: ''}, e: null, f: 'x'})),
		{},
	);
});

test('"auth" reaches the VM padded and in one line, whatever it was', t => {
	t.deepEqual(
		parse(
			config({
				a: {auth: base64('user:pw').replaceAll('=', '')},
				b: {auth: `${base64('user:pw').slice(0, 4)}\r\n${base64('user:pw').slice(4)}\n`},
			}),
		),
		{
			a: base64('user:pw'),
			b: base64('user:pw'),
		},
	);
});

for (const [what, text] of [
	['no JSON', '{"auths": {"quay.io": {"auth": hush-hush}}}'],
	['a list', '["hush-hush"]'],
	['no object', '"hush-hush"'],
	['auths that are a list', '{"auths": ["hush-hush"]}'],
	['an auth that is not base64', config({a: {auth: 'hush-hush!'}})],
	['an auth without a colon', config({a: {auth: base64('hush-hush')}})],
] as const) {
	test(`${what} is refused, and the error contains nothing of it`, t => {
		const error = t.throws(() => parse(text), {instanceOf: AdaptorError});
		t.false(error.message.includes('hush') || error.message.includes(base64('hush-hush')));
		t.is(error.cause, undefined);
	});
}

test('registries that differ only in how they are written are one', t => {
	const written = {
		'https://index.docker.io/v1/': 'index.docker.io',
		'http://reg.example:5000': 'reg.example:5000',
		'https://quay.io/v2/': 'quay.io',
		'quay.io/org': 'quay.io/org',
		'https://quay.io/v2/org/': 'quay.io/org',
		'quay.io/': 'quay.io',
		'quay.io/v2': 'quay.io/v2',
		'*.example.com': '*.example.com',
	};
	for (const [given, expected] of Object.entries(written)) {
		t.deepEqual(parse(config({[given]: {auth: base64('u:p')}})), {[expected]: base64('u:p')}, given);
	}
});

test('the first credentials for a registry are used, and no registry is lost', t => {
	const registry = fc.constantFrom(
		'quay.io',
		'https://quay.io/v1/',
		'quay.io/a',
		'quay.io/a/b',
		'__proto__',
		'constructor',
		'docker.io',
	);
	fc.assert(
		fc.property(
			fc.array(fc.dictionary(registry, fc.constantFrom('a:1', 'b:2', 'c:3')), {maxLength: 4}),
			secrets => {
				const sources = secrets.map(
					secret =>
						parseRegistryAuth(
							config(
								Object.fromEntries(
									Object.entries(secret).map(([key, auth]) => [key, {auth: base64(auth)}]),
								),
							),
							'dockerconfigjson',
						).credentials,
				);
				const expected = new Map<string, string>();
				for (const [key, auth] of sources.flatMap(source => [...source])) {
					expected.set(key, expected.get(key) ?? auth);
				}

				const text = authJson(sources);
				const found =
					text === undefined
						? []
						: Object.entries((JSON.parse(text) as {auths: Record<string, {auth: string}>}).auths);
				t.deepEqual(found.map(([key, {auth}]) => [key, auth]).toSorted(), [...expected].toSorted());
			},
		),
	);
});

test('names of registries that would need escaping, or are too long, are left out and counted', t => {
	const auth = {auth: base64('u:p')};
	for (const name of [
		'quo"te',
		'back\\slash',
		'line\nfeed',
		'nul\0',
		'del\x7F',
		'spa ce',
		'süß',
		'a'.repeat(513),
		'/'.repeat(200_000),
	]) {
		const {credentials, refused} = parseRegistryAuth(
			config({[name]: auth, 'good.example': auth}),
			'dockerconfigjson',
		);
		t.deepEqual([[...credentials.keys()], refused], [['good.example'], 1], name.slice(0, 20));
	}

	const longest = `${'a'.repeat(510)}//`;
	t.deepEqual(Object.keys(parse(config({[longest]: auth}))), ['a'.repeat(510)]);
});

test('what is written for the VM is JSON of exactly the bytes that are counted, for any registries', t => {
	const registry = fc.stringMatching(/^[!#-\[\]-~]{1,80}$/);
	fc.assert(
		fc.property(fc.dictionary(registry, fc.string({minLength: 1})), given => {
			const entries = Object.fromEntries(
				Object.entries(given).map(([key, user]) => [key, {auth: base64(`${user}:p`)}]),
			);
			const {credentials, refused} = parseRegistryAuth(config(entries), 'dockerconfigjson');
			const text = authJson([credentials]);
			return (
				refused === 0 &&
				(text === undefined
					? credentials.size === 0
					: isDeepStrictEqual(JSON.parse(text), {
							auths: Object.fromEntries([...credentials].map(([key, auth]) => [key, {auth}])),
						}) && Buffer.byteLength(text) === bytesOf(credentials) + '{"auths":{}}'.length - 1)
			);
		}),
	);
	t.pass();
});
