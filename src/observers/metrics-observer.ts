/**
 * Turns events into metrics. The names are an interface to dashboards and alerts: docs/metrics.md lists them, and a
 * test compares. Every label has a bound (metrics/registry.ts); no label is the name of a pod, a VM or an address.
 */
import {codeOf, type ErrorCode} from '../core/errors.ts';
import type {Observer} from '../core/observer.ts';
import {atMost, oneOf, type MetricRegistry} from '../metrics/registry.ts';
import type {AdaptorEvent, EventOf} from './event.ts';

type Handlers = {readonly [Kind in AdaptorEvent['kind']]?: (event: EventOf<Kind>) => void};

/** The compiler checks that all codes are here. */
const errorCodes: Readonly<Record<ErrorCode, true>> = {
	'invalid-argument': true,
	'not-found': true,
	'already-exists': true,
	'failed-precondition': true,
	'resource-exhausted': true,
	'permission-denied': true,
	unauthenticated: true,
	unavailable: true,
	'deadline-exceeded': true,
	cancelled: true,
	aborted: true,
	'data-loss': true,
	unimplemented: true,
	internal: true,
};
const reasons = Object.keys(errorCodes);

type State = EventOf<'sandbox-changed'>['to'];
/** Without `gone`, which is no state of a sandbox that is there. */
const states: Readonly<Record<Exclude<State, 'gone'>, true>> = {
	creating: true,
	recovering: true,
	created: true,
	starting: true,
	booting: true,
	running: true,
	failed: true,
	stopping: true,
};

const actions: Readonly<Record<EventOf<'decided'>['action'], true>> = {
	serve: true,
	resume: true,
	end: true,
	'roll back': true,
	remove: true,
	'let go': true,
	wait: true,
	'leave alone': true,
};

const apiMethods = ['CreateVM', 'StartVM', 'StopVM', 'Version', 'GetInfo'];

/** kata-containers, src/libs/protocols/protos/agent.proto and health.proto (3.x and 4.x). */
const agentMethods = [
	...[
		'CreateContainer',
		'StartContainer',
		'RemoveContainer',
		'ExecProcess',
		'SignalProcess',
		'WaitProcess',
		'UpdateContainer',
		'UpdateEphemeralMounts',
		'StatsContainer',
		'PauseContainer',
		'ResumeContainer',
		'RemoveStaleVirtiofsShareMounts',
		'WriteStdin',
		'ReadStdout',
		'ReadStderr',
		'CloseStdin',
		'TtyWinResize',
		'UpdateInterface',
		'UpdateRoutes',
		'ListInterfaces',
		'ListRoutes',
		'AddARPNeighbors',
		'GetIPTables',
		'SetIPTables',
		'GetMetrics',
		'CreateSandbox',
		'DestroySandbox',
		'OnlineCPUMem',
		'ReseedRandomDev',
		'GetGuestDetails',
		'MemHotplugByProbe',
		'SetGuestDateTime',
		'CopyFile',
		'GetOOMEvent',
		'AddSwap',
		'AddSwapPath',
		'GetVolumeStats',
		'ResizeVolume',
		'SetPolicy',
		'MemAgentMemcgSet',
		'MemAgentCompactSet',
		'GetDiagnosticData',
	].map(method => `grpc.AgentService/${method}`),
	'grpc.Health/Check',
	'grpc.Health/Version',
	'grpc.Image/PullImage',
	'grpc.ImageService/PullImage',
];

/** google/rpc/code.proto. */
const statusNames = [
	'OK',
	'CANCELLED',
	'UNKNOWN',
	'INVALID_ARGUMENT',
	'DEADLINE_EXCEEDED',
	'NOT_FOUND',
	'ALREADY_EXISTS',
	'PERMISSION_DENIED',
	'RESOURCE_EXHAUSTED',
	'FAILED_PRECONDITION',
	'ABORTED',
	'OUT_OF_RANGE',
	'UNIMPLEMENTED',
	'INTERNAL',
	'UNAVAILABLE',
	'DATA_LOSS',
	'UNAUTHENTICATED',
];

/** More than src/sandbox/bring-up.ts has. */
const mostStages = 16;
/** More than src/libvirt/wire/procedures.ts has. */
const mostProcedures = 80;

/** A start takes seconds with a fast guest, and START_TIMEOUT at most. */
const startBuckets = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320];
const callBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30];

