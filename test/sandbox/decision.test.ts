import test from 'ava';
import {decide, type Decision, type Observation} from '../../src/sandbox/decision.ts';

const values = {
	record: ['none', 'unreadable', 'creating', 'created', 'starting', 'running', 'failed', 'stopping'],
	isServedHere: [true, false],
	vm: ['unknown', 'none', 'stopped', 'running'],
	pod: ['present', 'unknown', 'gone'],
	ownership: ['ours', 'unmarked', 'foreign'],
	predecessor: ['none', 'alive'],
	successor: ['none', 'alive'],
	isOverdue: [false, true],
} as const satisfies {readonly [Name in keyof Observation]: ReadonlyArray<Observation[Name]>};

function* everyObservation(): Generator<Observation> {
	for (const record of values.record) {
		for (const isServedHere of values.isServedHere) {
			for (const vm of values.vm) {
				for (const pod of values.pod) {
					for (const ownership of values.ownership) {
						for (const predecessor of values.predecessor) {
							for (const successor of values.successor) {
								for (const isOverdue of values.isOverdue) {
									yield {record, isServedHere, vm, pod, ownership, predecessor, successor, isOverdue};
								}
							}
						}
					}
				}
			}
		}
	}
}

const all = [...everyObservation()];
const removing: ReadonlySet<Decision['action']> = new Set(['remove', 'roll back']);

/** `*`: whatever it is. */
type Pattern = {readonly [Name in keyof Observation]?: Observation[Name] | ReadonlyArray<Observation[Name]>};

function matches(observation: Observation, pattern: Pattern): boolean {
	return (Object.entries(pattern) as Array<[keyof Observation, unknown]>).every(([name, wanted]) =>
		(Array.isArray(wanted) ? wanted : [wanted]).includes(observation[name]),
	);
}

const hasVm = {vm: ['stopped', 'running']} as const;
const hasEnded = {vm: ['none', 'stopped']} as const;
const mine = {ownership: ['ours', 'unmarked']} as const;
const lives = {pod: ['present', 'unknown']} as const;

/** The first that matches is what must be decided. Written for a reader, so in other words than the code. */
const table: ReadonlyArray<readonly [when: string, pattern: Pattern, action: Decision['action']]> = [
	['a successor has the rest', {successor: 'alive', isServedHere: false}, 'wait'],
	['a successor removes what runs here and is over', {successor: 'alive', record: 'running', ...hasEnded}, 'let go'],
	[
		'a successor removes what runs here and has no pod',
		{successor: 'alive', record: 'running', pod: 'gone'},
		'let go',
	],
	['a successor is no reason to stop serving', {successor: 'alive'}, 'serve'],
	['nothing is known and nothing is there', {record: 'none', vm: ['unknown', 'none']}, 'leave alone'],
	['a VM of another PODS_DIR', {record: 'none', ownership: 'foreign'}, 'leave alone'],
	['a VM that a predecessor may know', {record: 'none', predecessor: 'alive'}, 'wait'],
	['an orphan within its grace period', {record: 'none', isOverdue: false}, 'wait'],
	['an orphan', {record: 'none', isOverdue: true}, 'remove'],
	['a record that cannot be read', {record: 'unreadable'}, 'leave alone'],
	['a removal under way', {record: 'stopping', isServedHere: true}, 'wait'],
	['a removal that was cut off', {record: 'stopping', isServedHere: false}, 'remove'],
	["no pod, and the VM is another daemon's", {pod: 'gone', ownership: 'foreign'}, 'leave alone'],
	['no pod', {pod: 'gone'}, 'remove'],
	['in hand and under way', {isServedHere: true, record: ['creating', 'starting']}, 'serve'],
	['in hand, runs', {isServedHere: true, record: 'running', vm: ['unknown', 'running']}, 'serve'],
	['in hand, its VM has ended', {isServedHere: true, record: 'running', ...hasEnded}, 'end'],
	['in hand, failed a moment ago', {isServedHere: true, record: 'failed', isOverdue: false}, 'serve'],
	[
		"in hand, failed, the VM is another daemon's",
		{isServedHere: true, record: 'failed', ownership: 'foreign'},
		'leave alone',
	],
	['in hand, failed, nobody stops it', {isServedHere: true, record: 'failed'}, 'remove'],
	['in hand, created, no VM', {isServedHere: true, record: 'created', vm: ['unknown', 'none']}, 'serve'],
	["created, and a VM of another daemon's", {record: 'created', ...hasVm, ownership: 'foreign'}, 'leave alone'],
	[
		'created, and a VM that a predecessor may be starting',
		{record: 'created', ...hasVm, predecessor: 'alive'},
		'wait',
	],
	['created, and a VM of a start that was cut off', {record: 'created', ...hasVm, ...mine}, 'roll back'],
	[
		'a creation that a predecessor may be at',
		{isServedHere: false, record: 'creating', predecessor: 'alive'},
		'wait',
	],
	['a creation that was cut off', {isServedHere: false, record: 'creating'}, 'roll back'],
	[
		'created by an earlier run, the host says nothing',
		{isServedHere: false, record: ['created', 'starting'], vm: 'unknown'},
		'wait',
	],
	['created by an earlier run', {isServedHere: false, record: 'created', vm: 'none'}, 'resume'],
	['started by an earlier run', {isServedHere: false, record: 'running', vm: ['unknown', 'running']}, 'resume'],
	[
		"the VM of an earlier run has ended, another daemon's",
		{isServedHere: false, record: 'running', ownership: 'foreign'},
		'leave alone',
	],
	['the VM of an earlier run has ended', {isServedHere: false, record: 'running'}, 'roll back'],
	[
		"no record says so: starting by nobody, another daemon's VM",
		{isServedHere: false, record: 'starting', ownership: 'foreign'},
		'leave alone',
	],
	[
		'no record says so: starting by a predecessor',
		{isServedHere: false, record: 'starting', predecessor: 'alive'},
		'wait',
	],
	['no record says so: starting by nobody', {isServedHere: false, record: 'starting'}, 'roll back'],
	['no record says so: failed', {isServedHere: false, record: 'failed'}, 'wait'],
];

