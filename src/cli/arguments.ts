/**
 * Parses the command line and formats the help text. Flags follow Go's package flag, as in upstream manifests:
 * `-name value`, `-name=value`, `--name …`; a switch is `-name` or `-name=false`. `loadConfig` checks the values of
 * settings; this file only checks the values of switches that are not settings.
 */
import {AdaptorError} from '../core/errors.ts';
import {suggestion} from '../core/suggestion.ts';
import {boolean} from '../config/setting-types.ts';
import {inertSettings, sections, settings, type Setting} from '../config/settings.ts';
import {commands, type CommandDescription, type CommandName} from './commands.ts';
import {wrapped} from './text.ts';

/** A command, or the common first word of several commands. */
export type HelpTopic = CommandName | Group;
type Group = CommandName extends infer Name ? (Name extends `${infer First} ${string}` ? First : never) : never;

export type Arguments =
	| {
			readonly command: CommandName;
			readonly flags: Readonly<Record<string, string>>;
			readonly operands: readonly string[];
	  }
	/** Help for one command, for a group of commands, or for all. */
	| {readonly command: 'help'; readonly topic?: HelpTopic}
	| {readonly command: 'version'};

interface Flag {
	readonly name: string;
	readonly isSwitch: boolean;
	/** Returns the canonical spelling of a value, or `undefined` if it is invalid. Absent if `loadConfig` checks it. */
	readonly normalize?: (text: string) => string | undefined;
}

const table: Readonly<Record<string, CommandDescription>> = commands;
const names = Object.keys(commands) as CommandName[];
const words = [...names, 'help', 'version'];
const helpFlags = ['-h', '-help', '--h', '--help'];

/**
 * @param argv the arguments after the program name
 * @throws AdaptorError 'invalid-argument' for an unknown command or flag, a flag without a value, an extra argument
 */
export function parseArguments(argv: readonly string[]): Arguments {
	const [first] = argv;
	if (first === undefined) {
		throw refused(`No command was given; expected one of ${words.join(', ')}`);
	}

	if (first === 'version') {
		return {command: 'version'};
	}

	if (first === 'help' || helpFlags.includes(first)) {
		const about = argv.slice(1).filter(word => !helpFlags.includes(word));
		return about.length === 0 || about[0] === 'help' || about[0] === 'version'
			? {command: 'help'}
			: {command: 'help', topic: topicOf(about)};
	}

	if (isGroup(first) && helpFlags.includes(argv[1] ?? '')) {
		return {command: 'help', topic: first};
	}

	const command = commandOf(argv);
	if (command === undefined) {
		throw noCommand(argv);
	}

	const {operands: [least, most] = [0, 0], usage = ''} = table[command] ?? {};
	const parsed = parseRest(argv.slice(command.split(' ').length), command, most);
	if (parsed === 'help') {
		return {command: 'help', topic: command};
	}

	if (parsed.operands.length < least) {
		throw refused(`${command} needs ${usage}`, command);
	}

	return {command, ...parsed};
}

/** The name of a command has one or two words. */
function commandOf(argv: readonly string[]): CommandName | undefined {
	return names.find(name => name === argv.slice(0, 2).join(' ')) ?? names.find(name => name === argv[0]);
}

function topicOf(argv: readonly string[]): HelpTopic {
	const [first, second] = argv;
	const topic = commandOf(argv) ?? (isGroup(first) && second === undefined ? first : undefined);
	if (topic === undefined) {
		throw noCommand(argv);
	}

	return topic;
}

function isCommand(topic: HelpTopic): topic is CommandName {
	return Object.hasOwn(commands, topic);
}

function isGroup(word: string | undefined): word is Group {
	return commandsIn(word).length > 0;
}

function commandsIn(group: string | undefined): readonly CommandName[] {
	return names.filter(name => name.startsWith(`${group} `));
}

function noCommand([first = '', second = '']: readonly string[]): AdaptorError {
	const ofGroup = commandsIn(first);
	if (ofGroup.length === 0) {
		return refused(
			`There is no command ${JSON.stringify(first)}; expected one of ${words.join(', ')}${suggestion(first, words)}`,
		);
	}

	const given = `${first} ${second}`;
	return second === '' || second.startsWith('-')
		? refused(`${JSON.stringify(first)} is not a command by itself; expected one of ${ofGroup.join(', ')}`)
		: refused(
				`There is no command ${JSON.stringify(given)}; expected one of ${ofGroup.join(', ')}${suggestion(given, ofGroup)}`,
			);
}

function flagsOf(command: CommandName): readonly Flag[] {
	const {settings: own = {}, inertSettings: inert = [], flags = []} = table[command] ?? {};
	return [
		...Object.values(own).map(({flag, type}) => ({name: flag, isSwitch: type.isSwitch === true})),
		...inert.map(({flag, isSwitch}) => ({name: flag, isSwitch: isSwitch === true})),
		...flags.map(({name, isSwitch}) =>
			isSwitch === true ? {name, isSwitch, normalize: switchValue} : {name, isSwitch: false},
		),
	].filter((flag): flag is Flag => flag.name !== undefined);
}

