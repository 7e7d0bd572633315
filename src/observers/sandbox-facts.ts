/** Keeps what events say about each sandbox and its state does not: its agent calls and its last error. */
import {toError} from '../core/errors.ts';
import type {Observer} from '../core/observer.ts';
import type {SandboxId} from '../sandbox/ports.ts';
import type {AdaptorEvent} from './event.ts';

export interface SandboxFacts {
	readonly agentCalls: number;
	readonly lastError?: {readonly text: string; readonly at: Date};
}

/** Sandboxes that are forgotten late, at most. */
const most = 4096;

export class SandboxFactsObserver implements Observer<AdaptorEvent> {
	readonly #facts = new Map<SandboxId, SandboxFacts>();

	notify(event: AdaptorEvent): void {
		if (!('sandbox' in event)) {
			return;
		}

		const {sandboxId} = event.sandbox;
		if (event.kind === 'sandbox-removed') {
			this.#facts.delete(sandboxId);
		} else if (event.kind === 'agent-call') {
			const known = this.of(sandboxId);
			this.#set(sandboxId, {...known, agentCalls: known.agentCalls + 1});
		} else if ('error' in event && event.error !== undefined) {
			this.#set(sandboxId, {
				...this.of(sandboxId),
				lastError: {text: toError(event.error).message, at: new Date()},
			});
		}
	}

	of(sandboxId: SandboxId): SandboxFacts {
		return this.#facts.get(sandboxId) ?? {agentCalls: 0};
	}

	#set(sandboxId: SandboxId, facts: SandboxFacts): void {
		this.#facts.delete(sandboxId);
		this.#facts.set(sandboxId, facts);
		for (const oldest of this.#facts.keys()) {
			if (this.#facts.size <= most) {
				break;
			}

			this.#facts.delete(oldest);
		}
	}
}
