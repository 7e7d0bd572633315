/**
 * `npm run chaos -- [--rounds N] [--seed N] [--relay-process] [--kind K] [--from N]`: plays rounds of random faults and
 * counts the results. Exits with 1 if anything was leaked, lost or hung. Each such round is printed with its seed and
 * all facts.
 */
import {parseArgs} from 'node:util';
import {evidence, isGood, playRounds, summary, type Played} from './rounds.ts';
import {describe, faultKinds, randomFrom, randomScript} from './script.ts';

const {
	values: {rounds, seed: seedText, kind: kindText, from, verbose, 'relay-process': hasRelayProcess},
} = parseArgs({
	options: {
		rounds: {type: 'string', default: '200'},
		seed: {type: 'string', default: String(Date.now() % 1_000_000)},
		/** Only inject faults of this kind. */
		kind: {type: 'string'},
		/** The first round to play, to repeat a failed one without the rounds before it. */
		from: {type: 'string', default: '1'},
		verbose: {type: 'boolean', default: false},
		/** Whether a relay process has the sockets of the shims. */
		'relay-process': {type: 'boolean', default: false},
	},
});
const seed = Number(seedText);
const kind = faultKinds.find(name => name === kindText);
if (
	![seed, Number(rounds), Number(from)].every(Number.isSafeInteger) ||
	(kind === undefined && kindText !== undefined)
) {
	process.stderr.write(
		`chaos: --seed, --rounds and --from are integers; --kind is one of ${faultKinds.join(', ')}\n`,
	);
	process.exit(2);
}

const say = (line: string): boolean => process.stdout.write(`${line}\n`);
say(`seed ${seed}`);
const startedAt = performance.now();
const first = Number(from);
// The script of a round depends only on its number and the seed.
const scripts = Array.from({length: Number(rounds)}, (_, index) =>
	randomScript(randomFrom(seed * 10_000 + first + index), kind),
);
/** The relay process holds the identity and keeps running. */
const notWithRelayProcess: ReadonlySet<string> = new Set(['identity-lost', 'clock-back']);
const played = hasRelayProcess
	? scripts.map(script => ({
			...script,
			faults: script.faults.filter(({kind: each}) => !notWithRelayProcess.has(each)),
		}))
	: scripts;
const onRound = (round: Played, number: number): void => {
	const told = first + number - 1;
	if (!isGood(round)) {
		say(`✗ round ${told}: again with --seed ${seed} --from ${told} --rounds 1\n${evidence(round)}`);
	} else if (verbose) {
		say(
			`✓ round ${told}, ${round.durationMs} ms: ${describe(round.script)}${[...round.happened.values()].every(Boolean) ? '' : ' (not all happened)'}`,
		);
	} else if (number % 20 === 0) {
		say(`  ${number} rounds in ${Math.round((performance.now() - startedAt) / 1000)} s`);
	}
};

const tally = await playRounds(played, onRound, {hasRelayProcess});
say(
	`Faults: ${[...tally.happened]
		.sort()
		.map(([name, count]) => `${name} ${count}`)
		.join(', ')}`,
);
say(summary(tally));
process.exitCode = tally.leaked + tally.lost + tally.hung === 0 ? 0 : 1;
