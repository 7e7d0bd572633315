/** The documentation speaks of files that exist, and its links lead somewhere. */
import {existsSync, readdirSync, readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import test from 'ava';
import {logsMarkdown, readLogs} from '../../docs/generate-logs.ts';
import {timings, timingsMarkdown} from '../../docs/generate-timings.ts';

const repository = join(import.meta.dirname, '../..');
const read = (path: string): string => readFileSync(join(repository, path), 'utf8');
const markdownIn = (directory: string): string[] =>
	readdirSync(join(repository, directory))
		.filter(name => name.endsWith('.md'))
		.map(name => join(directory, name));
const records = markdownIn('docs/adr');
const guides = ['README.md', 'CONTRIBUTING.md', ...markdownIn('docs')];

/** Lines that are prose: no code blocks, no tables, no comments. */
function prose(text: string): string[] {
	return text
		.replaceAll(/^ *```.*?^ *```$/gmsv, '')
		.split('\n')
		.filter(line => !/^(?:\||<!--)/v.test(line));
}

/** The fragments of a document's headings, as GitHub makes them. */
function anchors(path: string): Set<string> {
	return new Set(
		[...read(path).matchAll(/^#+ (?<heading>.+)$/gmv)].map(({groups}) =>
			(groups?.['heading'] ?? '')
				.toLowerCase()
				.replaceAll(/[^\p{L}\p{N} \-_]/gv, '')
				.replaceAll(' ', '-'),
		),
	);
}

for (const path of [...guides, ...records]) {
	test(`${path} names files that exist`, t => {
		const named = [
			...read(path).matchAll(/`(?<path>(?:src|test|docs|deploy|bench|proto|container)\/[\w.\-\/]*)`/gv),
		];
		t.deepEqual(
			named.map(({groups}) => groups?.['path'] ?? '').filter(each => !existsSync(join(repository, each))),
			[],
		);
	});

	test(`${path} has links that lead somewhere`, t => {
		const links = [...read(path).matchAll(/\]\((?<target>[^\)\s]+)\)/gv)]
			.map(({groups}) => groups?.['target'] ?? '')
			.filter(target => !/^https?:/v.test(target));
		t.deepEqual(
			links.filter(link => {
				const [file = '', anchor] = link.split('#');
				const target = file === '' ? path : join(dirname(path), file);
				return !existsSync(join(repository, target)) || (anchor !== undefined && !anchors(target).has(anchor));
			}),
			[],
		);
	});
}

