/**
 * Events of pods, which `kubectl describe pod` shows. They are sent in the background and in order. A repeated event,
 * also with other numbers, increments the count. Events never delay other work: those over the limits, or that cannot
 * be sent in time, are dropped and logged. Uses core/v1 instead of events.k8s.io/v1: both are the same objects, but
 * core/v1 needs no action and no series, and existing roles allow it. Source: Kubernetes API reference, Event v1 core;
 * client-go, tools/record (names, counts, limits).
 */
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, pause, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {present} from '../core/present.ts';
import type {PodEvent, PodIdentity} from '../sandbox/ports.ts';
import type {KubernetesClient, NewObject} from './client.ts';
import {isAlreadyExists, isNotFound, KubernetesError, retryAfterOf} from './errors.ts';
import {EventLimits, type BucketSize} from './event-limits.ts';
import type {Kind} from './objects.ts';
import {pods} from './pods.ts';

export interface PodEventsOptions {
	readonly client: Pick<KubernetesClient, 'get' | 'create' | 'patch'>;
	/** This node's name. */
	readonly node: string;
	readonly perPod?: BucketSize;
	readonly inAll?: BucketSize;
	/** Time limit of one event, including retries. */
	readonly sendTimeoutMs?: number;
	/** How long disposing waits for unsent events. */
	readonly drainTimeoutMs?: number;
	readonly log: Logger;
}

interface Told {
	readonly pod: PodIdentity;
	readonly event: PodEvent;
	readonly at: Date;
}

/** An event that was stored by the API server. */
interface Sent {
	readonly name: string;
	count: number;
}

const component = 'cloud-api-adaptor';
/** Limit of the API server (core/v1 validation, NoteLengthLimit). */
const maxMessageBytes = 1024;
const maxWaiting = 500;
/** Number of events that are remembered for repeats; by default the API server deletes them after an hour. */
const maxRemembered = 1000;

const events: Kind<object> = {apiVersion: 'v1', kind: 'Event', plural: 'events', isNamespaced: true, read: () => ({})};

export class PodEvents implements AsyncDisposable {
	readonly #options: Required<Omit<PodEventsOptions, 'perPod' | 'inAll'>>;
	readonly #limits: EventLimits;
	readonly #waiting: Told[] = [];
	readonly #sent = new Map<string, Sent>();
	readonly #ending = new AbortController();
	readonly #refusal = new FailureLog();
	#sending: Promise<void> | undefined;
	#closed: Promise<void> | undefined;
	#dropped = 0;
	#made = 0;

	constructor({perPod, inAll, ...options}: PodEventsOptions) {
		this.#options = {sendTimeoutMs: 30_000, drainTimeoutMs: 3000, ...options};
		this.#limits = new EventLimits(performance.now(), perPod, inAll);
	}

	/** See `Cluster`. */
	tell(pod: PodIdentity, event: PodEvent): void {
		if (
			this.#closed !== undefined ||
			this.#waiting.length >= maxWaiting ||
			!this.#limits.allows(`${pod.namespace}/${pod.name}`, performance.now())
		) {
			this.#drop(pod, event, this.#closed === undefined ? 'too many' : 'stopping');
			return;
		}

		this.#waiting.push({pod, event: {...event, message: cut(event.message)}, at: new Date()});
		this.#sending ??= this.#sendAll();
	}

	/** Accepts no more events, sends the rest within the time limit, and drops what remains. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		using scope = new Scope().deadline(this.#options.drainTimeoutMs, 'events to be sent');
		await abortable(this.#sending ?? Promise.resolve(), scope.signal).catch(() => undefined);
		this.#ending.abort(new AdaptorError({code: 'cancelled', what: 'The daemon is stopping'}));
		await this.#sending;
		if (this.#waiting.length > 0) {
			this.#options.log.warn({count: this.#waiting.length, reason: 'stopping'}, 'events of pods dropped');
		}
	}

	/** Never throws. */
	async #sendAll(): Promise<void> {
		for (
			let next = this.#waiting.shift();
			next !== undefined;
			next = this.#ending.signal.aborted ? undefined : this.#waiting.shift()
		) {
			using scope = new Scope(this.#ending.signal).deadline(
				this.#options.sendTimeoutMs,
				'the Kubernetes API to take an event',
			);
			try {
				await this.#send(next, scope.signal);
				this.#refusal.recovered();
			} catch (thrown) {
				this.#failed(next, scope.signal.aborted ? toError(scope.signal.reason) : toError(thrown));
				await pause(retryAfterOf(thrown) ?? 0, this.#ending.signal).catch(() => undefined);
			}
		}

		this.#sending = undefined;
	}