function parseRest(
	argv: readonly string[],
	command: CommandName,
	mostOperands: number,
): Pick<Extract<Arguments, {flags: unknown}>, 'flags' | 'operands'> | 'help' {
	const known = flagsOf(command);
	const flags: Record<string, string> = {};
	const operands: string[] = [];
	let follows: Flag | undefined;
	const rest = argv[Symbol.iterator]();
	for (const word of rest) {
		if (helpFlags.includes(word)) {
			return 'help';
		}

		if (!word.startsWith('-') && operands.length < mostOperands) {
			operands.push(word);
			follows = undefined;
			continue;
		}

		const [, name, value] = /^--?([^=\-][^=]*)(?:=(.*))?$/sv.exec(word) ?? [];
		if (name === undefined) {
			// Go's parser would stop here and silently ignore all further arguments.
			throw refused(
				`Unexpected argument ${JSON.stringify(word)}${follows?.isSwitch === true ? `; a switch takes its value with "=", as in -${follows.name}=false` : ''}`,
				command,
			);
		}

		const flag = known.find(each => each.name === name);
		if (flag === undefined) {
			throw refused(
				`There is no flag -${name}${suggestion(
					name,
					known.map(each => each.name),
					'-',
				)}`,
				command,
			);
		}

		follows = flag;
		const text = value ?? (flag.isSwitch ? 'true' : rest.next().value);
		if (text === undefined) {
			throw refused(`The flag -${name} needs a value`, command);
		}

		const normal = flag.normalize === undefined ? text : flag.normalize(text);
		if (normal === undefined) {
			throw refused(`The flag -${name} is ${JSON.stringify(text)}; expected ${boolean.expected}`, command);
		}

		flags[name] = normal;
	}

	return {flags, operands};
}

/** Canonical value of a switch that is not a setting. */
function switchValue(text: string): string | undefined {
	return boolean.parse(text)?.toString();
}

function refused(what: string, command?: CommandName): AdaptorError {
	return new AdaptorError({
		code: 'invalid-argument',
		what,
		remedy: `See "cloud-api-adaptor help${command === undefined ? '' : ` ${command}`}".`,
	});
}

/**
 * Text for a terminal: one command with its settings and flags, a group of commands, or all commands with the settings
 * of the daemon.
 */
export function helpText(topic?: HelpTopic): string {
	return `${(topic === undefined ? generalHelp() : isCommand(topic) ? commandHelp(topic) : groupHelp(topic)).join('\n')}\n`;
}

function groupHelp(group: Group): string[] {
	return [
		`Usage: cloud-api-adaptor ${group} COMMAND [flags]`,
		'',
		...commandsIn(group).map(name => `  ${name.padEnd(columnWidth)}${commands[name].summary}`),
		'',
		`"cloud-api-adaptor help ${group} COMMAND" shows the settings and flags of a command.`,
	];
}

const envAndFlags = [
	'Every setting is an environment variable. Some are also flags; a flag takes precedence.',
	'An empty value counts as not set.',
] as const;

function generalHelp(): string[] {
	const lines = [
		'Usage: cloud-api-adaptor COMMAND [flags]',
		'',
		...[
			...Object.entries(table).map(([name, {summary}]) => [name, summary] as const),
			['help', 'show this text; "help COMMAND" shows the settings and flags of a command'] as const,
			['version', 'show version, commit, Node.js and the versions of the contracts'] as const,
		].map(([name, summary]) => `  ${name.padEnd(columnWidth)}${summary}`),
		'',
		...envAndFlags,
		...settingLines(Object.values<Setting>(settings)),
		'',
		'Accepted without effect',
	];
	for (const {env, flag, reason} of inertSettings) {
		lines.push(`  ${env}${flag === undefined ? '' : `, -${flag}`}: ${reason}`);
	}

	return lines;
}

const columnWidth = Math.max(...words.map(word => word.length)) + 3;

function commandHelp(command: CommandName): string[] {
	const {summary, usage, settings: own = {}, flags = []} = table[command] ?? {summary: ''};
	const lines = [
		`Usage: cloud-api-adaptor ${command}${flags.length > 0 || Object.values(own).some(({flag}) => flag !== undefined) ? ' [flags]' : ''}${usage === undefined ? '' : ` ${usage}`}`,
		'',
		`  ${summary}`,
	];
	const subcommands = commandsIn(command);
	if (subcommands.length > 0) {
		lines.push(
			'',
			'Commands',
			...subcommands.map(name => `  ${name.padEnd(columnWidth)}${commands[name].summary}`),
		);
	}

	if (flags.length > 0) {
		lines.push(
			'',
			'Flags',
			...flags.flatMap(({name, value, description}) => [
				`  -${name}${value === undefined ? '' : ` ${value}`}`,
				...wrapped(description, 92).map(line => `        ${line}`),
			]),
		);
	}

	return Object.keys(own).length === 0 ? lines : [...lines, '', ...envAndFlags, ...settingLines(Object.values(own))];
}

function settingLines(all: readonly Setting[]): string[] {
	return sections
		.filter(section => all.some(each => each.section === section))
		.flatMap(section => [
			'',
			section,
			...all
				.filter(each => each.section === section)
				.flatMap(setting => [
					`  ${heading(setting)}`,
					...wrapped(setting.description.replaceAll('`', ''), 92).map(line => `        ${line}`),
				]),
		]);
}

function heading({env, flag, default: usual, defaultIs, example}: Setting): string {
	const value = usual ?? defaultIs;
	return `${env}${flag === undefined ? '' : `, -${flag}`}${value === undefined ? '' : ` [${value}]`}${example === undefined ? '' : ` (for example ${example})`}`;
}
