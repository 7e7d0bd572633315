/**
 * Leader election: one of several processes works at a time, the holder of a Lease. Compatible with the leader election
 * of client-go (tools/leaderelection). Clocks of machines are never compared: a lease has expired if the local clock
 * shows no renewal for its duration.
 */
import {toError} from '../core/errors.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {KubernetesClient} from './client.ts';
import {isAlreadyExists, isConflict, isNotFound, retryAfterOf} from './errors.ts';
import {numberAt, textAt} from '../core/json.ts';
import type {ApiObject, Kind, ObjectName} from './objects.ts';

interface Lease {
	/** Empty or absent: nobody holds the lease. */
	readonly holder: string | undefined;
	readonly durationSeconds: number | undefined;
	readonly transitions: number;
}

const leases: Kind<Lease> = {
	apiVersion: 'coordination.k8s.io/v1',
	kind: 'Lease',
	plural: 'leases',
	isNamespaced: true,
	read: raw => ({
		holder: textAt(raw, 'spec', 'holderIdentity'),
		durationSeconds: numberAt(raw, 'spec', 'leaseDurationSeconds'),
		transitions: numberAt(raw, 'spec', 'leaseTransitions') ?? 0,
	}),
};

export interface LeaderOptions {
	readonly client: KubernetesClient;
	readonly lease: ObjectName & {readonly namespace: string};
	/** Identity of this process, different from all others. */
	readonly identity: string;
	/** Whole seconds. */
	readonly leaseDurationMs?: number;
	/**
	 * A leader that could not renew its lease for this time stops its work. Must be shorter than the lease duration.
	 */
	readonly renewDeadlineMs?: number;
	/** Pause between attempts. A candidate without the lease waits longer after failures. */
	readonly retryMs?: number;
	/** A monotonic clock. */
	readonly now?: () => number;
	readonly log: Logger;
}

/** Time limit at shutdown. Without a release, the lease expires by itself. */
const releaseTimeoutMs = 3000;
/** A candidate without the lease has no reason to hurry while the API server refuses it. */
const longestRetryMs = 30_000;

/**
 * Runs `work` whenever this process is the leader, until the signal aborts; then releases the lease. When the lease is
 * lost, the signal of `work` aborts before another process can get the lease.
 * @param work must resolve soon after its signal aborts; an error of `work` ends the leader election
 */
export async function whileLeading(
	options: LeaderOptions,
	work: (signal: AbortSignal) => Promise<void>,
	signal: AbortSignal,
): Promise<void> {
	const candidate = new Candidate(options);
	const isOver = (): boolean => signal.aborted;
	while (!isOver()) {
		if (await candidate.tryToLead(signal)) {
			options.log.info({path: leaseName(options)}, 'became the leader');
			await candidate.lead(work, signal);
			options.log.info({path: leaseName(options)}, 'no longer the leader');
		} else {
			await pause(candidate.pauseMs, signal).catch(() => undefined);
		}
	}
}

class Candidate {
	readonly #options: Required<LeaderOptions>;
	/** The lease when it last changed, and when that was seen. */
	#seen: {readonly resourceVersion: string; readonly at: number} | undefined;
	/** The lease as last read. */
	#isAnothers = false;
	readonly #failures = new FailureLog();
	#pauses: ReturnType<typeof backOff>;
	/** The pause after the last failed attempt. */
	#failurePauseMs: number | undefined;

