/** Plays rounds one after the other on one node, and counts the results. */
import {ChaosNode, type NodeOptions} from './node.ts';
import {playRound, type Verdict} from './round.ts';
import {describe, type Fault, type Script} from './script.ts';

export interface Tally {
	readonly rounds: number;
	readonly leaked: number;
	readonly lost: number;
	readonly hung: number;
	/** Faults that happened, by kind. */
	readonly happened: ReadonlyMap<Fault['kind'], number>;
}

export interface Played extends Verdict {
	readonly script: Script;
	/** The last log lines of the daemon. */
	readonly tail: readonly string[];
}

/** @param onRound is called after each round */
export async function playRounds(
	scripts: Iterable<Script>,
	onRound: (round: Played, number: number) => void,
	options: Pick<NodeOptions, 'hasRelayProcess'> = {},
): Promise<Tally> {
	await using node = await ChaosNode.start(options);
	let before = await node.inventory();
	const sum = {rounds: 0, leaked: 0, lost: 0, hung: 0};
	const happened = new Map<Fault['kind'], number>();
	for (const script of scripts) {
		const {after, ...verdict} = await playRound(node, script, before);
		before = after;
		sum.rounds++;
		for (const what of ['leaked', 'lost', 'hung'] as const) {
			sum[what] += verdict[what].length;
		}

		for (const [fault] of [...verdict.happened].filter(([, did]) => did)) {
			happened.set(fault.kind, (happened.get(fault.kind) ?? 0) + 1);
		}

		onRound({...verdict, script, tail: [...node.tail, ...node.vms.complaints]}, sum.rounds);
	}

	return {...sum, happened};
}

export function isGood({leaked, lost, hung}: Pick<Verdict, 'leaked' | 'lost' | 'hung'>): boolean {
	return leaked.length + lost.length + hung.length === 0;
}

/** All facts about a round, to explain its result. */
export function evidence({script, story, tail, leaked, lost, hung}: Played): string {
	const part = (title: string, lines: readonly string[]): string =>
		`${title}:\n${lines.map(line => `  ${line}\n`).join('')}`;
	return `${describe(script)}\n${part('leaked', leaked)}${part('lost', lost)}${part('hung', hung)}${part('story', story)}${part('the daemon', tail)}`;
}

export function summary({rounds, leaked, lost, hung}: Tally): string {
	return `${rounds} rounds, ${leaked} leaked, ${lost} lost, ${hung} hung`;
}
