/**
 * How a sandbox is removed: once, in an order that matters, past every part that fails; and again, until nothing is
 * left. Knows no states: the caller says what there may be to remove.
 */
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {abortable, pause, Scope} from '../core/lifetime.ts';
import type {Leftovers} from './admission.ts';
import type {SandboxContext} from './context.ts';
import {agentSocketPath, registeredVm} from './identities.ts';
import type {PodRequest} from './pod-request.ts';
import type {SandboxId} from './ports.ts';

/** What remains of a sandbox whose VM and network are gone: files of it in PODS_DIR, and why. */
export type FilesLeft = AdaptorError | undefined;

/**
 * One attempt. The VM goes before its VNI is given back, so that it is not another pod's while the VM may still send. A
 * VM that cannot be removed keeps nothing else from being removed: the pod is cut off from it, and its VNI stays
 * reserved. The record goes last, and only when the VM and the network are gone: without it nobody would try again.
 * Each part has a time budget of its own, so that one that hangs costs the others nothing.
 * @param request of a sandbox that was created: the cluster may know its VM
 * @returns what is left in PODS_DIR, which nobody but this node notices
 * @throws AdaptorError naming the parts that are left
 */
export async function clear(
	id: SandboxId,
	{network, reservingIn, mayHaveVm, relay}: Leftovers,
	request: PodRequest | undefined,
	context: SandboxContext,
): Promise<FilesLeft> {
	const {podVms, networks, relays, cluster, records, cleanupTimeoutMs} = context;
	const left = new Map<string, unknown>();
	const filesLeft = new Map<string, unknown>();
	const remove = async (
		part: string,
		work: (signal: AbortSignal) => Promise<unknown>,
		failures = left,
	): Promise<void> => {
		using scope = new Scope().deadline(cleanupTimeoutMs, `${part} to be removed`);
		try {
			// A port that ignores its signal must not hold the sandbox for ever.
			await abortable(work(scope.signal), scope.signal);
		} catch (error) {
			failures.set(part, error);
		}
	};

	await remove('the agent socket', async () => relay?.[Symbol.asyncDispose](), filesLeft);
	if (mayHaveVm) {
		await remove('the VM', async signal => {
			if (network === undefined) {
				// No record says what the VM's network was. The VM does, as long as it is there.
				const vms = (await podVms.list(signal)).filter(({sandboxId}) => sandboxId === id);
				await Promise.all(vms.map(async ({vni}) => networks.releaseByVni(vni, signal)));
			}

			await podVms.delete(id, signal);
		});
		await remove('the agent socket', async () => relays.discard(agentSocketPath(id, context)), filesLeft);
	}

	// Also without a VM: a daemon that died had perhaps come to the registration and no further.
	if (request !== undefined && left.size === 0) {
		cluster.unregisterVm(registeredVm(id, request));
	}

	await remove('the tunnel', async signal => {
		if (network !== undefined) {
			await (left.has('the VM') ? networks.detach(network, signal) : networks.release(network, signal));
		}

		if (reservingIn !== undefined) {
			await networks.releaseByNetns(id, reservingIn, signal);
		}
	});
	if (left.size > 0) {
		throw leftError(id, 'Could not remove the whole sandbox', left);
	}

	await remove('the record', async () => records.remove(id), filesLeft);
	return filesLeft.size === 0
		? undefined
		: leftError(id, "Could not remove the sandbox's files in PODS_DIR", filesLeft);
}

/** One failure speaks for itself; of several the first one's code counts, and all are causes. */
function leftError(id: SandboxId, what: string, left: ReadonlyMap<string, unknown>): AdaptorError {
	const [first, ...others] = left.values();
	if (first instanceof AdaptorError && others.length === 0) {
		return first;
	}

	const reasons = Array.from(
		left,
		([part, error]) => `${part}: ${error instanceof AdaptorError ? error.what : toError(error).message}`,
	);
	return new AdaptorError({
		code: codeOf(first),
		what: `${what}; left are ${reasons.join('; ')}`,
		where: {sandboxId: id},
		remedy:
			first instanceof AdaptorError && first.remedy !== undefined
				? first.remedy
				: 'It is tried again until nothing is left.',
		cause: others.length === 0 ? first : new AggregateError(left.values(), what),
	});
}

/** The promise that a sandbox is removed, kept in the background from the first failure on. */
export class RemovalRetries {
	readonly #remove: () => Promise<void>;
	readonly #retryMs: SandboxContext['removalRetryMs'];
	readonly #onFailure: (failed: {
		readonly error: unknown;
		readonly attempt: number;
		readonly retryInMs: number;
	}) => void;
	readonly #over = new AbortController();
	#underWay: Promise<void> | undefined;

	/** @param remove one attempt, which rejects while something is left; it succeeded for good once `end` is called */
	constructor(
		remove: () => Promise<void>,
		retryMs: SandboxContext['removalRetryMs'],
		onFailure: (failed: {readonly error: unknown; readonly attempt: number; readonly retryInMs: number}) => void,
	) {
		this.#remove = remove;
		this.#retryMs = retryMs;
		this.#onFailure = onFailure;
	}

	/** To be called as often as there is a reason. */
	begin(): void {
		this.#underWay ??= this.#retry();
	}

	/**
	 * No attempt begins any more: the sandbox is gone, or the daemon stops. Resolves when none is under way; never
	 * rejects.
	 */
	async end(): Promise<void> {
		this.#over.abort();
		await this.#underWay;
	}

	/** Never throws. */
	async #retry(): Promise<void> {
		const {signal} = this.#over;
		try {
			await pause(this.#retryMs[0], signal);
			await retry(
				this.#remove,
				{
					backOff: this.#retryMs,
					onFailure: (error, {attempt, retryInMs}) => this.#onFailure({error, attempt, retryInMs}),
				},
				signal,
			);
		} catch {
			// It is gone meanwhile, or the daemon stops.
		}

		this.#underWay = undefined;
	}
}