test('every combination is decided as the table says, and every row of the table is needed', t => {
	const used = new Set<string>();
	for (const observation of all) {
		const row = table.find(([, pattern]) => matches(observation, pattern));
		t.deepEqual(
			[decide(observation).action],
			row?.slice(2),
			`${row?.[0] ?? 'no row'}: ${JSON.stringify(observation)}`,
		);
		used.add(row?.[0] ?? '');
	}

	t.is(all.length, 4608);
	t.deepEqual(
		table.map(([when]) => when).filter(when => !used.has(when)),
		[],
	);
});

test('nothing is removed without proof: an unreachable host and an unknown pod prove nothing', t => {
	for (const observation of all.filter(each =>
		matches(each, {vm: 'unknown', ...lives, record: ['created', 'running', 'starting']}),
	)) {
		const {action, ...rest} = decide(observation);
		t.false(removing.has(action), JSON.stringify({observation, action, ...rest}));
	}
});

test('a VM that belongs to another PODS_DIR is only removed by an explicit StopVM', t => {
	for (const observation of all.filter(each => matches(each, {ownership: 'foreign', ...hasVm}))) {
		t.true(
			!removing.has(decide(observation).action) ||
				observation.record === 'stopping' ||
				observation.record === 'creating',
			JSON.stringify(observation),
		);
	}
});

test('a sandbox whose pod is gone is removed in every state, unless a successor does it', t => {
	for (const observation of all.filter(each =>
		matches(each, {
			pod: 'gone',
			successor: 'none',
			...mine,
			record: ['creating', 'created', 'starting', 'running', 'failed'],
		}),
	)) {
		t.is(decide(observation).action, 'remove', JSON.stringify(observation));
	}
});

test('while a predecessor is alive, sandboxes that it may be creating or starting are not changed', t => {
	for (const observation of all.filter(each =>
		matches(each, {predecessor: 'alive', ...lives, record: ['none', 'creating', 'created'], isServedHere: false}),
	)) {
		t.false(removing.has(decide(observation).action), JSON.stringify(observation));
	}
});

test('a pod that exists is served, whatever its shim does', t => {
	for (const observation of all.filter(each =>
		matches(each, {record: 'running', isServedHere: true, pod: 'present', vm: ['unknown', 'running']}),
	)) {
		t.is(decide(observation).action, 'serve');
	}
});
