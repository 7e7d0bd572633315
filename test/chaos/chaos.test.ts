/**
 * The short form of `npm run chaos`: every kind of fault once, some random rounds from a fixed seed, and some from the
 * current time. Leftovers are counted from the actual state, not from answers.
 */
import test from 'ava';
import {evidence, isGood, playRounds, summary} from './rounds.ts';
import {faultKinds, randomFrom, randomScript, type Fault, type FaultKind, type Script} from './script.ts';

const fixedSeed = 20_260;

const rounds = (seed: number, count: number): Script[] =>
	Array.from({length: count}, (_, index) => randomScript(randomFrom(seed * 10_000 + 1 + index)));

/** Each fault at a moment that every round reaches. */
const ofEachKind: Readonly<Record<FaultKind, Fault>> = {
	refuse: {phase: 'start', kind: 'refuse', call: 6, times: 2, code: 1},
	drop: {phase: 'start', kind: 'drop', call: 7, when: 'during'},
	freeze: {phase: 'stop', kind: 'freeze', call: 3, when: 'after'},
	away: {phase: 'stop', kind: 'away', at: {call: 2, when: 'before'}, forMs: 500},
	program: {phase: 'start', kind: 'program', program: 'nft', run: 1, how: 'refuses'},
	'disk-full': {phase: 'start', kind: 'disk-full'},
	'no-address': {phase: 'start', kind: 'no-address'},
	'no-listen': {phase: 'start', kind: 'no-listen'},
	'vm-ends': {phase: 'start', kind: 'vm-ends'},
	kill: {phase: 'start', kind: 'kill', at: {call: 8, when: 'after'}},
	terminate: {phase: 'running', kind: 'terminate', at: {ms: 10}},
	'hang-up': {phase: 'start', kind: 'hang-up', at: {call: 5, when: 'during'}},
	stop: {phase: 'start', kind: 'stop', at: {call: 6, when: 'before'}},
	'no-netns': {phase: 'start', kind: 'no-netns', at: {call: 4, when: 'before'}},
	'agent-reset': {phase: 'running', kind: 'agent-reset'},
	'vm-dies': {phase: 'running', kind: 'vm-dies'},
	'record-lost': {phase: 'running', kind: 'record-lost', at: {ms: 10}, how: 'torn', then: 'orphan'},
	'identity-lost': {phase: 'running', kind: 'identity-lost', at: {ms: 10}, how: 'torn'},
	'away-for-long': {phase: 'start', kind: 'away-for-long', at: {call: 3, when: 'before'}},
	'shim-killed': {phase: 'running', kind: 'shim-killed', at: {ms: 10}},
	'pod-removed': {phase: 'running', kind: 'pod-removed', at: {ms: 10}},
	'successor-goes': {phase: 'running', kind: 'successor-goes', at: {ms: 10}, by: 'SIGKILL'},
	'lock-holder-killed': {phase: 'start', kind: 'lock-holder-killed', call: 8, when: 'during'},
	alias: {phase: 'running', kind: 'alias', at: {ms: 10}, spelling: 'dots'},
	'clock-back': {phase: 'running', kind: 'clock-back', at: {ms: 10}},
	'pods-dir-read-only': {phase: 'stop', kind: 'pods-dir-read-only', at: {ms: 0}},
	'pool-undefined': {phase: 'stop', kind: 'pool-undefined', at: {call: 1, when: 'before'}, forMs: 1000},
};

/** Faults that were found by random rounds. */
const found: readonly Script[] = [
	// A daemon that had resumed a sandbox asked for the address of its VM forever, and did not end on SIGTERM.
	{
		pods: ['ptp'],
		faults: [
			{phase: 'start', kind: 'terminate', at: {call: 12, when: 'during'}},
			{phase: 'running', kind: 'terminate', at: {ms: 59}},
		],
	},
	// If a program was killed after it had reserved a VNI, the VNI stayed reserved.
	{pods: ['calico'], faults: [{phase: 'create', kind: 'program', program: 'ip', run: 2, how: 'killed-after'}]},
	// If a start arrived after a restart, before the state of the sandbox was known, it was not answered while the host
	// was away.
	{
		pods: ['bridge'],
		faults: [
			{phase: 'created', kind: 'away-for-long', at: {ms: 10}},
			{phase: 'created', kind: 'kill', at: {ms: 100}},
		],
	},
	// If the daemon was killed during a reservation, the VNI stayed reserved. The first reservation of a daemon also
	// looks up the network of the VMs.
	...[2, 3].map((run): Script => ({
		pods: ['bridge'],
		faults: [
			{phase: 'create', kind: 'program', program: 'ip', run, how: 'late'},
			{phase: 'create', kind: 'kill', at: {ms: 1000}},
		],
	})),
];

test('after every fault, all callers are answered, nothing is left, and running pods are served', async t => {
	t.timeout(900_000);
	const seed = Date.now() % 1_000_000;
	t.log(`npm run chaos -- --seed ${seed} --rounds 5`);
	const scripts: Script[] = [
		{pods: ['bridge', 'calico'], faults: []},
		...Object.values(ofEachKind).map((fault): Script => ({pods: ['bridge'], faults: [fault]})),
		...found,
		...rounds(fixedSeed, 10),
		...rounds(seed, 5),
	];
	const tally = await playRounds(scripts, round => isGood(round) || t.log(evidence(round)));
	t.log(`Faults that came to happen: ${[...tally.happened].map(([kind, count]) => `${kind} ${count}`).join(', ')}`);
	t.deepEqual(
		faultKinds.filter(kind => !tally.happened.has(kind)),
		[],
		'a kind of fault that never happens proves nothing',
	);
	t.is(summary(tally), `${scripts.length} rounds, 0 leaked, 0 lost, 0 hung`);
});