/** The metrics of the daemon. `withRelays`: it serves the agent sockets itself. */
export function daemonMetrics(
	registry: MetricRegistry,
	{withRelays}: {readonly withRelays: boolean},
): Observer<AdaptorEvent> {
	return observerOf(
		sandboxHandlers(registry),
		reconcileHandlers(registry),
		apiHandlers(registry),
		libvirtHandlers(registry),
		hostHandlers(registry),
		withRelays ? relayHandlers(registry) : {},
	);
}

/** The metrics of the relay process. */
export function relayMetrics(registry: MetricRegistry): Observer<AdaptorEvent> {
	return observerOf(relayHandlers(registry), relayProcessHandlers(registry));
}

/** Each kind of event is in one of the tables at most. */
function observerOf(...tables: readonly Handlers[]): Observer<AdaptorEvent> {
	const handlers = Object.assign({}, ...tables) as Handlers;
	return {
		notify(event) {
			// Each kind of event selects its own entry, which the compiler cannot verify.
			(handlers[event.kind] as ((event: AdaptorEvent) => void) | undefined)?.(event);
		},
	};
}

function sandboxHandlers(registry: MetricRegistry): Handlers {
	const stage = atMost(mostStages);
	const starts = registry.counter('caa_vm_starts_total', 'Starts of pod VMs by result.', {
		result: oneOf(['started', 'failed']),
	});
	const failures = registry.counter('caa_vm_start_failures_total', 'Failed starts by stage and error code.', {
		stage,
		reason: oneOf(reasons),
	});
	const startSeconds = registry.histogram('caa_vm_start_seconds', 'Duration of successful starts.', startBuckets);
	const stageSeconds = registry.histogram(
		'caa_vm_start_stage_seconds',
		'Duration of the stages of successful starts.',
		startBuckets,
		{stage},
	);
	const ends = registry.counter('caa_vm_ends_total', 'Pod VMs that ended by themselves.');
	const limited = registry.counter('caa_vm_sizes_limited_total', 'Pod VMs that are smaller than requested.');
	const sandboxes = registry.gauge('caa_sandboxes', 'Sandboxes of this daemon by state.', {
		state: oneOf(Object.keys(states)),
	});
	const stops = registry.counter('caa_sandbox_removals_total', 'Sandboxes that were removed completely.');
	const stopSeconds = registry.histogram('caa_sandbox_removal_seconds', 'Duration of removals.', startBuckets);
	const stopFailures = registry.counter(
		'caa_sandbox_removal_failures_total',
		'Failed attempts to remove a sandbox, or to roll back a start, by error code.',
		{reason: oneOf(reasons)},
	);
	const resumptions = registry.counter('caa_sandbox_resumptions_total', 'Sandboxes of an earlier run, by result.', {
		result: oneOf(['resumed', 'failed']),
	});
	const pending = new Set<string>();
	registry.reading('caa_pending_deletions', 'Sandboxes whose removal has failed and is retried.', () => pending.size);
	const removalFailed = (sandboxId: string, error: unknown): void => {
		pending.add(sandboxId);
		stopFailures.add({reason: codeOf(error)});
	};
	return {
		'sandbox-changed'({sandbox, from, to}) {
			if (from !== undefined && from !== 'gone') {
				sandboxes.add({state: from}, -1);
			}

			if (to === 'gone') {
				pending.delete(sandbox.sandboxId);
			} else {
				sandboxes.add({state: to}, 1);
			}
		},
		'vm-started'({stagesMs}) {
			starts.add({result: 'started'});
			for (const [name, ms] of Object.entries(stagesMs)) {
				stageSeconds.observe({stage: name}, ms / 1000);
			}

			startSeconds.observe({}, Object.values(stagesMs).reduce((sum, ms) => sum + ms, 0) / 1000);
		},
		'start-failed'({error, stage: name}) {
			starts.add({result: 'failed'});
			failures.add({stage: name, reason: error.code});
		},
		'size-limited': () => limited.add({}),
		'vm-ended': () => ends.add({}),
		'sandbox-removed'({durationMs, wasKnown}) {
			// Otherwise only a call named the id.
			if (wasKnown) {
				stops.add({});
				stopSeconds.observe({}, durationMs / 1000);
			}
		},
		'removal-failed': ({sandbox, error}) => removalFailed(sandbox.sandboxId, error),
		'roll-back-failed': ({sandbox, error}) => removalFailed(sandbox.sandboxId, error),
		'sandbox-resumed': () => resumptions.add({result: 'resumed'}),
		'created-sandbox-resumed': () => resumptions.add({result: 'resumed'}),
		'resumption-failed': () => resumptions.add({result: 'failed'}),
	};
}

