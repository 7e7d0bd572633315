/**
 * Writes timings.md from the constants in src/ that are times: `npm run docs`. The reason of each is the comment above
 * it, or above the field of the options that it is the default of. A test checks that this was done, and that no time
 * lacks a reason.
 */
import {readdirSync, readFileSync, writeFileSync} from 'node:fs';
import {fileURLToPath} from 'node:url';

export interface Timing {
	readonly file: string;
	readonly name: string;
	/** As in the source, with its unit: `10 s`. */
	readonly value: string;
	/** Empty if there is none. */
	readonly reason: string;
}

const source = fileURLToPath(new URL('../src/', import.meta.url));
const constant = /^(?:export )?const (?<name>\w+(?:Ms|Seconds))\b[^=]*= (?<value>[\d_]+(?: \* [\d_]+)*);$/v;
const member = /^\t+(?<name>\w+Ms): (?<value>[\d_]+|\[[\d_]+, [\d_]+\]),$/v;
const parameter = /^\t+(?<name>\w+Ms) = (?<value>[\d_]+),$/v;

export function timings(): Timing[] {
	return readdirSync(source, {recursive: true, encoding: 'utf8'})
		.filter(name => name.endsWith('.ts'))
		.toSorted()
		.flatMap(file => timingsIn(file, readFileSync(`${source}${file}`, 'utf8').split('\n')));
}

function timingsIn(file: string, lines: readonly string[]): Timing[] {
	return lines.flatMap((line, index) => {
		const isConstant = constant.test(line);
		const {name, value} = (constant.exec(line) ?? member.exec(line) ?? parameter.exec(line))?.groups ?? {};
		// A day is a unit, and zero is the start of a sum.
		if (name === undefined || value === undefined || name === 'dayMs' || value === '0') {
			return [];
		}

		const field = lines.findIndex(each => new RegExp(String.raw`^\t+readonly ${name}\??:`, 'v').test(each));
		const reason = commentAbove(lines, index) || (isConstant || field === -1 ? '' : commentAbove(lines, field));
		return [{file: `src/${file}`, name, value: withUnit(name, value), reason}];
	});
}

/** The text of the comment that ends on the line before, or of the one above the constants before it. */
function commentAbove(lines: readonly string[], index: number): string {
	const comment: string[] = [];
	let at = index - 1;
	if (/^\s*\/\/ /v.test(lines[at] ?? '')) {
		for (; /^\s*\/\/ /v.test(lines[at] ?? ''); at--) {
			comment.unshift(lines[at] ?? '');
		}
	} else if (/\*\/$/v.test(lines[at] ?? '')) {
		for (; at >= 0; at--) {
			comment.unshift(lines[at] ?? '');
			if (/^\s*\/\*\*/v.test(lines[at] ?? '')) {
				break;
			}
		}
	}

	return comment
		.map(line => line.replace(/^\s*(?:\/\*\*|\/\/|\*(?!\/))?\s?/v, '').replace(/\s*\*\/$/v, ''))
		.join(' ')
		.trim();
}

function withUnit(name: string, value: string): string {
	return value.replaceAll(/[\d_]+(?: \* [\d_]+)*/gv, text => {
		const number = text
			.split(' * ')
			.map(factor => Number(factor.replaceAll('_', '')))
			.reduce((product, factor) => product * factor, 1);
		const ms = name.endsWith('Seconds') ? number * 1000 : number;
		const unit = (
			[
				['d', 86_400_000],
				['h', 3_600_000],
				['min', 60_000],
				['s', 1000],
			] as const
		).find(([, size]) => ms >= size && ms % size === 0);
		return unit === undefined ? `${ms} ms` : `${ms / unit[1]} ${unit[0]}`;
	});
}

/** The whole of docs/timings.md. */
export function timingsMarkdown(): string {
	return [
		'<!-- Written by docs/generate-timings.ts from the constants in src/: edit those instead. -->',
		'# Times',
		'',
		'Time limits, pauses and intervals that are not settings, with their reasons. For those that are settings, see',
		'[configuration.md](configuration.md).',
		'',
		'| file | name | value | reason |',
		'| --- | --- | --- | --- |',
		...timings().map(
			({file, name, value, reason}) =>
				`| \`${file}\` | \`${name}\` | ${value} | ${reason.replaceAll('|', String.raw`\|`)} |`,
		),
		'',
	].join('\n');
}

if (import.meta.main) {
	writeFileSync(new URL('timings.md', import.meta.url), timingsMarkdown());
}
