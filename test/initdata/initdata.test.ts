import {execFileSync} from 'node:child_process';
import {createHash} from 'node:crypto';
import {deflateRawSync, gunzipSync, gzipSync} from 'node:zlib';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {parseInitdata} from '../../src/initdata/initdata.ts';

const document = `algorithm = "sha384"
version = "0.1.0"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = 'http://127.0.0.1:8080'
'''
"policy.rego" = "package agent_policy # süß 😀"
`;
const unpack = (content: string): string => gunzipSync(Buffer.from(content, 'base64')).toString();
const hashOf = (algorithm: string, text: string): string => createHash(algorithm).update(text).digest('hex');

function refusal(text: string): AdaptorError {
	try {
		parseInitdata(text, {annotation: 'a'});
	} catch (error) {
		if (error instanceof AdaptorError) {
			return error;
		}

		throw error;
	}

	throw new Error('not refused');
}

test('a document reaches the VM as base64 of gzip, byte for byte, and is measured as it is', t => {
	const {content, digest} = parseInitdata(document);
	t.is(unpack(content), document);
	t.is(digest, `sha384:${hashOf('sha384', document)}`);
	t.regex(content, /^H4sI[A-Za-z\d+\/]+={0,2}$/, 'gzip, which is what pod VM images look for');
});

test('the gzip is that of RFC 1952 for other readers too', t => {
	const {content} = parseInitdata(`${document}# ${'x'.repeat(200_000)}\n`);
	t.is(
		execFileSync('gzip', ['-dc'], {input: Buffer.from(content, 'base64'), maxBuffer: 1 << 20}).toString(),
		`${document}# ${'x'.repeat(200_000)}\n`,
	);
	t.notThrows(() => execFileSync('gzip', ['-t'], {input: Buffer.from(content, 'base64')}));
});

test('the bytes for the VM are the same on every machine', t => {
	const {content} = parseInitdata('algorithm="sha256"\nversion="0.1.0"\n[data]\n');
	t.is(content, 'H4sIAAAAAAAA/wEqANX/YWxnb3JpdGhtPSJzaGEyNTYiCnZlcnNpb249IjAuMS4wIgpbZGF0YV0KfHCY0ioAAAA=');
});

test('initdata is unpacked, validated and packed again: the result does not depend on the packer', t => {
	const expected = parseInitdata(document);
	const wrapped = gzipSync(document)
		.toString('base64')
		.replaceAll(/.{76}/gv, line => `${line}\n`);
	const halves = Buffer.concat([
		gzipSync(document.slice(0, 50), {level: 1}),
		gzipSync(document.slice(50), {level: 9}),
	]);
	for (const text of [gzipSync(document).toString('base64'), `${wrapped}\n`, halves.toString('base64')]) {
		t.deepEqual(parseInitdata(text), expected);
	}
});

test('base64 of a bare document, the form for images of before v0.14, reaches the VM in that form', t => {
	const text = Buffer.from(document).toString('base64');
	t.deepEqual(parseInitdata(`${text}\n`), {content: text, digest: `sha384:${hashOf('sha384', document)}`});
});

for (const algorithm of ['sha256', 'sha384', 'sha512']) {
	test(`the digest is of the document's own algorithm: ${algorithm}`, t => {
		const text = document.replace('sha384', algorithm);
		t.is(parseInitdata(text).digest, `${algorithm}:${hashOf(algorithm, text)}`);
	});
}

test('a final newline and the line endings are part of the digest', t => {
	t.not(parseInitdata(document).digest, parseInitdata(document.trimEnd()).digest);
	t.is(unpack(parseInitdata(document.replaceAll('\n', '\r\n')).content), document.replaceAll('\n', '\r\n'));
});

const bare = 'algorithm = "sha256"\nversion = "0.1.0"\n';
for (const [what, text, words] of [
	['no TOML', 'algorithm "hush-hush"', /not valid TOML \(line 1, column \d+\)/],
	['neither', 'hush-hush', /neither TOML nor base64/],
	['base64 without its end', 'H4sIAAAAAAAAA0v', /neither TOML nor base64/],
	['base64 of no TOML', Buffer.from('hush-hush').toString('base64'), /not valid TOML/],
	['gzip that is cut off', gzipSync(document).subarray(0, 60).toString('base64'), /gzip cannot decompress it/],
	[
		'gzip that is damaged',
		Buffer.concat([gzipSync(document).subarray(0, 10), deflateRawSync('hush-hush'), Buffer.alloc(8)]).toString(
			'base64',
		),
		/gzip cannot decompress it/,
	],
	[
		'bytes that are not UTF-8',
		gzipSync(Buffer.concat([Buffer.from(`${bare}[data]\nx = "hush-hush`), Buffer.from([0xff, 0x22])])).toString(
			'base64',
		),
		/not UTF-8/,
	],
	[
		'an algorithm that nobody knows',
		document.replace('sha384', 'hush-hush'),
		/no algorithm that is one of sha256, sha384, sha512/,
	],
	['no algorithm', document.replace(/^.*\n/, ''), /no algorithm/],
	['an algorithm that is no string', document.replace('"sha384"', '384'), /no algorithm/],
	['no version', document.replace(/^version.*\n/m, ''), /no version/],
	['a version that is a number', document.replace('"0.1.0"', '0.1'), /no version/],
	['no data', `${bare}hush = "hush-hush"`, /no table \[data\]/],
	['data that are no table', `${bare}data = "hush-hush"`, /no table \[data\]/],
	['data that are a list', `${bare}data = ["hush-hush"]`, /no table \[data\]/],
	['data that are not only strings', `${bare}[data]\na = "hush-hush"\nb = 1`, /no table \[data\]/],
	['a table in the data', `${bare}[data.aa]\ntoml = "hush-hush"`, /no table \[data\]/],
] as const) {
	test(`${what}: refused with what is wrong and where it stood, without what it says`, t => {
		const error = refusal(text);
		t.is(error.code, 'invalid-argument');
		t.regex(error.message, words);
		t.deepEqual(error.where, {annotation: 'a'});
		t.false(error.message.includes('hush-hush'));
		t.is(error.cause, undefined);
	});
}