function reconcileHandlers(registry: MetricRegistry): Handlers {
	const decisions = registry.counter(
		'caa_reconcile_decisions_total',
		'Decisions of the reconcile loop by action, one in each round for each sandbox or VM.',
		{action: oneOf(Object.keys(actions))},
	);
	const roundSeconds = registry.histogram('caa_reconcile_seconds', 'Duration of reconcile rounds.', callBuckets);
	const failures = registry.counter('caa_reconcile_failures_total', 'Failures of the reconcile loop by part.', {
		part: oneOf(['round', 'list of VMs', 'action']),
	});
	let orphans: number | undefined;
	registry.reading('caa_orphan_vms', 'VMs of this node without a sandbox, in the last round.', () => orphans);
	const removals = registry.counter('caa_orphan_removals_total', 'Removals of VMs without a sandbox, by result.', {
		result: oneOf(['decided', 'failed']),
	});
	return {
		decided: ({action}) => decisions.add({action}),
		reconciled(round) {
			roundSeconds.observe({}, round.durationMs / 1000);
			({orphans} = round);
		},
		'reconcile-failed': () => failures.add({part: 'round'}),
		'vms-not-listed': () => failures.add({part: 'list of VMs'}),
		'decision-not-carried-out': () => failures.add({part: 'action'}),
		'orphan-removal-decided': () => removals.add({result: 'decided'}),
		'orphan-not-removed': () => removals.add({result: 'failed'}),
	};
}

function apiHandlers(registry: MetricRegistry): Handlers {
	const method = oneOf(apiMethods);
	const calls = registry.counter('caa_api_calls_total', 'Calls of the hypervisor API by method and result.', {
		method,
		code: oneOf(['ok', ...reasons]),
	});
	const seconds = registry.histogram('caa_api_call_seconds', 'Duration of these calls.', startBuckets, {method});
	const answered = (name: string, durationMs: number, code: string): void => {
		calls.add({method: name, code});
		seconds.observe({method: name}, durationMs / 1000);
	};
	return {
		'call-answered': ({method: name, durationMs}) => answered(name, durationMs, 'ok'),
		'call-failed': ({method: name, durationMs, error}) => answered(name, durationMs, codeOf(error)),
	};
}

function libvirtHandlers(registry: MetricRegistry): Handlers {
	const procedure = atMost(mostProcedures);
	const seconds = registry.histogram(
		'caa_libvirt_call_seconds',
		'Duration of libvirt calls with their waits and repetitions, by procedure.',
		callBuckets,
		{procedure},
	);
	const failures = registry.counter(
		'caa_libvirt_call_failures_total',
		'Failed libvirt calls by procedure and error code. Some are expected, such as not-found.',
		{procedure, reason: oneOf(reasons)},
	);
	const repetitions = registry.counter(
		'caa_libvirt_call_repetitions_total',
		'Calls that were sent again because their answer was lost.',
	);
	const connections = registry.counter('caa_libvirt_connections_total', 'Connections to libvirt that were opened.');
	const losses = registry.counter('caa_libvirt_losses_total', 'Connections to libvirt that were lost or replaced.');
	const connectFailures = registry.counter(
		'caa_libvirt_connect_failures_total',
		'Failed attempts to connect to libvirt, by error code.',
		{reason: oneOf(reasons)},
	);
	const connected = registry.gauge('caa_libvirt_connected', '1 while libvirt is connected, otherwise 0.');
	return {
		'libvirt-call'({procedure: name, durationMs, error}) {
			seconds.observe({procedure: name}, durationMs / 1000);
			if (error !== undefined) {
				failures.add({procedure: name, reason: codeOf(error)});
			}
		},
		'libvirt-call-repeated': () => repetitions.add({}),
		'libvirt-connected'() {
			connections.add({});
			connected.set({}, 1);
		},
		'libvirt-lost'() {
			losses.add({});
			connected.set({}, 0);
		},
		'libvirt-connection-replaced': () => losses.add({}),
		'libvirt-connect-failed': ({error}) => connectFailures.add({reason: codeOf(error)}),
	};
}

