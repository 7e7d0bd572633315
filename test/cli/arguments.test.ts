import test from 'ava';
import fc from 'fast-check';
import {helpText, parseArguments} from '../../src/cli/arguments.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {commands, type CommandDescription} from '../../src/cli/commands.ts';
import {inertSettings, settings, type Setting} from '../../src/config/settings.ts';

function flagsOf(...words: readonly string[]): Readonly<Record<string, string>> {
	const parsed = parseArguments(['libvirt', ...words]);
	return parsed.command === 'libvirt' ? parsed.flags : {};
}

test('flags are written in all the ways of Go', t => {
	for (const words of [
		['-uri', 'test:///default'],
		['--uri', 'test:///default'],
		['-uri=test:///default'],
		['--uri=test:///default'],
	]) {
		t.deepEqual(flagsOf(...words), {uri: 'test:///default'});
	}

	t.deepEqual(flagsOf('-uri=a=b'), {uri: 'a=b'});
	t.deepEqual(flagsOf('-uri='), {uri: ''});
	t.deepEqual(flagsOf('-uri', '-cpu'), {uri: '-cpu'});
	t.deepEqual(flagsOf('-cpu', '2', '-cpu', '4'), {cpu: '4'});
});

test('a switch stands alone or takes its value with =', t => {
	t.deepEqual(flagsOf('-disable-cvm', '-cpu', '2'), {'disable-cvm': 'true', cpu: '2'});
	t.deepEqual(flagsOf('--disable-cvm=false'), {'disable-cvm': 'false'});
});

test("a command's own switch is true or false, in every spelling that settings have", t => {
	const json = (word: string): unknown => parseArguments(['check', word]);
	for (const word of ['-json', '-json=true', '--json=1', '-json=T']) {
		t.like(json(word), {flags: {json: 'true'}}, word);
	}

	t.like(json('-json=0'), {flags: {json: 'false'}});
	t.throws(() => json('-json=yes'), {instanceOf: AdaptorError, message: /-json is "yes"; expected true or false/});
});

test('the arguments of the entrypoint scripts of upstream are accepted', t => {
	// entrypoint.sh of v0.10, of v0.14 to v0.16, and of 2026, each with all its options.
	t.deepEqual(
		Object.keys(
			flagsOf(
				'-uri',
				'u',
				'-data-dir',
				'/opt/data-dir',
				'-pods-dir',
				'/p',
				'-network-name',
				'n',
				'-pool-name',
				'p',
				'-disable-cvm',
				'-pause-image',
				'i',
				'-vxlan-port',
				'9000',
				'-ca-cert-file',
				'a',
				'-cert-file',
				'c',
				'-cert-key',
				'k',
				'-tls-skip-verify',
				'-proxy-timeout',
				'5m',
				'-initdata',
				'x',
				'-forwarder-port',
				'15150',
				'-cloud-config-verify',
				'-peerpods-limit-per-node',
				'10',
				'-socket',
				'/s',
			),
		).length,
		18,
	);
	t.deepEqual(
		flagsOf(
			'-pods-dir',
			'',
			'-socket',
			'',
			'-uri',
			'u',
			'-data-dir',
			'/d',
			'-network-name',
			'n',
			'-pool-name',
			'p',
			'-cpu',
			'2',
			'-memory',
			'8',
			'-tunnel-type',
			'vxlan',
		),
		{
			'pods-dir': '',
			socket: '',
			uri: 'u',
			'data-dir': '/d',
			'network-name': 'n',
			'pool-name': 'p',
			cpu: '2',
			memory: '8',
			'tunnel-type': 'vxlan',
		},
	);
	t.deepEqual(flagsOf('-data-dir', '/opt/data-dir'), {'data-dir': '/opt/data-dir'});
});

test('help and version are commands, and help is a flag as well', t => {
	for (const words of [['help'], ['-h'], ['-help'], ['--help']]) {
		t.deepEqual(parseArguments(words), {command: 'help'});
	}

	for (const words of [
		['help', 'libvirt'],
		['libvirt', '-help'],
		['libvirt', '-cpu', '2', '-h'],
	]) {
		t.deepEqual(parseArguments(words), {command: 'help', topic: 'libvirt'});
	}

	for (const words of [
		['help', 'image'],
		['image', '-h'],
		['image', '--help'],
		['help', 'image', '-h'],
	]) {
		t.deepEqual(parseArguments(words), {command: 'help', topic: 'image'});
	}

	t.deepEqual(parseArguments(['help', 'image', 'rm']), {command: 'help', topic: 'image rm'});
	t.deepEqual(parseArguments(['help', 'version']), {command: 'help'});
	t.deepEqual(parseArguments(['version']), {command: 'version'});
});