test('a document over the limit is refused, however small it is when compressed', t => {
	const large = `${document}# ${'x'.repeat(262_144)}`;
	for (const text of [
		large,
		gzipSync(large).toString('base64'),
		'A'.repeat(3_000_000),
		gzipSync(Buffer.alloc(30_000_000)).toString('base64'),
	]) {
		t.regex(refusal(text).message, /larger than 262144 bytes/);
	}
});

test('a document just within the limit is taken', t => {
	const text = `${document}# ${'x'.repeat(262_144 - Buffer.byteLength(document) - 2)}`;
	t.is(unpack(parseInitdata(text).content), text);
});

test('any text is accepted completely or refused', t => {
	const texts = fc.oneof(
		fc.string({unit: 'binary'}),
		fc.base64String(),
		fc.uint8Array().map(bytes => Buffer.concat([Buffer.from([0x1f, 0x8b]), bytes]).toString('base64')),
		fc
			.tuple(fc.nat(document.length), fc.string({maxLength: 3}))
			.map(([at, text]) => document.slice(0, at) + text + document.slice(at + text.length)),
	);
	fc.assert(
		fc.property(texts, text => {
			try {
				const {content, digest} = parseInitdata(text);
				const given = /["']/.test(text) ? text : unpack(content);
				return unpack(content) === given && digest.endsWith(hashOf(digest.split(':')[0] ?? '', given));
			} catch (error) {
				return error instanceof AdaptorError;
			}
		}),
		{numRuns: 500},
	);
	t.pass();
});

/** What is parsed takes its time by parts and lines, not by bytes: each of these is within the limit of bytes. */
const fill = (unit: string): string => unit.repeat(Math.floor(200_000 / unit.length));
for (const [what, text] of [
	['a key of many parts', `${bare}${fill('a.')}a = 1\n[data]\n`],
	['many keys', `${bare}${Array.from({length: 2001}, (_, index) => `k${index}=1\n`).join('')}[data]\n`],
	['many empty arrays', `${bare}a = [${fill('[],')}]\n[data]\n`],
	['arrays inside each other', `${bare}a = ${fill('[')}`],
	['many inline tables', `${bare}a = [${fill('{},')}]\n[data]\n`],
	['many dates', `${bare}a = [${fill('1979-05-27,')}]\n[data]\n`],
	['many tables', `${bare}${fill('[[a]]\n')}[data]\n`],
	['many strings', `${bare}[data]\n${Array.from({length: 2001}, (_, index) => `k${index} = ""\n`).join('')}`],
	[
		'many parts behind strings of each kind',
		`${bare}a = ["\\"", '\\', """ "" \\""" """", ''' '' ''''', ${fill('1,')}]\n[data]\n`,
	],
	['many parts behind a string that its line ends', `${bare}a = "\n${fill('[],')}`],
	['many parts behind a comment', `${bare}# "'\na = [${fill('1,')}]\n[data]\n`],
	['many lines', `${bare}${fill('\n')}[data]\n`],
	['many lines in a string', `${bare}[data]\na = """${fill('\n')}"""\n`],
] as const) {
	test(`${what}: refused before it is parsed`, t => {
		for (const each of [text, gzipSync(text).toString('base64')]) {
			t.regex(refusal(each).message, /has more than 2000 keys, tables and values|has more than 20000 lines/);
		}
	});
}

test('a policy may have any characters, and a document two thousand parts', t => {
	const policy = `# "quoted" 'too'\nallow = input.x[1], {"a": 'b'.c} \\ \n${'default a := [1, 2, {"b": 3}].x = "y"\n'.repeat(5000)}`;
	const keys = Array.from({length: 1995}, (_, index) => `k${index} = ""\n`).join('');
	for (const text of [
		`${bare}[data]\n${keys}"policy.rego" = '''${policy}'''\n`,
		`${bare}[data]\n${keys}"policy.rego" = """${policy.replaceAll('\\', '\\\\')}"""\n`,
	]) {
		t.is(unpack(parseInitdata(text).content), text);
	}
});

test('parts are counted where a parser finds them, whatever strings and comments stand between', t => {
	const string = fc.oneof(
		fc.stringMatching(/^[ -~]*$/).map(text => JSON.stringify(text)),
		fc.stringMatching(/^[ -&\(-~]*$/).map(text => `'${text}'`),
		fc.stringMatching(/^[=.,\[\{#'"\n ]*$/).map(text => `"""\n${text.replaceAll('"', '\\"')}"""`),
		fc.stringMatching(/^[=.,\[\{#"\\\n ]*$/).map(text => `'''${text}'''`),
	);
	fc.assert(
		fc.property(fc.array(string, {maxLength: 20}), strings => {
			const given = strings.map((text, index) => `k${index} = ${text} # " ' = . , [ {\n`).join('');
			const document = (keys: number): string =>
				`${bare}[data]\n${given}${Array.from({length: keys - strings.length}, (_, index) => `m${index}=''\n`).join('')}`;
			// Beside the keys of [data] there are two keys and a table.
			parseInitdata(document(1997));
			return refusal(document(1998)).message.includes('has more than 2000 keys');
		}),
		{numRuns: 50},
	);
	t.pass();
});