function hostHandlers(registry: MetricRegistry): Handlers {
	const dropped = registry.counter(
		'caa_tunnel_packets_dropped_total',
		'VXLAN packets that were dropped because they were not from the VM of the tunnel.',
	);
	let droppedBefore: number | undefined;
	let pool: EventOf<'pool-observed'> | undefined;
	registry.reading(
		'caa_pool_capacity_bytes',
		'Size of the storage pool; absent while it is not known.',
		() => pool && Number(pool.capacityBytes),
	);
	registry.reading(
		'caa_pool_available_bytes',
		'Free space in the storage pool; absent while it is not known.',
		() => pool && Number(pool.availableBytes),
	);
	return {
		'tunnels-guarded'(event) {
			// The kernel counts across restarts of the daemon, and begins again with a new table.
			const before = droppedBefore ?? event.dropped;
			dropped.add({}, event.dropped < before ? event.dropped : event.dropped - before);
			droppedBefore = event.dropped;
		},
		'pool-observed'(event) {
			pool = event;
		},
		'pool-not-observed'() {
			pool = undefined;
		},
	};
}

function relayHandlers(registry: MetricRegistry): Handlers {
	const method = oneOf(agentMethods);
	const calls = registry.counter('caa_relay_calls_total', 'Calls to kata agents by method and status.', {
		method,
		code: oneOf(statusNames),
	});
	const seconds = registry.histogram('caa_relay_call_seconds', 'Duration of these calls.', callBuckets, {method});
	const bytes = registry.counter('caa_relay_bytes_total', 'Bytes of these calls, added when a call ends.', {
		method,
		direction: oneOf(['request', 'response']),
	});
	const replays = registry.counter('caa_relay_replays_total', 'Calls that were sent again on a new connection.');
	const shims = registry.gauge('caa_relay_shims', 'Open connections of kata shims.');
	const connects = registry.histogram(
		'caa_relay_forwarder_seconds',
		'Time until the forwarder of a VM was reached, when its relay was opened.',
		startBuckets,
	);
	const refusals = registry.counter('caa_relay_refusals_total', 'Addresses that did not prove to be the pod VM.');
	const losses = registry.counter('caa_relay_losses_total', 'Connections to pod VMs that were lost or silent.');
	const reconnects = registry.counter('caa_relay_reconnects_total', 'Connections to pod VMs that were restored.');
	const unreachable = registry.counter('caa_relay_unreachable_total', 'Reports of a VM that cannot be reached.');
	const failed = registry.counter('caa_relay_failed_calls_total', 'Calls that failed with their connection or VM.', {
		cause: oneOf(['connection lost', 'answer lost', 'VM gone']),
	});
	const late = registry.counter('caa_relay_late_answers_total', 'Answers on a replaced connection that counted.');
	const violations = registry.counter('caa_relay_violations_total', 'Kinds of protocol violations, by sender.', {
		by: oneOf(['shim', 'VM']),
	});
	return {
		'agent-call'({method: name, durationMs, code, requestBytes, responseBytes}) {
			calls.add({method: name, code});
			seconds.observe({method: name}, durationMs / 1000);
			bytes.add({method: name, direction: 'request'}, requestBytes);
			bytes.add({method: name, direction: 'response'}, responseBytes);
		},
		'calls-replayed': ({count}) => replays.add({}, count),
		'shim-connected': () => shims.add({}, 1),
		'shim-disconnected': () => shims.add({}, -1),
		'forwarder-reached': ({durationMs}) => connects.observe({}, durationMs / 1000),
		'address-refused': () => refusals.add({}),
		'vm-lost'({count}) {
			losses.add({});
			failed.add({cause: 'connection lost'}, count);
		},
		'vm-back': () => reconnects.add({}),
		'vm-unreachable': () => unreachable.add({}),
		'answers-lost': ({count}) => failed.add({cause: 'answer lost'}, count),
		'vm-gone': ({count}) => failed.add({cause: 'VM gone'}, count),
		'late-answer': () => late.add({}),
		'protocol-violated': ({by}) => violations.add({by}),
	};
}

function relayProcessHandlers(registry: MetricRegistry): Handlers {
	const calls = registry.counter(
		'caa_relay_process_calls_total',
		'Calls of the hypervisor API that met no daemon, or lost it, by what happened.',
		{event: oneOf(['waits', 'waited', 'repeated', 'lost'])},
	);
	const daemons = registry.counter('caa_relay_process_daemons_total', 'Daemons that registered or ended.', {
		event: oneOf(['registered', 'gone']),
	});
	return {
		'call-waits': () => calls.add({event: 'waits'}),
		'call-waited': () => calls.add({event: 'waited'}),
		'call-repeated': () => calls.add({event: 'repeated'}),
		'call-lost': () => calls.add({event: 'lost'}),
		'daemon-registered': () => daemons.add({event: 'registered'}),
		'daemon-gone': () => daemons.add({event: 'gone'}),
	};
}
