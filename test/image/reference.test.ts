import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {formatReference, parseImageReference} from '../../src/image/reference.ts';

const sha256 = `sha256:${'0123456789abcdef'.repeat(4)}`;
const sha512 = `sha512:${'0123456789abcdef'.repeat(8)}`;
const usual = 'image/podvm.qcow2';

const readings: ReadonlyArray<
	readonly [text: string, registry: string, repository: string, version: string, path: string]
> = [
	[
		'oci::quay.io/openshift_sandboxed_containers/podvm:latest::/image/podvm.qcow2',
		'quay.io',
		'openshift_sandboxed_containers/podvm',
		'latest',
		usual,
	],
	['oci::quay.io/org/podvm', 'quay.io', 'org/podvm', 'latest', usual],
	['quay.io/org/podvm:1.9', 'quay.io', 'org/podvm', '1.9', usual],
	['docker://quay.io/org/podvm:1.9', 'quay.io', 'org/podvm', '1.9', usual],
	// What the existing adaptor's regular expression does not take: ports and digests.
	[
		'oci::registry.example.com:5000/org/podvm:1.9::/disk.img',
		'registry.example.com:5000',
		'org/podvm',
		'1.9',
		'disk.img',
	],
	['oci::registry.example.com:5000/podvm::/disk.img', 'registry.example.com:5000', 'podvm', 'latest', 'disk.img'],
	[`oci::quay.io/org/podvm@${sha256}::/a/b`, 'quay.io', 'org/podvm', sha256, 'a/b'],
	[`quay.io:443/org/podvm@${sha512}`, 'quay.io:443', 'org/podvm', sha512, usual],
	[`oci::quay.io/org/podvm:1.9@${sha256}`, 'quay.io', 'org/podvm', sha256, usual],
	['localhost/podvm', 'localhost', 'podvm', 'latest', usual],
	['localhost:5000/podvm:x', 'localhost:5000', 'podvm', 'x', usual],
	['oci::[::1]:5000/podvm:x::/a', '[::1]:5000', 'podvm', 'x', 'a'],
	['127.0.0.1:5000/podvm', '127.0.0.1:5000', 'podvm', 'latest', usual],
	// Docker Hub.
	['podvm', 'docker.io', 'library/podvm', 'latest', usual],
	['podvm:2', 'docker.io', 'library/podvm', '2', usual],
	['org/podvm', 'docker.io', 'org/podvm', 'latest', usual],
	['docker.io/podvm', 'docker.io', 'library/podvm', 'latest', usual],
	['index.docker.io/org/podvm', 'docker.io', 'org/podvm', 'latest', usual],
	// Paths.
	['podvm::image/podvm.raw', 'docker.io', 'library/podvm', 'latest', 'image/podvm.raw'],
	['podvm:x:://./a//b', 'docker.io', 'library/podvm', 'x', 'a/b'],
];
for (const [text, registry, repository, version, path] of readings) {
	test(`${text} is ${version.slice(0, 12)} of ${repository} in ${registry}, ${path}`, t => {
		t.deepEqual(parseImageReference(text), {
			registry,
			repository,
			version: version.includes(':') ? {digest: version} : {tag: version},
			path,
		});
	});
}

for (const text of [
	'',
	'oci::',
	'oci::::/a',
	':tag',
	'/org/podvm',
	'quay.io/',
	'quay.io/Org/podvm',
	'quay.io/org/podvm:',
	'quay.io/org/podvm:-x',
	`quay.io/org/podvm:${'x'.repeat(129)}`,
	'quay.io/org/podvm@sha256:abc',
	`quay.io/org/podvm@${sha256.toUpperCase()}`,
	'quay.io/org/podvm@md5:0123',
	'quay.io:0/podvm',
	'quay.0/podvm',
	'quay.io:65536/podvm',
	'quay.io:x/podvm',
	'quay.io/org//podvm',
	'quay.io/../podvm',
	'user@quay.io/podvm',
	'quay.io/podvm?x',
	'quay.io/podvm#x',
	'quay.io/podvm::',
	'quay.io/podvm::/',
	'quay.io/podvm::/a/',
	'quay.io/podvm::../a',
	'quay.io/podvm::/a/../../b',
	'quay.io/podvm::/a\0',
	'https://quay.io/podvm',
	'[::1/podvm',
	`a/${'b'.repeat(260)}`,
]) {
	test(`${JSON.stringify(text.slice(0, 60))} is refused with the form that is expected`, t => {
		const error = t.throws(() => parseImageReference(text), {
			instanceOf: AdaptorError,
			message: /oci::REPOSITORY\[:TAG\|@DIGEST\]\[::PATH\]/v,
		});
		t.is(error.code, 'invalid-argument');
	});
}

test('the error for a refused reference does not contain a password', t => {
	for (const text of [
		'docker://user:sesame@quay.io/org/podvm',
		'oci::user:sesame@quay.io:443/org/podvm:tag',
		'user:sesame@quay.io/org/podvm::/x',
	]) {
		const error = t.throws(() => parseImageReference(text), {instanceOf: AdaptorError});
		t.false(error.message.includes('sesame'));
		t.true(error.message.includes('@quay.io'));
	}

	t.regex(
		t.throws(() => parseImageReference(`Quay.io/x:y@sha256:${'0'.repeat(63)}`)).message,
		/Quay\.io\/x:y@sha256:0/v,
	);
});

test('any text is refused, or the formatted result parses to the same reference', t => {
	const part = fc.oneof(
		fc.constantFrom(
			'oci::',
			'::',
			'/',
			':',
			'@',
			'quay.io',
			'localhost',
			sha256,
			'[::1]',
			'5000',
			'a',
			'..',
			'.',
			'-',
			'_',
			'__',
		),
		fc.string({maxLength: 4}),
	);
	fc.assert(
		fc.property(
			fc.array(part, {maxLength: 12}).map(parts => parts.join('')),
			text => {
				try {
					const reference = parseImageReference(text);
					t.deepEqual(
						parseImageReference(`oci::${formatReference(reference)}::/${reference.path}`),
						reference,
					);
					t.false(reference.path.split('/').includes('..'));
					// What it becomes part of: a URL that leads to its registry and nowhere else.
					const url = new URL(`https://${reference.registry}/v2/${reference.repository}/blobs/x`);
					t.is(url.pathname, `/v2/${reference.repository}/blobs/x`);
					t.is(url.username, '');
				} catch (error) {
					if (!(error instanceof AdaptorError)) {
						throw error;
					}
				}
			},
		),
		{numRuns: 20_000},
	);
});