	async #send(told: Told, signal: AbortSignal): Promise<void> {
		const {client} = this.#options;
		const {
			pod,
			event: {type, reason, message},
			at,
		} = told;
		const {namespace} = pod;
		// Also for a repeat: it may be another pod with the same name.
		const uid = pod.uid ?? (await this.#uidOf(pod, signal));
		const key = JSON.stringify([namespace, pod.name, uid, type, reason, withoutNumbers(message)]);
		const earlier = this.#sent.get(key);
		if (earlier !== undefined) {
			try {
				await client.patch(
					events,
					{namespace, name: earlier.name},
					{merge: {count: earlier.count + 1, lastTimestamp: timestamp(at), message}},
					signal,
				);
				earlier.count += 1;
				return;
			} catch (error) {
				if (!isNotFound(error)) {
					throw error;
				}
			}
		}

		const name = this.#eventName(pod.name, at);
		await this.#create(namespace, this.#object(told, name, uid), signal);
		this.#sent.delete(key);
		this.#sent.set(key, {name, count: 1});
		for (const oldest of this.#sent.keys()) {
			if (this.#sent.size <= maxRemembered) {
				break;
			}

			this.#sent.delete(oldest);
		}
	}

	/**
	 * `kubectl describe` shows only events with the uid of the pod. Events without a uid are still in `kubectl get
	 * events`.
	 */
	async #uidOf(pod: PodIdentity, signal: AbortSignal): Promise<string | undefined> {
		try {
			return (await this.#options.client.get(pods, pod, signal)).metadata.uid;
		} catch (error) {
			if (error instanceof KubernetesError && error.status !== undefined && error.status < 500) {
				return undefined;
			}

			throw error;
		}
	}

	/** Retried if it is unknown whether the event was stored: its unique name shows whether it was. */
	async #create(namespace: string, object: NewObject, signal: AbortSignal): Promise<void> {
		const {client} = this.#options;
		try {
			await client.create(events, namespace, object, signal);
		} catch (error) {
			signal.throwIfAborted();
			if (!(error instanceof KubernetesError && error.mayHaveBeenExecuted)) {
				throw error;
			}

			await client.create(events, namespace, object, signal).catch((again: unknown) => {
				if (!isAlreadyExists(again)) {
					throw again;
				}
			});
		}
	}

	#object({pod, event: {type, reason, message}, at}: Told, name: string, uid: string | undefined): NewObject {
		const {node} = this.#options;
		return {
			metadata: {name, namespace: pod.namespace},
			involvedObject: {
				apiVersion: 'v1',
				kind: 'Pod',
				namespace: pod.namespace,
				name: pod.name,
				...present({uid}),
			},
			type,
			reason,
			message,
			source: {component, host: node},
			reportingComponent: component,
			reportingInstance: node,
			firstTimestamp: timestamp(at),
			lastTimestamp: timestamp(at),
			count: 1,
		};
	}

	/**
	 * Unique, so that it shows whether a request without an answer was executed; in the form of client-go, with the
	 * time in nanoseconds.
	 */
	#eventName(podName: string, at: Date): string {
		this.#made = (this.#made + 1) % 1_000_000;
		return `${podName.slice(0, 230)}.${(BigInt(at.getTime()) * 1_000_000n + BigInt(this.#made)).toString(16)}`;
	}

	#failed({pod, event}: Told, error: Error): void {
		const isForbidden = error instanceof KubernetesError && error.status === 403;
		if (isForbidden && !this.#refusal.failed()) {
			this.#drop(pod, event, 'forbidden');
			return;
		}

		this.#options.log.warn(
			{pod: `${pod.namespace}/${pod.name}`, event: event.reason, err: error},
			isForbidden ? 'no permission to write events of pods' : 'could not write an event of a pod',
		);
	}

	/** Only the first of many is logged. */
	#drop(pod: PodIdentity, event: PodEvent, reason: string): void {
		this.#dropped += 1;
		const isFirst = this.#dropped === 1;
		this.#options.log[isFirst ? 'warn' : 'debug'](
			{pod: `${pod.namespace}/${pod.name}`, event: event.reason, reason, count: this.#dropped},
			'event of a pod dropped',
		);
	}
}

/** The message without numbers and ids, so that repetitions of the same problem are recognised. */
function withoutNumbers(message: string): string {
	return message.replaceAll(/[\da-f]+/gv, run => (/\d/v.test(run) ? '#' : run));
}

/** In seconds, like `metav1.Time`. */
function timestamp(at: Date): string {
	return at.toISOString().replace(/\.\d+Z$/v, 'Z');
}

/** Cut by bytes, between characters. */
function cut(message: string): string {
	if (Buffer.byteLength(message) <= maxMessageBytes) {
		return message;
	}

	let bytes = Buffer.byteLength('…');
	let kept = '';
	for (const character of message) {
		bytes += Buffer.byteLength(character);
		if (bytes > maxMessageBytes) {
			break;
		}

		kept += character;
	}

	return `${kept}…`;
}
