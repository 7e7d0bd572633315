import test from 'ava';
import fc from 'fast-check';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {parse, stringify, type ToStringOptions} from 'yaml';
import {Secret} from '../../src/core/log.ts';
import {cloudConfig} from '../../src/podvm/cidata.ts';
import {run} from './command.ts';

const guest = fileURLToPath(new URL('guest/', import.meta.url));
const env = {
	PATH: process.env['PATH'],
	HOME: tmpdir(),
	CGO_ENABLED: '0',
	GOPROXY: 'off',
	GOFLAGS: '',
	GOTOOLCHAIN: 'local',
	GOCACHE: fileURLToPath(new URL('../../.cache/lab/go', import.meta.url)),
};
const signal = AbortSignal.timeout(600_000);
const go = async (args: readonly string[], more: Readonly<Record<string, string>> = {}): Promise<Buffer> =>
	run('/usr/lib/go/bin/go', args, {cwd: guest, env: {...env, ...more}}, signal);

test('the guest agent passes gofmt, go vet and its own tests', async t => {
	t.is((await run('/usr/lib/go/bin/gofmt', ['-l', guest], {}, signal)).toString(), '');
	await go(['vet', '.']);
	await t.notThrowsAsync(go(['test', '-count=1', '.']));
});

/**
 * Text that is difficult for quoting and folding: colons, hashes, quotes, blanks at the ends of lines, long lines,
 * indentation, unicode.
 */
const content = fc
	.array(
		fc.constantFrom(
			'a',
			'word ',
			': ',
			' #',
			'\n',
			'\n\n',
			'\t',
			'  ',
			'"',
			"'",
			'\\',
			'- ',
			'|',
			'>',
			'{',
			'%',
			'@',
			'&',
			'*',
			'!',
			'null',
			'12',
			'---',
			'é',
			'😀',
			'x'.repeat(90),
		),
		{maxLength: 40},
	)
	.map(parts => parts.join(''));
/** Also characters that need an escape. */
const anyContent = fc.oneof(content, fc.string({unit: 'binary', maxLength: 60}));

const layouts: readonly ToStringOptions[] = [
	{},
	{lineWidth: 20},
	{defaultStringType: 'QUOTE_DOUBLE', lineWidth: 30},
	{defaultStringType: 'QUOTE_SINGLE'},
	{defaultStringType: 'BLOCK_LITERAL'},
	{defaultStringType: 'BLOCK_FOLDED', lineWidth: 20},
	{indent: 4},
	{indentSeq: false},
];

test('the guest reads files of the adaptor, and of a YAML library in all of its styles', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'caat-cloud-config-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const seed = Math.floor(Math.random() * 2 ** 31);
	const cases = [
		...fc.sample(anyContent, {numRuns: 300, seed}).map(text => ({
			text: cloudConfig([
				{path: '/a', content: new Secret(text)},
				{path: '/b', content: new Secret('end')},
			]),
			files: [
				['/a', text],
				['/b', 'end'],
			],
		})),
		// The parser of the library is the reference: with indent 4, and in folded scalars, its writer does not always
		// reproduce the input (yaml 2.9.1).
		...fc
			.sample(content, {numRuns: 300, seed})
			.map((value, index) => {
				const document = {
					write_files: [
						{path: '/a', content: value},
						{path: '/b', content: 'end'},
					],
				};
				const text = `#cloud-config\n${stringify(document, {defaultKeyType: 'PLAIN', ...layouts[index % layouts.length]})}`;
				return {
					text,
					files: (parse(text) as typeof document).write_files.map(entry => [entry.path, entry.content]),
				};
				// In double quotes, the library also folds within a surrogate pair. A file cannot contain that, because
				// it is not valid UTF-8.
			})
			.filter(({text}) => text.isWellFormed()),
	];
	const file = join(directory, 'cases.json');
	await writeFile(file, JSON.stringify(cases));
	await t.notThrowsAsync(
		async () =>
			go(['test', '-count=1', '-run', 'TestCloudConfigsOfAnotherWriter', '.'], {GUEST_CLOUD_CONFIGS: file}),
		`seed ${seed}`,
	);
});
