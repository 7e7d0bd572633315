/**
 * Generates the script of a round from a seed. Pure, so that a failed round can be repeated. Does not know processes
 * and sockets.
 */
import {libvirtCode} from '../../src/libvirt/wire/errors.ts';
import type {Cni} from '../network/testbed.ts';

/** In this order. In `created` and `running`, the daemon gets no requests. */
export const phases = ['create', 'created', 'start', 'running', 'stop'] as const;
export type Phase = (typeof phases)[number];

export type When = 'before' | 'during' | 'after';
/** A moment in a phase: its nth call of libvirt, counted from 1 over both pods; or a time. */
export type Moment = {readonly call: number; readonly when: When} | {readonly ms: number};

export const programs = ['ip', 'tc', 'nft'] as const;
/**
 * How a program fails: it reports an error without doing its work; it is killed after its work; it is killed before; it
 * completes late.
 */
export const programFailures = ['refuses', 'killed-after', 'killed-before', 'late'] as const;

export const losses = ['torn', 'removed'] as const;
export type Loss = (typeof losses)[number];

/** Other spellings of the path of the namespace of a pod. */
export const spellings = ['dots', 'slashes', 'symbolic link'] as const;
export type Spelling = (typeof spellings)[number];

/** How a daemon ends: by a crash; by a stop, as with `kubectl rollout undo`. */
export const endings = ['SIGKILL', 'SIGTERM'] as const;
export type Ending = (typeof endings)[number];

export type Fault = {readonly phase: Phase} &
	/** libvirt refuses `times` consecutive calls. */
	(
		| {readonly kind: 'refuse'; readonly call: number; readonly times: number; readonly code: number}
		/** The connection to libvirt ends, or stops transferring data. */
		| {readonly kind: 'drop' | 'freeze'; readonly call: number; readonly when: When}
		/** The KVM host is unreachable. */
		| {readonly kind: 'away'; readonly at: Moment; readonly forMs: number}
		/** The nth run of a program of the node fails. */
		| {
				readonly kind: 'program';
				readonly program: (typeof programs)[number];
				readonly run: number;
				readonly how: (typeof programFailures)[number];
		  }
		/**
		 * Faults of VMs during the whole phase: no space for the disk, no lease, a forwarder that never listens, an end
		 * during boot.
		 */
		| {readonly kind: 'disk-full' | 'no-address' | 'no-listen' | 'vm-ends'}
		/** The daemon is killed or stopped, and started again; or it is replaced, like in a rolling update. */
		| {readonly kind: 'kill' | 'terminate'; readonly at: Moment}
		/**
		 * The daemon is killed, and one of its files is truncated or removed before the next one starts: the record of
		 * the first pod (which is stopped anyway, or never stopped), or the keys that all running VMs trust.
		 */
		| {readonly kind: 'record-lost'; readonly at: Moment; readonly how: Loss; readonly then: 'stopped' | 'orphan'}
		| {readonly kind: 'identity-lost'; readonly at: Moment; readonly how: Loss}
		/** The KVM host is unreachable until all start calls are answered. */
		| {readonly kind: 'away-for-long'; readonly at: Moment}
		/** The shim of the first pod is killed during its call; or it requests a stop during its call. */
		| {readonly kind: 'hang-up' | 'stop'; readonly at: Moment}
		/** The namespace of the first pod is removed. */
		| {readonly kind: 'no-netns'; readonly at: Moment}
		/** The connections of the VMs are reset; or the VM of the first pod is destroyed. */
		| {readonly kind: 'agent-reset' | 'vm-dies'}
		/**
		 * The shim of the first pod is killed without a call of StopVM; the container runtime removes the namespace of
		 * the pod.
		 */
		| {readonly kind: 'shim-killed'; readonly at: Moment}
		/**
		 * The daemon is killed, and the first pod is removed before the next daemon starts, so its shim cannot call
		 * StopVM.
		 */
		| {readonly kind: 'pod-removed'; readonly at: Moment}
		/**
		 * A second daemon has taken over before the phase begins, and ends during it or at its end. The older daemon
		 * then runs alone.
		 */
		| {readonly kind: 'successor-goes'; readonly at: Moment; readonly by: Ending}
		/** A second daemon waits for a lock of the older one, which hangs in a libvirt call and is then killed. */
		| {readonly kind: 'lock-holder-killed'; readonly call: number; readonly when: When}
		/** A second sandbox is requested in the namespace of the first pod, with another spelling of its path. */
		| {readonly kind: 'alias'; readonly at: Moment; readonly spelling: Spelling}
		/**
		 * The daemon is killed. The next one starts with its clock 1.5 days in the past, and the one after that with
		 * the right time.
		 */
		| {readonly kind: 'clock-back'; readonly at: Moment}
		/** PODS_DIR is read-only until all calls are answered. */
		| {readonly kind: 'pods-dir-read-only'; readonly at: Moment}
		/** The storage pool is undefined for some time. */
		| {readonly kind: 'pool-undefined'; readonly at: Moment; readonly forMs: number}
	);