for (const path of guides) {
	test(`${path} has lines of at most 120 columns, except for text that cannot be wrapped`, t => {
		t.deepEqual(
			prose(read(path)).filter(line => line.length > 120 && !/^\s*`[^`]*`\.?$/v.test(line)),
			[],
		);
	});
}

/** The first column of a table whose heading is `msg` names log messages; `…` stands for the rest of one. */
function namedMessages(text: string): string[] {
	return [...text.matchAll(/^\| `msg` \|.*\n\|[\-\|]+\n(?<rows>(?:\|.*\n)+)/gmv)]
		.flatMap(({groups}) => (groups?.['rows'] ?? '').split('\n'))
		.flatMap(row => [...(row.split(' | ')[0] ?? '').matchAll(/`(?<message>[^`]+)`/gv)])
		.map(({groups}) => groups?.['message'] ?? '')
		.filter(message => !/^(?:info|error|warn|debug)$/v.test(message));
}

const sources = readdirSync(join(repository, 'src'), {recursive: true, encoding: 'utf8'})
	.filter(name => name.endsWith('.ts'))
	.map(name => read(join('src', name)).replaceAll(/\\(?<quote>')/gv, '$<quote>'))
	.join('\n');

for (const path of guides.filter(each => namedMessages(read(each)).length > 0)) {
	test(`${path} names log messages that exist`, t => {
		t.deepEqual(
			namedMessages(read(path)).filter(
				message => !message.split(/…|<\w+>/v).every(part => sources.includes(part.trim())),
			),
			[],
		);
	});
}

test('docs/timings.md matches the source, and each time limit has a reason', t => {
	t.is(read('docs/timings.md'), timingsMarkdown(), 'run: npm run docs');
	t.deepEqual(
		timings().filter(({reason}) => reason === ''),
		[],
	);
	t.true(timings().length > 50);
});

test('docs/logs.md lists every event and every field of the code, and each field has a meaning', t => {
	t.is(read('docs/logs.md'), logsMarkdown(), 'run: npm run docs');
	const {events, fields} = readLogs();
	t.deepEqual(
		fields.filter(({meaning}) => meaning === '').map(({name}) => name),
		[],
	);
	const known = new Set(fields.map(({name}) => name));
	t.deepEqual(
		events.filter(event => event.levels.length === 0 || event.fields.some(field => !known.has(field))),
		[],
	);
	// Of each way to write a line: a constant, a choice, a template, a parameter, the observer.
	for (const message of [
		'pod VM deleted',
		'checks passed',
		'Choosing <image>',
		'unexpected error',
		'the VM violated the protocol; frame dropped',
	]) {
		t.true(
			events.some(event => event.message === message),
			message,
		);
	}
});

/** The headings of docs/troubleshooting.md that begin with the word, without it. */
function entries(word: string): string[] {
	return [...read('docs/troubleshooting.md').matchAll(/^### (?<word>\w+) (?<name>\S+)$/gmv)]
		.filter(({groups}) => groups?.['word'] === word)
		.map(({groups}) => groups?.['name'] ?? '');
}

test('docs/troubleshooting.md has an entry for each error code and for each event of pods, and no others', t => {
	const [, union = ''] = /^export type ErrorCode =(?<union>[^;]+);/mv.exec(read('src/core/errors.ts')) ?? [];
	const codes = [...union.matchAll(/'(?<code>[a-z\-]+)'/gv)].map(({groups}) => groups?.['code'] ?? '');
	t.true(codes.length > 10);
	t.deepEqual(entries('Code'), codes);
	const reasons = new Set(
		[...sources.matchAll(/reason: (?:[\w.]+ \?\? )?'(?<reason>[A-Z]\w+)'/gv)].map(
			({groups}) => groups?.['reason'] ?? '',
		),
	);
	t.true(reasons.has('PodVMStartFailed') && reasons.has('ImageNotFound'));
	t.deepEqual(entries('Event').toSorted(), [...reasons].toSorted());
});

test('docs/troubleshooting.md explains every log event that somebody must act on, and every check', t => {
	const text = read('docs/troubleshooting.md');
	const named = namedMessages(text);
	t.deepEqual(
		readLogs()
			.events.filter(({levels}) => levels.includes('error') || levels.includes('fatal'))
			.map(({message}) => message)
			.filter(
				message =>
					!named.some(each =>
						each.endsWith('…') ? message.startsWith(each.slice(0, -1)) : each === message,
					),
			),
		[],
	);
	const checks = [...read('src/checks.ts').matchAll(/^\t+name: '(?<name>[\w\-]+)',$/gmv)].map(
		({groups}) => groups?.['name'] ?? '',
	);
	t.true(checks.length > 10);
	t.deepEqual(
		checks.filter(name => !text.split('## Checks')[1]?.includes(`\`${name}\``)),
		[],
	);
});

test('README.md is at most 120 lines', t => {
	t.true(read('README.md').split('\n').length <= 121);
});

test('docs/architecture.md says where to change what an operator or developer may want to change', t => {
	const [, signposts = ''] = read('docs/architecture.md').split('## Where do I change ...?');
	const rows = [...signposts.matchAll(/^\| (?<change>[^\|]+) \|/gmv)].map(({groups}) => groups?.['change'] ?? '');
	for (const change of [
		'a metric',
		'a setting',
		'a CLI command',
		'a cloud-init file',
		'a CPU set per pod',
		'a second NIC',
		'IPv6',
		'libvirt over TLS',
		'hot-plugging a volume',
		'another hypervisor',
		'another agent transport (vsock)',
		'a log message',
		'a Kubernetes event',
		"an error's text",
		'a check',
		'a log field',
		'a webhook rule',
	]) {
		t.true(rows.includes(change), change);
	}

	t.true(rows.some(row => row.startsWith('redial policy')));
});

test('each decision record has a unique number and a status', t => {
	const numbers = records.map(path => /\/(?<number>\d{4})-/v.exec(path)?.groups?.['number']);
	t.is(new Set(numbers).size, records.length);
	for (const path of records) {
		t.regex(read(path), /^# \d+\. .+\n\n(?:Accepted|Superseded)/v, path);
	}
});
