/**
 * Runs the tests and lists the slowest at the end.
 *
 *     node test/run-suite.ts [unit | lab | all] [arguments for ava]
 */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {availableParallelism} from 'node:os';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import {stripVTControlCharacters} from 'node:util';

const listed = 15;
const compileCache = fileURLToPath(new URL('../node_modules/.cache/compile', import.meta.url));

const [suite = 'all', ...rest] = process.argv.slice(2);
const ava = spawn(
	process.execPath,
	[
		fileURLToPath(new URL('../node_modules/ava/entrypoints/cli.js', import.meta.url)),
		// Half of a unit test's time is waiting.
		...(suite === 'unit' ? [`--concurrency=${2 * availableParallelism()}`] : []),
		...rest,
	],
	{
		stdio: ['inherit', 'pipe', 'inherit'],
		env: {
			...process.env,
			...(suite === 'all' ? {} : {SUITE: suite}),
			...(suite === 'unit' ? {NODE_COMPILE_CACHE: compileCache} : {}),
			...(process.stdout.isTTY ? {FORCE_COLOR: '1'} : {}),
		},
	},
);
const ended = once(ava, 'close') as Promise<[code: number | null]>;
const times: Array<{readonly test: string; readonly seconds: number}> = [];
for await (const line of createInterface({input: ava.stdout})) {
	process.stdout.write(`${line}\n`);
	const [, test, minutes = '0', amount, unit] =
		/^\s*[✔✘] (.+) \((?:(\d+)m )?(\d+(?:\.\d+)?)(ms|s)\)$/v.exec(stripVTControlCharacters(line)) ?? [];
	if (test !== undefined) {
		times.push({test, seconds: Number(minutes) * 60 + Number(amount) / (unit === 'ms' ? 1000 : 1)});
	}
}

const slowest = times.sort((a, b) => b.seconds - a.seconds).slice(0, listed);
if (rest.length === 0 && slowest.length > 0) {
	process.stdout.write('\n  Slowest:\n');
	for (const {test, seconds} of slowest) {
		process.stdout.write(`  ${seconds.toFixed(1).padStart(6)} s  ${test}\n`);
	}
}

const [code] = await ended;
process.exitCode = code ?? 1;