export interface Script {
	/** One or two. */
	readonly pods: readonly Cni[];
	readonly faults: readonly Fault[];
}

/** Like Math.random. */
export type Random = () => number;

/** Mulberry32 by Tommy Ettinger (public domain). */
export function randomFrom(seed: number): Random {
	let state = seed >>> 0;
	return () => {
		state = (state + 0x6d_2b_79_f5) >>> 0;
		let mixed = Math.imul(state ^ (state >>> 15), state | 1);
		mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
	};
}

export const faultKinds = [
	'refuse',
	'drop',
	'freeze',
	'away',
	'program',
	'disk-full',
	'no-address',
	'no-listen',
	'vm-ends',
	'kill',
	'terminate',
	'hang-up',
	'stop',
	'no-netns',
	'agent-reset',
	'vm-dies',
	'record-lost',
	'identity-lost',
	'away-for-long',
	'shim-killed',
	'pod-removed',
	'successor-goes',
	'lock-holder-killed',
	'alias',
	'clock-back',
	'pods-dir-read-only',
	'pool-undefined',
] as const satisfies ReadonlyArray<Fault['kind']>;
export type FaultKind = (typeof faultKinds)[number];

/** The phases for a kind of fault. */
const phasesOf: Readonly<Record<FaultKind, readonly Phase[]>> = {
	refuse: ['start', 'stop'],
	drop: ['start', 'stop'],
	freeze: ['start', 'stop'],
	away: ['created', 'start', 'running', 'stop'],
	program: ['create', 'start', 'stop'],
	'disk-full': ['start'],
	'no-address': ['start'],
	'no-listen': ['start'],
	'vm-ends': ['start'],
	kill: phases,
	terminate: phases,
	'hang-up': ['create', 'start', 'stop'],
	stop: ['create', 'start'],
	'no-netns': ['created', 'start', 'running', 'stop'],
	'agent-reset': ['running'],
	'vm-dies': ['running'],
	// Not during the stop: when the VM is gone, only the record shows what is left on the node.
	'record-lost': ['created', 'start', 'running'],
	'identity-lost': ['created', 'start', 'running'],
	'away-for-long': ['created', 'start'],
	'shim-killed': ['created', 'start', 'running', 'stop'],
	'pod-removed': ['create', 'created', 'start', 'running'],
	'successor-goes': ['create', 'created', 'start', 'running', 'stop'],
	'lock-holder-killed': ['start', 'stop'],
	alias: ['created', 'start', 'running'],
	'clock-back': ['created', 'start', 'running'],
	'pods-dir-read-only': ['create', 'start', 'stop'],
	'pool-undefined': ['start', 'stop'],
};

/** These faults last until a deadline. */
const rarer: ReadonlySet<FaultKind> = new Set(['no-address', 'no-listen', 'freeze', 'away-for-long']);

/**
 * The minimum number of calls in the start and stop of one pod, and some more for a second pod: most faults should
 * happen.
 */
