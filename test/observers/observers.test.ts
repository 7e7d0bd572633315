import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {allOf, type Observer} from '../../src/core/observer.ts';
import type {AdaptorEvent} from '../../src/observers/event.ts';
import {logObserver} from '../../src/observers/log-observer.ts';
import {podEventObserver} from '../../src/observers/pod-events.ts';
import type {PodEvent, PodIdentity} from '../../src/sandbox/ports.ts';
import {recordingLog} from '../support/recording-log.ts';

const pod = {name: 'web', namespace: 'shop', uid: 'u-1'} as const;
const sandbox = {sandboxId: 'abc', pod, instanceName: 'podvm-web-abc'};
const error = new AdaptorError({code: 'aborted', what: 'It burnt'});

function recorded(...events: AdaptorEvent[]): Array<[PodIdentity, PodEvent]> {
	const told: Array<[PodIdentity, PodEvent]> = [];
	const observer = podEventObserver({recordEvent: (of, event) => told.push([of, event])});
	for (const event of events) {
		observer.notify(event);
	}

	return told;
}

test('a line about a sandbox has its id, its pod and its VM', t => {
	const log = recordingLog();
	logObserver(log).notify({kind: 'vm-ended', sandbox, error, vmId: 'u'});
	t.like(log.lines[0], {
		level: 'warn',
		message: 'pod VM ended by itself',
		fields: {sandboxId: 'abc', pod: 'shop/web', instanceName: 'podvm-web-abc', vmId: 'u', err: error},
	});
});

test('repeated failures of an attempt are logged as warnings at growing intervals', t => {
	const log = recordingLog();
	const observer = logObserver(log);
	for (let attempt = 1; attempt <= 9; attempt++) {
		observer.notify({kind: 'removal-failed', sandbox, error, attempt, retryInMs: 5});
	}

	t.deepEqual(
		log.lines.map(({level}, index) => (level === 'warn' ? index + 1 : 0)).filter(attempt => attempt > 0),
		[1, 2, 4, 8],
	);
});

test('facts for the owner of a pod become events of the pod, with the reason of the error if it has one', t => {
	const unfit = new AdaptorError({code: 'failed-precondition', what: 'No boot record', reason: 'ImageNotUsable'});
	t.deepEqual(
		recorded(
			{kind: 'start-failed', sandbox, error, stage: 'start the VM', stageMs: 5},
			{kind: 'start-failed', sandbox, error: unfit, stage: 'start the VM', stageMs: 5},
			{kind: 'vm-ended', sandbox, error, vmId: 'u'},
			{kind: 'size-limited', sandbox, limited: ['2 CPUs instead of 4', '1 GiB instead of 2 GiB']},
			{kind: 'removal-decided', sandbox, reason: 'its pod is gone', isUnderWay: false},
		),
		[
			[pod, {type: 'Warning', reason: 'PodVMStartFailed', message: 'It burnt'}],
			[pod, {type: 'Warning', reason: 'ImageNotUsable', message: 'No boot record'}],
			[pod, {type: 'Warning', reason: 'PodVMEnded', message: 'It burnt'}],
			[
				pod,
				{
					type: 'Warning',
					reason: 'PodVMSizeLimited',
					message: 'The VM of the pod has 2 CPUs instead of 4 and 1 GiB instead of 2 GiB',
				},
			],
			[pod, {type: 'Warning', reason: 'PodVMRemoved', message: 'The VM of the pod is removed: its pod is gone'}],
		],
	);
});

test('a removal that was asked for, and a sandbox without a known pod, are no events at a pod', t => {
	t.deepEqual(
		recorded(
			{kind: 'removal-decided', sandbox, reason: 'stopping', isUnderWay: true},
			{kind: 'vm-ended', sandbox: {sandboxId: 'abc'}, error, vmId: 'u'},
			{kind: 'sandbox-removed', sandbox, durationMs: 5, wasKnown: true},
		),
		[],
	);
});

test('an observer that throws does not affect the other observers or the work', t => {
	const seen: string[] = [];
	const failures: unknown[] = [];
	const broken: Observer<string> = {
		notify() {
			throw error;
		},
	};
	allOf([broken, {notify: event => seen.push(event)}], failure => failures.push(failure)).notify('it happened');
	t.deepEqual([seen, failures], [['it happened'], [error]]);
});
