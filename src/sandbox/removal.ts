/**
 * How what there is of a sandbox is removed: once, in an order that matters; and again and again, until it has succeeded.
 * Knows no states: what there is to remove is said by whoever wants it gone.
 */
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import {levelOfAttempt, type Logger} from '../log.ts';
import type {Remains} from './admission.ts';
import {agentSocketPath, claimedVm} from './names.ts';
import type {PodRequest} from './pod-request.ts';
import type {SandboxId} from './ports.ts';
import type {SandboxWorld} from './world.ts';

/**
 * One attempt, within the time budget of one. In this order: a VNI is free for others only when no VM can use it any more.
 * @param request of a sandbox that was created: the cluster may have been told of its VM
 */
export async function clear(id: SandboxId, {network, reservingIn, mayHaveVm, relay}: Remains, request: PodRequest | undefined, world: SandboxWorld): Promise<void> {
	const {podVms, networks, relays, cluster, records, cleanupTimeoutMs} = world;
	using scope = new Scope().deadline(cleanupTimeoutMs, 'the sandbox to be removed');
	const clearAll = async (): Promise<void> => {
		await relay?.[Symbol.asyncDispose]();
		if (mayHaveVm) {
			if (network === undefined) {
				// No record says what the VM's network was. The VM does, as long as it is there.
				const vms = (await podVms.list(scope.signal)).filter(({sandboxId}) => sandboxId === id);
				await Promise.all(vms.map(async ({vni}) => networks.forget(vni, scope.signal)));
			}

			await podVms.delete(id, scope.signal);
			await relays.discard(agentSocketPath(id, world));
		}

		// Also without a VM: a daemon that died had perhaps come to the claim and no further.
		if (request !== undefined) {
			cluster.disclaim(claimedVm(id, request));
		}

		if (network !== undefined) {
			await networks.release(network, scope.signal);
		}

		if (reservingIn !== undefined) {
			await networks.abandon(id, reservingIn, scope.signal);
		}

		// Last: from here on nobody would look for what is left.
		await records.remove(id);
	};

	// A port that ignores its signal must not hold the mailbox for ever.
	await abortable(clearAll(), scope.signal);
}

/** The promise that a sandbox is removed, kept in the background from the first failure on. */
export class RemovalRetries {
	readonly #remove: () => Promise<void>;
	readonly #retryMs: SandboxWorld['removalRetryMs'];
	readonly #over = new AbortController();
	#underWay: Promise<void> | undefined;

	/** @param remove one attempt; that it succeeded is told by `end` */
	constructor(remove: () => Promise<void>, retryMs: SandboxWorld['removalRetryMs']) {
		this.#remove = remove;
		this.#retryMs = retryMs;
	}

	/** To be called as often as there is a reason. */
	begin(log: Logger): void {
		this.#underWay ??= this.#retry(log);
	}

	/** No attempt begins any more: the sandbox is gone, or the daemon stops. Resolves when none is under way; never rejects. */
	async end(): Promise<void> {
		this.#over.abort();
		await this.#underWay;
	}

	/** Never throws. */
	async #retry(log: Logger): Promise<void> {
		let attempt = 0;
		for (const delayMs of backOff(...this.#retryMs)) {
			try {
				await pause(delayMs, this.#over.signal);
			} catch {
				return;
			}

			attempt++;
			try {
				await this.#remove();
			} catch (error) {
				log[levelOfAttempt(attempt)]({err: error, attempt}, 'sandbox removal failed, it is tried again');
			}
		}
	}
}
