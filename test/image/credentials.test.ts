import {writeFile} from 'node:fs/promises';
import {inspect} from 'node:util';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {findCredentials} from '../../src/image/credentials.ts';
import {parseImageReference} from '../../src/image/reference.ts';
import {directoryOf} from '../support/directory.ts';

const encoded = (text: string): string => Buffer.from(text).toString('base64');
const file = JSON.stringify({
	auths: {
		'quay.io': {auth: encoded('whole:a')},
		'quay.io/org': {auth: encoded('org:b:with:colons')},
		'https://index.docker.io/v1/': {auth: encoded('hub:c')},
		'https://registry.example.com:5000': {username: 'plain', password: 'd'},
		'token.example.com': {auth: encoded('00000000-0000-0000-0000-000000000000:'), identitytoken: 'refresh'},
		'broken.example.com': {auth: encoded('no colon')},
		'empty.example.com': {},
	},
	credsStore: 'desktop',
});

async function found(t: Parameters<typeof directoryOf>[0], reference: string): Promise<string | undefined> {
	const path = `${await directoryOf(t)}/auth.json`;
	await writeFile(path, file);
	const credentials = await findCredentials(parseImageReference(reference), path, []);
	t.notRegex(inspect(credentials, {depth: 5}), /with|refresh/v);
	return credentials === undefined
		? undefined
		: 'user' in credentials
			? `${credentials.user}:${credentials.password.reveal()}`
			: credentials.identityToken.reveal();
}

for (const [reference, expected] of [
	['quay.io/other/podvm', 'whole:a'],
	['quay.io/org/podvm', 'org:b:with:colons'],
	['quay.io/organisation/podvm', 'whole:a'],
	['podvm', 'hub:c'],
	['docker.io/org/podvm', 'hub:c'],
	['registry.example.com:5000/podvm', 'plain:d'],
	['registry.example.com/podvm', undefined],
	['token.example.com/podvm', 'refresh'],
	['broken.example.com/podvm', undefined],
	['empty.example.com/podvm', undefined],
] as const) {
	test(`${reference} is pulled ${expected === undefined ? 'anonymously' : `as ${expected}`}`, async t => {
		t.is(await found(t, reference), expected);
	});
}

test('the first usual file with an entry for the registry is used; an explicitly named file must exist', async t => {
	const directory = await directoryOf(t);
	const reference = parseImageReference('quay.io/org/podvm');
	await writeFile(`${directory}/one`, '{"auths":{}}');
	await writeFile(`${directory}/two`, file);
	t.like(await findCredentials(reference, undefined, [`${directory}/none`, `${directory}/one`, `${directory}/two`]), {
		user: 'org',
	});
	t.is(await findCredentials(reference, undefined, [`${directory}/none`]), undefined);
	t.is(await findCredentials(reference, `${directory}/one`, [`${directory}/two`]), undefined);
	await t.throwsAsync(findCredentials(reference, `${directory}/none`, []), {
		instanceOf: AdaptorError,
		message: /cannot be read.*REGISTRY_AUTH_FILE/v,
	});
});

test('a file that is not JSON is refused without its text', async t => {
	const path = `${await directoryOf(t)}/auth.json`;
	await writeFile(path, `{"auths": {"quay.io": {"auth": ${encoded('puller:secret')}}}}`);
	const error = await t.throwsAsync(findCredentials(parseImageReference('quay.io/a/b'), path, []), {
		instanceOf: AdaptorError,
		message: /is not JSON/v,
	});
	t.false(inspect(error, {depth: 5}).includes(encoded('puller:secret').slice(0, 8)));
});
