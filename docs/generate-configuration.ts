/** Writes configuration.md from the tables of settings: `npm run docs`. A test checks that this was done. */
import {writeFileSync} from 'node:fs';
import {buildKeys} from '../src/cli/image-settings.ts';
import {commands, type CommandDescription} from '../src/cli/commands.ts';
import {exampleOf} from '../src/config/config.ts';
import {inertSettings, sections, settings, type Setting} from '../src/config/settings.ts';

/** The settings of all commands, each once: several commands may share one. */
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
		'Every setting is an environment variable. Some are also flags of the command line; a flag wins over its variable.',
		'An empty value counts as not set. One message reports all problems at once, and the process does not start with any.',
		'',
		'Flags are written `-name value`, `-name=value` or with two dashes. A switch is `-name` or `-name=false`.',
		'',
		"Names and defaults are those of upstream, the Go cloud-api-adaptor, so upstream's manifests work. A value that cannot",
		'be understood stops the start; it is never replaced by the default. "(not in upstream)" marks settings that',
		'upstream does not have.',
		...sections.flatMap(section => [
			'',
			`## ${section}`,
			'',
			...settingsTable(everySetting.filter(setting => setting.section === section)),
		]),
		'',
		'## Accepted without effect',
		'',
		'These settings of upstream change nothing here; a warning at the start names each one that is set.',
		'',
		'| variable | flag | why |',
		'| --- | --- | --- |',
		...inertSettings.map(({env, flag, reason}) => row(`\`${env}\``, flagCell(flag), reason)),
		'',
		'Keys of `libvirt-podvm-image-cm` for the image builder of the operator; `image push` warns about each one that is set:',
		'',
		'| variable | flag | why |',
		'| --- | --- | --- |',
		...buildKeys.map(({env, flag, reason}) => row(`\`${env}\``, flagCell(flag), reason)),
		'',
		'A variable that begins with `LIBVIRT_`, `PEERPODS_` or `VXLAN_` and is not a setting is probably mistyped: a warning',
		'names it, with the nearest setting.',
		'',
	].join('\n');
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
	writeFileSync(new URL('configuration.md', import.meta.url), configurationMarkdown());
}
