/**
 * Removes a sandbox. One attempt removes the parts in a fixed order and continues past failures; attempts are retried
 * until nothing is left. Knows no states: the caller names the leftovers.
 */
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {abortable, pause, Scope} from '../core/lifetime.ts';
import type {Leftovers} from './admission.ts';
import type {SandboxContext} from './context.ts';
import {agentSocketPath, registeredVm} from './identities.ts';
import type {PodRequest} from './pod-request.ts';
import type {SandboxId} from './ports.ts';

/** The reason why files of a sandbox are left in PODS_DIR although its VM and network are gone. */
export type FilesLeft = AdaptorError | undefined;

/**
 * One attempt. The VM is removed before its VNI is released, so that no other pod gets the VNI while the VM may still
 * send. If the VM cannot be removed, the other parts are removed: the pod is disconnected from the VM, but the VNI
 * stays reserved. The record is removed last, and only if VM and network are gone: without it, there would be no retry.
 * Each part has its own time limit, so that one that hangs does not delay the others.
 * @param request set if the sandbox was created: the cluster may know its VM
 * @returns why files are left in PODS_DIR, which only matter to this node
 * @throws AdaptorError that names the parts that are left
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
			// A port that ignores its signal must not block the sandbox forever.
			await abortable(work(scope.signal), scope.signal);
		} catch (error) {
			failures.set(part, error);
		}
	};

	await remove('the agent socket', async () => relay?.[Symbol.asyncDispose](), filesLeft);
	if (mayHaveVm) {
		await remove('the VM', async signal => {
			if (network === undefined) {
				// No record has the network of the VM, but the metadata of the VM has its VNI.
				const vms = (await podVms.list(signal)).filter(({sandboxId}) => sandboxId === id);
				await Promise.all(vms.map(async ({vni}) => networks.releaseByVni(vni, signal)));
			}

			await podVms.delete(id, signal);
		});
		await remove('the agent socket', async () => relays.discard(agentSocketPath(id, context)), filesLeft);
	}

	// Unregister even if there is no VM: the daemon may have crashed right after the registration.
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
		: leftError(id, 'Could not remove the files of the sandbox in PODS_DIR', filesLeft);
}

/** The error has the code of the first failure, and all failures as causes. */
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
		what: `${what}; leftovers: ${reasons.join('; ')}`,
		where: {sandboxId: id},
		remedy:
			first instanceof AdaptorError && first.remedy !== undefined
				? first.remedy
				: 'The removal is retried until nothing is left.',
		cause: others.length === 0 ? first : new AggregateError(left.values(), what),
	});
}

/** Retries a failed removal in the background until it succeeds. */
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

	/** @param remove one attempt, which rejects while something is left; it must call `end` when nothing is left */
	constructor(
		remove: () => Promise<void>,
		retryMs: SandboxContext['removalRetryMs'],
		onFailure: (failed: {readonly error: unknown; readonly attempt: number; readonly retryInMs: number}) => void,
	) {
		this.#remove = remove;
		this.#retryMs = retryMs;
		this.#onFailure = onFailure;
	}

	get isUnderWay(): boolean {
		return this.#underWay !== undefined && !this.#over.signal.aborted;
	}

	/** Idempotent. */
	begin(): void {
		this.#underWay ??= this.#retry();
	}

	/**
	 * Starts no further attempt: the sandbox is gone, or the daemon stops. Resolves when no attempt runs; never
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
			// The sandbox is gone, or the daemon stops.
		}

		this.#underWay = undefined;
	}
}
