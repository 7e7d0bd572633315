/**
 * Writes events as log lines: the level, message and fields for each kind of event.
 */
import {codeOf} from '../core/errors.ts';
import {levelOfAttempt, type LogFields, type Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import type {RunningVm, SandboxNames} from '../sandbox/events.ts';
import type {AdaptorEvent, EventOf} from './event.ts';

type Line = readonly [level: 'debug' | 'info' | 'warn' | 'error', message: string, fields: LogFields];

/** Undefined for an event that needs no line, because another event logs the same fact. */
const lines: {readonly [Kind in AdaptorEvent['kind']]: (event: EventOf<Kind>) => Line | undefined} = {
	'sandbox-created': ({size, initdata, vni, netns}) => [
		'info',
		'sandbox created',
		{
			vcpus: size.vcpus,
			vcpusFrom: size.vcpusFrom,
			memoryMib: size.memoryMib,
			memoryFrom: size.memoryFrom,
			...present({initdata}),
			vni,
			netns,
		},
	],
	// For metrics.
	'sandbox-changed': () => undefined,
	'vm-started': ({vm, stagesMs}) => ['info', 'pod VM started', {...running(vm), timings: stagesMs}],
	// The failed call is logged with the error.
	'start-failed': ({stage, stageMs}) => ['info', 'start of the pod VM failed', {stage, durationMs: stageMs}],
	'start-slow': ({afterMs, stage, addresses, consoleLine}) => [
		'info',
		'the pod VM is still being started',
		{
			durationMs: afterMs,
			stage,
			...(addresses.length === 0
				? {}
				: {
						address: addresses.map(({address}) => address).join(', '),
						reason: addresses.map(({progress}) => progress).join(', '),
					}),
			...present({console: consoleLine}),
		},
	],
	'vm-ended': ({error, vmId}) => ['warn', 'pod VM ended by itself', {err: error, vmId}],
	'sandbox-rolled-back': ({error}) => ['warn', 'sandbox rolled back', {err: error}],
	'roll-back-failed': ({error}) => ['warn', 'could not roll back the sandbox; trying again', {err: error}],
	'sandbox-resumed': ({vm}) => ['info', 'sandbox resumed', running(vm)],
	'created-sandbox-resumed': ({vni}) => ['info', 'sandbox resumed, not started yet', {vni}],
	'resumption-failed': event => [
		levelOfAttempt(event.attempt),
		'could not resume the sandbox yet; trying again',
		failedAttempt(event),
	],
	'sandbox-handed-over': ({reason, vmId}) => ['info', 'sandbox handed over to the newer daemon', {reason, vmId}],
	'sandbox-superseded': ({by}) => [
		'warn',
		'stopping the older sandbox of a pod',
		{reason: `superseded by sandbox ${by}`},
	],
	'superseded-sandbox-not-removed': ({error}) => [
		'warn',
		'could not remove the older sandbox of a pod; trying again',
		{err: error},
	],
	'sandbox-removed': ({durationMs, wasKnown}) => [wasKnown ? 'info' : 'debug', 'sandbox removed', {durationMs}],
	'removal-failed': event => [
		levelOfAttempt(event.attempt),
		'could not remove the sandbox; trying again',
		failedAttempt(event),
	],
	'removal-not-recorded': ({error}) => [
		'warn',
		'could not record the removal; it will not resume after a restart',
		{err: error},
	],
	'relay-not-closed': ({error}) => ['warn', 'agent relay did not close', {err: error}],
	'vm-not-watched': ({error}) => [
		'error',
		'cannot watch whether the pod VM ends; the next reconcile round will detect it',
		{err: error},
	],
	'size-limited': ({limited}) => [
		'info',
		'pod VM is smaller than the pod asked for',
		{reason: limited.join(' and ')},
	],

	'reconcile-failed': ({error}) => [
		'error',
		'could not reconcile the sandboxes; retrying every minute',
		{err: error},
	],
	// For metrics.
	reconciled: () => undefined,
	decided: () => undefined,
	'vms-not-listed': ({error, isNews}) => [
		isNews ? 'error' : 'debug',
		'could not list the VMs of this node',
		{err: error},
	],
	'removal-decided': ({reason}) => ['warn', 'removing the sandbox', {reason}],
	'orphan-removal-decided': ({reason, createdAt}) => [
		'warn',
		'removing an orphaned pod VM',
		{reason: `${reason}; it was created at ${createdAt.toISOString()}`},
	],
	'orphan-not-removed': ({error}) => ['warn', 'could not remove an orphaned pod VM; trying again', {err: error}],
	'sandbox-left-alone': ({reason}) => ['warn', 'not changing a sandbox', {reason}],
	'vm-left-alone': ({reason, podsDir}) => ['warn', 'not changing a pod VM', {...present({path: podsDir}), reason}],
	'record-unreadable': ({error}) => [
		'error',
		'not changing a pod VM: cannot read the record of its sandbox',
		{err: error},
	],
	'decision-postponed': ({reason}) => ['debug', 'waiting to decide on the sandbox', {reason}],
	'decision-not-carried-out': ({error}) => ['warn', 'could not reconcile the sandbox; trying again', {err: error}],
	'predecessors-ended': () => ['info', 'all earlier daemons have ended', {}],
	'predecessor-record-unreadable': ({error}) => [
		'debug',
		'could not read a record that a predecessor may have changed',
		{err: error},
	],
	'shutdown-timed-out': ({error, count}) => [
		'warn',
		'shutdown timed out; the next daemon continues the clean-up',
		{err: error, count},
	],

	'call-answered': ({method, durationMs, sandboxId}) => [
		'debug',
		'call answered',
		{method, durationMs, ...present({sandboxId})},
	],
	'call-failed': ({method, durationMs, sandboxId, error}) => {
		const code = codeOf(error);
		return [
			code === 'internal' ? 'error' : 'warn',
			'call failed',
			{method, durationMs, ...present({sandboxId}), code, err: error},
		];
	},
	'caller-connected': ({protocol}) => ['debug', 'connection accepted', {protocol}],
	'caller-cut-off': ({error}) => [
		'warn',
		'the shim violated the protocol too often; connection closed',
		{err: error},
	],

	'forwarder-reached': ({address, durationMs}) => ['info', 'forwarder of the VM reached', {address, durationMs}],
	'address-refused': ({address, attempt, reason, remedy}) => [
		levelOfAttempt(attempt),
		'could not verify that the address belongs to the pod VM; trying again',
		{address, attempt, reason, remedy},
	],
	'address-progress': ({address, progress}) => [
		'debug',
		'address of the VM was dialled',
		{address, reason: progress},
	],
	'unused-connection-closed': ({error}) => [
		'warn',
		'the VM closed an unused connection; a new one is made when needed',
		error === undefined ? {} : {err: error},
	],
	'shim-connected': () => ['debug', 'shim connected', {}],
	'shim-disconnected': ({count, bytes, durationMs, isNews}) => [
		isNews ? 'info' : 'debug',
		'shim disconnected',
		{count, bytes, durationMs},
	],
	'agent-call': ({method, durationMs, code}) => ['debug', 'agent call', {method, durationMs, code}],
	// The calls themselves are logged when they end.
	'calls-replayed': () => undefined,
	'vm-lost': ({error, count, attempt}) => [
		levelOfAttempt(attempt),
		'connection to the VM lost; reconnecting',
		{err: error, count, attempt},
	],
	'late-answer': ({method, durationMs, code}) => [
		'info',
		'an answer arrived on a replaced connection to the VM',
		{method, durationMs, code},
	],
	'answers-lost': ({error, count}) => [
		'warn',
		'answers of the VM were lost; the calls that waited for them failed',
		{err: error, count},
	],
	'vm-back': ({count, durationMs, attempt}) => [
		levelOfAttempt(attempt) === 'warn' ? 'info' : 'debug',
		'connection to the VM restored',
		{count, durationMs},
	],
	'vm-unreachable': ({error, isNews}) => [
		isNews ? 'warn' : 'debug',
		'cannot reach the VM; still dialling',
		{err: error},
	],
	'vm-slow': ({durationMs}) => ['debug', 'the VM was slow; keeping its connection', {durationMs}],
	'vm-gone': ({error, count}) => ['debug', 'pod VM is gone; failing its calls', {err: error, count}],
	'protocol-violated': ({by, violation}) => [
		'warn',
		`the ${by} violated the protocol; frame dropped`,
		{reason: violation},
	],
	'shim-cut-off': ({error}) => ['warn', 'the shim violated the protocol too often; connection closed', {err: error}],

	'daemon-registered': ({path}) => ['info', 'daemon registered; calls go to it', {path}],
	'daemon-gone': ({path, hasOther}) =>
		hasOther
			? ['info', 'daemon ended; calls go to the earlier one', {path}]
			: ['info', 'daemon ended; calls wait for the next one', {path}],
	'call-waits': ({method}) => ['info', 'a call waits for a daemon', {method}],
	'call-waited': ({method, durationMs}) => ['info', 'a waiting call was passed to a daemon', {method, durationMs}],
	'call-repeated': ({method}) => ['info', 'the daemon ended during a call; repeating it', {method}],
	'call-lost': ({method, error}) => ['warn', 'a call got no answer from a daemon', {method, err: error}],

	'libvirt-connected': ({uri, connection, durationMs, server}) => [
		'info',
		'libvirt connected',
		{
			uri,
			connection,
			durationMs,
			host: server.hostname,
			libvirtVersion: server.libvirtVersion,
			transport: server.transport,
		},
	],
	'libvirt-connect-failed': event => [
		levelOfAttempt(event.attempt),
		'could not connect to libvirt',
		{...failedAttempt(event), uri: event.uri},
	],
	'libvirt-lost': ({error, uri, transport, connection}) => [
		'warn',
		'libvirt connection lost',
		{err: error, uri, transport, connection},
	],
	'libvirt-connection-replaced': ({uri, transport}) => [
		'warn',
		'silent libvirt connection replaced',
		{uri, transport},
	],
	'libvirt-replacement-failed': ({error, uri}) => [
		'debug',
		'libvirt connection is silent; could not open a new one',
		{err: error, uri},
	],
	// For metrics.
	'libvirt-call': () => undefined,
	'libvirt-call-repeated': ({error}) => ['debug', 'repeating a libvirt call', {err: error}],
	'libvirt-packet-ignored': ({serial, procedure}) => [
		'debug',
		'libvirt packet ignored',
		{reason: `serial ${serial}, procedure ${procedure}`},
	],
	'libvirt-listener-failed': ({error}) => ['warn', 'a listener of the libvirt session failed', {err: error}],

	// For metrics.
	'tunnels-guarded': () => undefined,
	'pool-observed': () => undefined,
	'pool-not-observed': () => undefined,
};

export function logObserver(log: Logger): Observer<AdaptorEvent> {
	return {
		notify(event) {
			// Each kind of event selects its own entry, which the compiler cannot verify. A relay process of a later
			// version may send kinds that are unknown here.
			const line = (lines[event.kind] as ((event: AdaptorEvent) => Line | undefined) | undefined)?.(event);
			if (line !== undefined) {
				const [level, message, fields] = line;
				log[level]({...names(event), ...fields}, message);
			}
		},
	};
}

function names(event: AdaptorEvent): LogFields {
	if (!('sandbox' in event)) {
		return {};
	}

	const {sandboxId, pod, instanceName}: SandboxNames = event.sandbox;
	return {
		sandboxId,
		...present({pod: pod && `${pod.namespace}/${pod.name}`}),
		...present({instanceName}),
		...('connection' in event ? {connection: event.connection} : {}),
	};
}

function running({vmId, address, mac, vni}: RunningVm): Pick<LogFields, 'vmId' | 'address' | 'mac' | 'vni'> {
	return {vmId, address, mac, vni};
}

function failedAttempt({
	error,
	attempt,
	retryInMs,
}: {
	readonly error: unknown;
	readonly attempt: number;
	readonly retryInMs?: number;
}): Pick<LogFields, 'err' | 'attempt' | 'retryInMs'> {
	return {err: error, attempt, ...present({retryInMs})};
}
