/**
 * A predecessor whose socket answered and that holds no lock, as versions before this one: it counts as alive for as
 * long as it may be at work.
 */
import {abortable} from '../core/lifetime.ts';
import type {OtherDaemons} from '../sandbox/ports.ts';

/** @param others those with a lock */
export function aliveFor(ms: number, others: OtherDaemons): OtherDaemons & Disposable {
	const over = Promise.withResolvers<undefined>();
	let isOver = false;
	const timer = setTimeout(() => {
		isOver = true;
		over.resolve(undefined);
	}, ms);
	return {
		hasPredecessor: () => !isOver || others.hasPredecessor(),
		async predecessorsEnded(signal) {
			await abortable(over.promise, signal);
			await others.predecessorsEnded(signal);
		},
		hasSuccessor: async () => others.hasSuccessor(),
		[Symbol.dispose]() {
			clearTimeout(timer);
		},
	};
}
