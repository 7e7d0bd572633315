/**
 * Writes configuration.md, and the table in README.md, from the table of settings: `npm run docs`. A test checks that
 * this was done.
 */
import {readFileSync, writeFileSync} from 'node:fs';
import {commands, type CommandDescription} from '../src/cli/commands.ts';
import {exampleOf} from '../src/config/config.ts';
import {inertSettings, sections, settings, type Setting} from '../src/config/settings.ts';

/** Of all commands, each once: several may share one. */
const everySetting = [
	...new Map(
		[settings, ...Object.values<CommandDescription>(commands).map(({settings: own = {}}) => own)]
			.flatMap(table => Object.values<Setting>(table))
			.map(setting => [setting.env, setting]),
	).values(),
];

/** The whole of docs/configuration.md. */
export function configurationMarkdown(): string {
	return [
		'<!-- Written by docs/generate-configuration.ts from src/config/settings.ts: edit that instead. -->',
		'# Configuration',
		'',
		'Every setting is an environment variable; some are flags of the command line as well, and a flag wins over its variable. ' +
			'An empty value counts as not set. All problems are reported at once, and the process does not start with any.',
		'',
		'Flags are written `-name value`, `-name=value` or with two dashes; a switch is `-name` or `-name=false`.',
		'',
		'The names and defaults are those of the existing cloud-api-adaptor, so its manifests work; but a value that cannot be understood stops the start instead of being replaced by the default. "Ours" marks what it does not have.',
		...sections.flatMap(section => [
			'',
			`## ${section}`,
			'',
			...settingsTable(everySetting.filter(setting => setting.section === section)),
		]),
		'',
		'## Accepted without effect',
		'',
		'Setting one of these changes nothing; a warning at start says so.',
		'',
		'| variable | flag | why |',
		'| --- | --- | --- |',
		...inertSettings.map(({env, flag, reason}) => row(`\`${env}\``, flagCell(flag), reason)),
		'',
	].join('\n');
}

/**
 * README.md with its table of settings brought up to date: what stands between the two marks is replaced.
 * @throws when it has no marks
 */
export function withConfiguration(readme: string): string {
	const [before, rest] = halves(readme, readmeMarks.begin);
	const [, after] = halves(rest, readmeMarks.end);
	const all: readonly Setting[] = Object.values(settings);
	return [
		`${before}${readmeMarks.begin}`,
		'| variable | default | what it is |',
		'| --- | --- | --- |',
		...all.map(setting => row(`\`${setting.env}\``, defaultCell(setting), inShort(setting.description))),
		`${readmeMarks.end}${after}`,
	].join('\n');
}

const readmeMarks = {begin: '<!-- configuration: written by npm run docs -->', end: '<!-- /configuration -->'} as const;

function halves(text: string, mark: string): [before: string, after: string] {
	const at = text.indexOf(mark);
	if (at === -1) {
		throw new Error(`README.md has no ${mark}`);
	}

	return [text.slice(0, at), text.slice(at + mark.length)];
}

/** The first sentence that says what it is. */
function inShort(description: string): string {
	return /^(?:Ours\. )?(.+?\.)(?= [A-Z`]|$)/v.exec(description)?.[1] ?? description;
}

/** Lines of a Markdown table. */
function settingsTable(rows: readonly Setting[]): string[] {
	return [
		'| variable | flag | default | expected | description |',
		'| --- | --- | --- | --- | --- |',
		...rows.map(setting =>
			row(
				`\`${setting.env}\``,
				flagCell(setting.flag),
				defaultCell(setting),
				expectedCell(setting),
				setting.description,
			),
		),
	];
}

function row(...cells: readonly string[]): string {
	return `| ${cells.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`;
}

function flagCell(flag: string | undefined): string {
	return flag === undefined ? '' : `\`-${flag}\``;
}

function defaultCell({default: usual, defaultIs}: Setting): string {
	return usual === undefined ? (defaultIs ?? '') : `\`${usual}\``;
}

function expectedCell(setting: Setting): string {
	return `${setting.type.expected}${setting.example === undefined ? '' : `, for example \`${exampleOf(setting)}\``}`;
}

if (import.meta.main) {
	const readme = new URL('../README.md', import.meta.url);
	writeFileSync(new URL('configuration.md', import.meta.url), configurationMarkdown());
	writeFileSync(readme, withConfiguration(readFileSync(readme, 'utf8')));
}