	constructor(options: LeaderOptions) {
		this.#options = {
			leaseDurationMs: 15_000,
			renewDeadlineMs: 10_000,
			retryMs: 2000,
			now: () => performance.now(),
			...options,
		};
		this.#pauses = this.#newPauses();
	}

	/** The pause before the next attempt. */
	get pauseMs(): number {
		return this.#failurePauseMs ?? this.#retryMs;
	}

	/** Random, so that candidates do not ask at the same time. */
	get #retryMs(): number {
		return backOff(this.#options.retryMs, this.#options.retryMs).next().value;
	}

	/** Acquires the lease if it is free, ours or expired. Never throws. */
	async tryToLead(signal: AbortSignal): Promise<boolean> {
		try {
			const isTaken = await this.#take(signal);
			this.#failures.recovered();
			this.#failurePauseMs = undefined;
			this.#pauses = this.#newPauses();
			return isTaken;
		} catch (error) {
			if (!signal.aborted && !isConflict(error) && !isAlreadyExists(error)) {
				this.#failurePauseMs = Math.max(this.#pauses.next().value, retryAfterOf(error) ?? 0);
				this.#options.log[this.#failures.failed() ? 'warn' : 'debug'](
					{path: leaseName(this.#options), err: error},
					'could not get the lease; retrying',
				);
			}

			return false;
		}
	}

	#newPauses(): ReturnType<typeof backOff> {
		const {retryMs} = this.#options;
		return backOff(retryMs, Math.max(retryMs, longestRetryMs));
	}

	async lead(work: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
		using leading = new Scope(signal);
		const working = work(leading.signal).finally(() => leading.abort(new Error('the work has ended')));
		try {
			await Promise.all([working, this.#renew(leading)]);
		} catch (error) {
			if (!signal.aborted && error !== leading.signal.reason) {
				throw error;
			}
		} finally {
			await working.catch(() => undefined);
			await this.#release();
		}
	}

	/** Renews until the scope ends; ends the scope when another process may get the lease. */
	async #renew(leading: Scope): Promise<void> {
		const {renewDeadlineMs, now, log} = this.#options;
		const isOver = (): boolean => leading.signal.aborted;
		let renewedAt = now();
		while (!isOver()) {
			// The leader renews at a fixed interval, because its time is limited; requests observe Retry-After
			// themselves.
			await pause(this.#retryMs, leading.signal).catch(() => undefined);
			const startedAt = now();
			using limit = new Scope(leading.signal).deadline(
				Math.max(0, renewedAt + renewDeadlineMs - startedAt),
				'the lease to be renewed',
			);
			if (await this.tryToLead(limit.signal)) {
				renewedAt = startedAt;
			} else if (
				!isOver() &&
				(limit.signal.aborted || now() - renewedAt >= renewDeadlineMs || this.#isAnothers)
			) {
				log.warn({path: leaseName(this.#options)}, 'lease lost; stopping the work');
				leading.abort(new Error('the lease is lost'));
			}
		}
	}

	async #take(signal: AbortSignal): Promise<boolean> {
		const {client, lease, identity, leaseDurationMs, now} = this.#options;
		const renewTime = microTime(new Date());
		const own = {holderIdentity: identity, leaseDurationSeconds: Math.ceil(leaseDurationMs / 1000), renewTime};
		const found = await this.#find(signal);
		if (found === undefined) {
			await client.create(
				leases,
				lease.namespace,
				{metadata: {name: lease.name}, spec: {...own, acquireTime: renewTime, leaseTransitions: 0}},
				signal,
			);
			return true;
		}

		const {
			metadata: {resourceVersion},
			holder,
			durationSeconds,
			transitions,
		} = found;
		if (this.#seen?.resourceVersion !== resourceVersion) {
			this.#seen = {resourceVersion, at: now()};
		}

		const isFree = holder === undefined || holder === '';
		this.#isAnothers = !isFree && holder !== identity;
		if (this.#isAnothers && now() - this.#seen.at < (durationSeconds ?? own.leaseDurationSeconds) * 1000) {
			return false;
		}

		const spec = holder === identity ? own : {...own, acquireTime: renewTime, leaseTransitions: transitions + 1};
		await client.patch(leases, lease, {merge: {metadata: {resourceVersion}, spec}}, signal);
		this.#isAnothers = false;
		return true;
	}

	async #find(signal: AbortSignal): Promise<ApiObject<Lease> | undefined> {
		try {
			return await this.#options.client.get(leases, this.#options.lease, signal);
		} catch (error) {
			if (isNotFound(error)) {
				return undefined;
			}

			throw error;
		}
	}

	/** Releases the lease, so that the next leader need not wait for it to expire. Never throws. */
	async #release(): Promise<void> {
		const {client, lease, identity, log} = this.#options;
		using limit = new Scope().deadline(releaseTimeoutMs, 'the Kubernetes API');
		try {
			const found = await this.#find(limit.signal);
			if (found?.holder === identity) {
				const spec = {holderIdentity: '', leaseDurationSeconds: 1, renewTime: microTime(new Date())};
				await client.patch(
					leases,
					lease,
					{merge: {metadata: {resourceVersion: found.metadata.resourceVersion}, spec}},
					limit.signal,
				);
			}
		} catch (error) {
			log.debug({reason: toError(error).message}, 'could not release the lease; it will expire');
		}
	}
}

function leaseName({lease}: Pick<LeaderOptions, 'lease'>): string {
	return `${lease.namespace}/${lease.name}`;
}

/** Kubernetes, MicroTime: RFC 3339 with six decimals. */
function microTime(date: Date): string {
	return date.toISOString().replace('Z', '000Z');
}
