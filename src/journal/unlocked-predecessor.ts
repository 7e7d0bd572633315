/**
 * Handles a predecessor of an earlier version, which holds no lock: if its socket answered, it counts as alive for a
 * fixed time.
 */
import {abortable} from '../core/lifetime.ts';
import type {OtherDaemons} from '../sandbox/ports.ts';

/** @param others the daemons that hold a lock */
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
