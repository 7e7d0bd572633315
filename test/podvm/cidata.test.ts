// What cloud-config says is checked with PyYAML, the parser that cloud-init itself uses.
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {Secret} from '../../src/core/log.ts';
import {cidataIso, cloudConfig} from '../../src/podvm/cidata.ts';
import {run} from './run.ts';

interface PlainFile {
	readonly path: string;
	readonly content: string;
}

/** Many documents through one Python. */
async function parsedByPython(documents: readonly string[]): Promise<readonly unknown[]> {
	const program = 'import json, sys, yaml; json.dump([yaml.safe_load(d) for d in json.load(sys.stdin)], sys.stdout)';
	return JSON.parse(
		(await run('python3', ['-c', program], JSON.stringify(documents))).toString(),
	) as readonly unknown[];
}

function configOf(files: readonly PlainFile[]): string {
	return cloudConfig(files.map(({path, content}) => ({path, content: new Secret(content)})));
}

const awkward = [
	'',
	' ',
	'\n',
	'\r',
	'\r\n',
	'\t',
	'a\n',
	'\na',
	'a\n\n',
	' leading',
	'trailing  ',
	'trailing \n',
	'a: b',
	'# no comment',
	'a # b',
	'- x',
	'? x',
	'---',
	'...',
	'%YAML 1.2',
	'\u0085',
	'a\u0085b',
	'\u2028',
	'\u2029',
	'\uFEFF',
	'\uFEFFa',
	'\u007F',
	'\u0000',
	'\u001B[0m',
	'\u009F',
	'\uFFFE',
	'\uFFFF',
	'\uD7FF',
	'\uE000',
	'😀',
	'e\u0301',
	'ü',
	'"',
	"'",
	'\\',
	'\\n',
	'"\\"',
	'\\U0001F600',
	'{}',
	'[]',
	'&a',
	'*a',
	'!!str x',
	'|',
	'>',
	'>-\n  x',
	'`',
	'@',
	'null',
	'~',
	'true',
	'no',
	'0x1f',
	'1e3',
	'1:30',
	'2026-01-02',
	'<<',
	'key: |\n  line one\n\tline two\n\n  # three\n',
	`${'x'.repeat(200)}\n${'y '.repeat(100)}`,
	'-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n',
	'{"tls-server-key":"-----BEGIN PRIVATE KEY-----\\nabc\\n"}',
];

test('awkward texts survive', async t => {
	const files = awkward.map((content, index) => ({path: `/run/peerpod/${String(index)}`, content}));
	const [parsed] = await parsedByPython([configOf(files)]);
	t.deepEqual(parsed, {write_files: files});
});

test('any text survives in path and content, with no other keys', async t => {
	const text = fc.oneof(
		fc.string({unit: 'binary', maxLength: 60}),
		fc.array(fc.constantFrom(...awkward), {maxLength: 5}).map(parts => parts.join('')),
		fc.string({unit: 'grapheme', maxLength: 60}),
	);
	const documents = fc.array(fc.array(fc.record({path: text, content: text}), {maxLength: 4}), {
		minLength: 100,
		maxLength: 150,
		size: 'max',
	});
	await fc.assert(
		fc.asyncProperty(documents, async lists => {
			t.deepEqual(
				await parsedByPython(lists.map(configOf)),
				lists.map(list => ({write_files: list.map(({path, content}) => ({path, content}))})),
			);
		}),
		{numRuns: 5},
	);
});

test('a document is printable ASCII and starts with the line that cloud-init asks for', t => {
	const config = configOf(awkward.map(content => ({path: content, content})));
	t.true(config.startsWith('#cloud-config\nwrite_files:\n'));
	t.regex(config, /^[\n -~]*$/);
});

test('half a surrogate pair is refused by its path and without its content', t => {
	const error = t.throws(() => configOf([{path: '/run/peerpod/x', content: 'secret \uD800'}]), {
		instanceOf: AdaptorError,
	});
	t.is(error.code, 'invalid-argument');
	t.true(error.message.includes('/run/peerpod/x'));
	t.false(error.message.includes('secret'));
	t.throws(() => configOf([{path: '\uDFFF', content: ''}]), {instanceOf: AdaptorError});
});

test('the disk has the three files of NoCloud under its label', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'caat-cidata-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const path = join(directory, 'cidata.iso');
	const files = [{path: '/run/peerpod/apf.json', content: new Secret('{}')}];
	await writeFile(path, cidataIso('podvm-web-01234567', files, new Date(0)));
	t.regex((await run('isoinfo', ['-i', path, '-d'])).toString(), /^Volume id: cidata$/m);
	for (const extension of ['-R', '-J']) {
		t.is((await run('isoinfo', ['-i', path, extension, '-x', '/user-data'])).toString(), cloudConfig(files));
		t.is(
			(await run('isoinfo', ['-i', path, extension, '-x', '/meta-data'])).toString(),
			'instance-id: podvm-web-01234567\nlocal-hostname: podvm-web-01234567\n',
		);
		t.is((await run('isoinfo', ['-i', path, extension, '-x', '/vendor-data'])).toString(), '');
	}
});
