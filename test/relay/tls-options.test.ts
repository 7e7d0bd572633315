import {createSecureContext, getCiphers} from 'node:tls';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {
	checkTlsOptions,
	forwarderOptions,
	knownCipherSuites,
	parseCipherSuites,
	parseTlsMinVersion,
	secureContextOptions,
} from '../../src/relay/tls-options.ts';

test('a version is VersionTLS12 or VersionTLS13, everything else is refused with what to write', t => {
	t.is(parseTlsMinVersion(' VersionTLS12 '), 'VersionTLS12');
	t.is(parseTlsMinVersion('VersionTLS13'), 'VersionTLS13');
	for (const text of ['', '1.2', 'TLSv1.3', 'VersionTLS11', 'versiontls12']) {
		const error = t.throws<AdaptorError>(() => parseTlsMinVersion(text));
		t.is(error.code, 'invalid-argument');
		t.regex(error.message, /Use VersionTLS12 or VersionTLS13/);
	}
});

test('suites keep their order, each once; blanks and empty entries are ignored', t => {
	t.deepEqual(
		parseCipherSuites(' TLS_AES_128_GCM_SHA256,, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256, '),
		['TLS_AES_128_GCM_SHA256', 'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256'],
	);
	t.deepEqual(parseCipherSuites(''), []);
});

test('unknown suites are all named, with the list of the known', t => {
	const error = t.throws<AdaptorError>(() =>
		parseCipherSuites('TLS_AES_128_GCM_SHA256,ECDHE-RSA-AES128-GCM-SHA256,TLS_RSA_WITH_RC4_128_SHA,toString'),
	);
	t.is(error.where['suites'], 'ECDHE-RSA-AES128-GCM-SHA256, TLS_RSA_WITH_RC4_128_SHA, toString');
	t.regex(error.message, /Use these IANA names.*TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384/);
});

test("every known suite is one of this Node's", t => {
	const ours = new Set(getCiphers());
	for (const name of knownCipherSuites) {
		const {ciphers = ''} = secureContextOptions({cipherSuites: [name]});
		t.notThrows(() => createSecureContext({ciphers}), name);
		t.true(
			ciphers.split(':').every(cipher => ours.has(cipher.toLowerCase())),
			ciphers,
		);
	}
});

test("suites of TLS 1.2 alone do not rule TLS 1.3 out, as on the VM's side", t => {
	t.is(
		secureContextOptions({cipherSuites: ['TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256']}).ciphers,
		'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:ECDHE-RSA-AES128-GCM-SHA256',
	);
	t.is(
		secureContextOptions({cipherSuites: ['TLS_AES_256_GCM_SHA384', 'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256']})
			.ciphers,
		'TLS_AES_256_GCM_SHA384:ECDHE-RSA-AES128-GCM-SHA256',
	);
});

test('no suites may be chosen with TLS 1.3 as the minimum', t => {
	const error = t.throws<AdaptorError>(() =>
		checkTlsOptions({minVersion: 'VersionTLS13', cipherSuites: ['TLS_AES_128_GCM_SHA256']}),
	);
	t.is(error.code, 'invalid-argument');
	t.notThrows(() => checkTlsOptions({minVersion: 'VersionTLS13'}));
});

test('without options, the minimum is TLS 1.2 and the VM gets no TLS settings', t => {
	t.deepEqual(secureContextOptions({}), {minVersion: 'TLSv1.2'});
	t.deepEqual(forwarderOptions({cipherSuites: []}), {});
});
