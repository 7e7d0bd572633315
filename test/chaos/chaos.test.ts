/**
 * The short form of `npm run chaos`: every kind of fault once, some random rounds from a fixed seed, some from the time.
 * What is counted is what is there.
 */
import test from 'ava';
import {evidence, isGood, playRounds, summary} from './rounds.ts';
import {faultKinds, randomFrom, randomScript, type Script} from './script.ts';

const fixedSeed = 20_260;

const rounds = (seed: number, count: number): Script[] => Array.from({length: count}, (_, index) => randomScript(randomFrom(seed * 10_000 + 1 + index)));

test('after each kind of fault and after random ones every caller has an answer, nothing is left, and what was started is served', async t => {
	t.timeout(300_000);
	const seed = Date.now() % 1_000_000;
	t.log(`npm run chaos -- --seed ${seed} --rounds 5`);
	const scripts = [{pods: ['bridge'], faults: []} satisfies Script, ...faultKinds.map((kind, index) => randomScript(randomFrom(fixedSeed + index), kind)), ...rounds(fixedSeed, 10), ...rounds(seed, 5)];
	const tally = await playRounds(scripts, round => isGood(round) || t.log(evidence(round)));
	t.log(`Faults that came to happen: ${[...tally.happened].map(([kind, count]) => `${kind} ${count}`).join(', ')}`);
	t.deepEqual(faultKinds.filter(kind => !tally.happened.has(kind)), [], 'a kind of fault that never happens proves nothing');
	t.is(summary(tally), `${scripts.length} rounds, 0 leaked, 0 lost, 0 hung`);
});
