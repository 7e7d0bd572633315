/**
 * The command line: which command, which flags, and the help text. Flags follow Go's package flag, as manifests of the existing adaptor
 * write them: `-name value`, `-name=value`, `--name …`; a switch is `-name` or `-name=false`.
 * Knows the table of settings but not what values mean: `loadConfig` checks those.
 */
import {AdaptorError} from '../errors.ts';
import {inertSettings, sections, settings, type Setting} from '../settings.ts';

export type Arguments =
	| {readonly command: 'libvirt'; readonly flags: Readonly<Record<string, string>>}
	| {readonly command: 'help'}
	| {readonly command: 'version'};

interface Flag {
	readonly name: string;
	readonly isSwitch: boolean;
}

const commands = ['libvirt', 'help', 'version'] as const;
const helpFlags = ['-h', '-help', '--h', '--help'];
const helpRemedy = 'See "cloud-api-adaptor help".';
const allSettings: readonly Setting[] = Object.values(settings);

const flagTable: readonly Flag[] = [
	...allSettings.map(({flag, type}) => ({name: flag, isSwitch: type.isSwitch === true})),
	...inertSettings.map(({flag, isSwitch}) => ({name: flag, isSwitch: isSwitch === true})),
].filter((flag): flag is Flag => flag.name !== undefined);

/**
 * @param argv what follows the program's name
 * @throws AdaptorError 'invalid-argument' for an unknown command or flag, a flag without its value, a stray argument
 */
export function parseArguments(argv: readonly string[], table: readonly Flag[] = flagTable): Arguments {
	const [command, ...rest] = argv;
	if (command === 'help' || (command !== undefined && helpFlags.includes(command))) {
		return {command: 'help'};
	}

	switch (command) {
		case 'libvirt': {
			const flags = parseFlags(rest, table);
			return flags === 'help' ? {command: 'help'} : {command, flags};
		}

		case 'version': {
			return {command};
		}

		case undefined: {
			throw refused(`No command was given; expected one of ${commands.join(', ')}`);
		}

		default: {
			throw refused(`There is no command ${JSON.stringify(command)}; expected one of ${commands.join(', ')}${suggestion(command, commands)}`);
		}
	}
}

function parseFlags(argv: readonly string[], table: readonly Flag[]): Record<string, string> | 'help' {
	const flags: Record<string, string> = {};
	const words = argv[Symbol.iterator]();
	for (const word of words) {
		if (helpFlags.includes(word)) {
			return 'help';
		}

		const [, name, value] = /^--?([^=\-][^=]*)(?:=(.*))?$/sv.exec(word) ?? [];
		if (name === undefined) {
			// Go's parser would stop here and drop all that follows without a word.
			throw refused(`Unexpected argument ${JSON.stringify(word)}; a switch takes its value with "=", as in -disable-cvm=false`);
		}

		const flag = table.find(each => each.name === name);
		if (flag === undefined) {
			throw refused(`There is no flag -${name}${suggestion(name, table.map(each => each.name), '-')}`);
		}

		const text = value ?? (flag.isSwitch ? 'true' : words.next().value);
		if (text === undefined) {
			throw refused(`The flag -${name} needs a value`);
		}

		flags[name] = text;
	}

	return flags;
}

function refused(what: string): AdaptorError {
	return new AdaptorError({code: 'invalid-argument', what, remedy: helpRemedy});
}

/** `; did you mean …?` for the nearest name, if one is near. */
function suggestion(word: string, names: readonly string[], prefix = ''): string {
	const [nearest] = names
		.map(name => ({name, distance: editDistance(word, name)}))
		.filter(({name, distance}) => distance <= Math.max(2, name.length / 3))
		.toSorted((a, b) => a.distance - b.distance);
	return nearest === undefined ? '' : `; did you mean ${prefix}${nearest.name}?`;
}

/** Levenshtein's distance: how many characters to insert, delete or replace. */
function editDistance(from: string, to: string): number {
	let row = Array.from({length: to.length + 1}, (_, index) => index);
	for (const [i, left] of Array.from(from.slice(0, 64)).entries()) {
		const next = [i + 1];
		for (const [j, right] of Array.from(to).entries()) {
			next.push(Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + (left === right ? 0 : 1)));
		}

		row = next;
	}

	return row.at(-1) ?? 0;
}

/** Commands and every setting, for a terminal. */
export function helpText(): string {
	const lines = [
		'Usage: cloud-api-adaptor libvirt [flags] | help | version',
		'',
		'  libvirt   serve kata\'s remote hypervisor API with pod VMs on libvirt',
		'  help      this text',
		'  version   the version',
		'',
		'Every setting is an environment variable; some are flags as well, and a flag wins.',
		'An empty value counts as not set.',
	];
	for (const section of sections) {
		lines.push('', section);
		for (const setting of allSettings.filter(each => each.section === section)) {
			lines.push(`  ${heading(setting)}`, ...wrapped(`${setting.description.replaceAll('`', '')}${setting.isPending ? ' No effect yet.' : ''}`, 92).map(line => `        ${line}`));
		}
	}

	lines.push('', 'Accepted without effect');
	for (const {env, flag, reason} of inertSettings) {
		lines.push(`  ${env}${flag === undefined ? '' : `, -${flag}`}: ${reason}`);
	}

	return `${lines.join('\n')}\n`;
}

function heading({env, flag, default: usual, defaultIs, example}: Setting): string {
	const value = usual ?? defaultIs;
	return `${env}${flag === undefined ? '' : `, -${flag}`}${value === undefined ? '' : ` [${value}]`}${example === undefined ? '' : ` (for example ${example})`}`;
}

function wrapped(text: string, width: number): string[] {
	const lines: string[] = [];
	let line = '';
	for (const word of text.split(' ')) {
		if (line !== '' && line.length + 1 + word.length > width) {
			lines.push(line);
			line = word;
		} else {
			line = line === '' ? word : `${line} ${word}`;
		}
	}

	return [...lines, line];
}