const refusals: ReadonlyArray<readonly [readonly string[], RegExp]> = [
	[[], /No command was given.*libvirt, .*help, version/v],
	[['aws'], /no command "aws"; expected one of libvirt, .*help, version\. See "cloud-api-adaptor help"/v],
	[['image'], /"image" is not a command by itself; expected one of image push, image list/v],
	[['image', 'prnue'], /no command "image prnue"; expected one of image push, .*did you mean image prune\?/v],
	[['image', '-force'], /not a command by itself/v],
	[['help', 'libvrt'], /no command "libvrt".*did you mean libvirt\?/v],
	[['help', 'image', 'remove'], /no command "image remove"/v],
	[['libvrt'], /did you mean libvirt\?/v],
	[['-uri', 'x'], /no command "-uri"/v],
	[['libvirt', '-memroy', '1'], /no flag -memroy \(did you mean -memory\?\)\. See/v],
	[['libvirt', '-disable-tls'], /no flag -disable-tls/v],
	[['libvirt', '-cpu'], /-cpu needs a value/v],
	[['libvirt', '-disable-cvm', 'false', '-cpu', '2'], /Unexpected argument "false".*-disable-cvm=false/v],
	[['image', 'push', 'a', 'b'], /Unexpected argument "b"\. See "cloud-api-adaptor help image push"/v],
	[['image', 'rm'], /image rm needs VOLUME\. See "cloud-api-adaptor help image rm"/v],
	[['libvirt', '--'], /Unexpected argument "--"/v],
	[['libvirt', '---cpu=2'], /Unexpected argument/v],
	[['libvirt', '-=2'], /Unexpected argument/v],
	[['libvirt', '-__proto__=2'], /no flag -__proto__/v],
];
for (const [words, message] of refusals) {
	test(`"${words.join(' ')}" is refused with a remedy`, t => {
		const error = t.throws(() => parseArguments(words), {instanceOf: AdaptorError, message});
		t.is(error.code, 'invalid-argument');
		t.regex(error.message, /cloud-api-adaptor help/v);
	});
}

test('any words give arguments or an AdaptorError', t => {
	const words = fc.oneof(
		fc.string(),
		fc.constantFrom('libvirt', '-uri', '--cpu=2', '-disable-cvm', '-', '--', '-h'),
		fc.string().map(text => `-${text}`),
	);
	fc.assert(
		fc.property(fc.array(words, {maxLength: 6}), argv => {
			try {
				parseArguments(['libvirt', ...argv]);
			} catch (error) {
				if (!(error instanceof AdaptorError)) {
					throw error;
				}
			}
		}),
	);
	t.pass();
});

test('the help text names every variable and every flag, in lines that a terminal shows whole', t => {
	const text = helpText();
	for (const {env, flag} of [...Object.values<Setting>(settings), ...inertSettings]) {
		t.regex(text, new RegExp(`^  ${env}\\b`, 'mv'));
		t.true(flag === undefined || text.includes(`-${flag}`));
	}

	t.deepEqual(
		text.split('\n').filter(line => line.length > 120),
		[],
	);
});

test('the help of a group lists its commands and no others', t => {
	t.deepEqual(
		[...helpText('image').matchAll(/^ {2}(?<name>[a-z]+(?: [a-z]+)?) {2,}\S/gmv)].map(
			match => match.groups?.['name'],
		),
		Object.keys(commands).filter(name => name.startsWith('image ')),
	);
});

test('each command has a help that names its own settings and flags, in lines that a terminal shows whole', t => {
	for (const [name, {settings: own = {}, flags = []}] of Object.entries<CommandDescription>(commands)) {
		const parsed = parseArguments(['help', ...name.split(' ')]);
		const text = helpText(parsed.command === 'help' ? parsed.topic : undefined);
		t.true(text.startsWith(`Usage: cloud-api-adaptor ${name}`));
		t.deepEqual(
			Object.values(own).filter(({env}) => !text.includes(`  ${env}`)),
			[],
		);
		t.deepEqual(
			flags.filter(flag => !text.includes(`  -${flag.name}`)),
			[],
		);
		t.deepEqual(
			text.split('\n').filter(line => line.length > 120),
			[],
		);
		t.true(helpText().includes(`  ${name} `));
	}
});