const callsOf: Readonly<Record<Phase, number>> = {create: 0, created: 0, start: 18, running: 0, stop: 10};
const runsOf: Readonly<Record<(typeof programs)[number], number>> = {ip: 2, tc: 1, nft: 1};
const refusals = [
	libvirtCode.internalError,
	libvirtCode.operationFailed,
	libvirtCode.systemError,
	libvirtCode.operationInvalid,
	libvirtCode.operationTimeout,
	libvirtCode.accessDenied,
];

/** @param kind of the first fault. If absent: a random one, possibly a second one, or no fault at all */
export function randomScript(random: Random, kind?: FaultKind): Script {
	const upTo = (limit: number): number => Math.floor(random() * limit);
	const oneOf = <T>(values: readonly [T, ...T[]] | readonly T[]): T => values[upTo(values.length)] as T;
	const chance = (probability: number): boolean => random() < probability;
	const when = (): When => oneOf(['before', 'during', 'after']);
	const moment = (phase: Phase): Moment =>
		callsOf[phase] > 0 && chance(0.75)
			? {call: 1 + upTo(callsOf[phase]), when: when()}
			: {ms: upTo(phase === 'create' ? 40 : 200)};
	const fault = (of: FaultKind): Fault => {
		const phase = oneOf(phasesOf[of]);
		const call = 1 + upTo(callsOf[phase]);
		switch (of) {
			case 'refuse': {
				return {phase, kind: of, call, times: oneOf([1, 1, 2, 4]), code: oneOf(refusals)};
			}

			case 'drop':
			case 'freeze':
			case 'lock-holder-killed': {
				return {phase, kind: of, call, when: when()};
			}

			case 'away':
			case 'pool-undefined': {
				return {phase, kind: of, at: moment(phase), forMs: 100 + upTo(1400)};
			}

			case 'program': {
				const program = oneOf(programs);
				return {phase, kind: of, program, run: 1 + upTo(runsOf[program]), how: oneOf(programFailures)};
			}

			case 'kill':
			case 'terminate':
			case 'no-netns':
			case 'hang-up':
			case 'stop':
			case 'shim-killed':
			case 'pod-removed':
			case 'clock-back':
			case 'pods-dir-read-only': {
				return {phase, kind: of, at: moment(phase)};
			}

			case 'successor-goes': {
				return {phase, kind: of, at: moment(phase), by: oneOf(endings)};
			}

			case 'alias': {
				return {phase, kind: of, at: moment(phase), spelling: oneOf(spellings)};
			}

			case 'record-lost': {
				return {phase, kind: of, at: moment(phase), how: oneOf(losses), then: oneOf(['stopped', 'orphan'])};
			}

			case 'identity-lost': {
				return {phase, kind: of, at: moment(phase), how: oneOf(losses)};
			}

			case 'away-for-long': {
				return {phase, kind: of, at: phase === 'start' ? {call, when: when()} : moment(phase)};
			}

			case 'disk-full':
			case 'no-address':
			case 'no-listen':
			case 'vm-ends':
			case 'agent-reset':
			case 'vm-dies': {
				return {phase, kind: of};
			}
		}
	};

	const pods = chance(0.4) ? [oneOf(cnisOfPods), oneOf(cnisOfPods)] : [oneOf(cnisOfPods)];
	const any = (): FaultKind => {
		const chosen = oneOf(faultKinds);
		return rarer.has(chosen) && chance(0.5) ? oneOf(['kill', 'drop', 'refuse', 'program']) : chosen;
	};
	if (kind !== undefined) {
		return {pods, faults: [fault(kind)]};
	}

	return {pods, faults: Array.from({length: chance(0.05) ? 0 : chance(0.3) ? 2 : 1}, () => fault(any()))};
}

const cnisOfPods = ['bridge', 'calico', 'ptp'] as const;

/** A short description of the faults, in the order of their phases. */
export function describe({pods, faults}: Script): string {
	return `${pods.join('+')}: ${faults.map(fault => JSON.stringify(fault)).join(', ') || 'no fault'}`;
}
