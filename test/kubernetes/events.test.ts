import test, {type ExecutionContext} from 'ava';
import type {Raw} from '../support/api-server.ts';
import {at, numberAt, textAt} from '../../src/core/json.ts';
import {Bucket, EventLimits} from '../../src/kubernetes/event-limits.ts';
import {PodEvents, type PodEventsOptions} from '../../src/kubernetes/events.ts';
import type {PodEvent} from '../../src/sandbox/ports.ts';
import {recordingLog} from '../support/recording-log.ts';
import {testCluster, type TestCluster} from './cluster.ts';

const pod = {name: 'web', namespace: 'default'};
const failed: PodEvent = {type: 'Warning', reason: 'PodVMStartFailed', message: 'Could not start'};
const numbered = (number: number): PodEvent => ({...failed, message: `Could not start ${'again '.repeat(number)}`});

interface Fixture extends TestCluster {
	readonly events: PodEvents;
	readonly log: ReturnType<typeof recordingLog>;
	readonly uid: string;
	/** The events at the API server, once there are so many. */
	readonly stored: (count: number) => Promise<readonly Raw[]>;
}

async function fixture(t: ExecutionContext, options: Partial<PodEventsOptions> = {}): Promise<Fixture> {
	const cluster = await testCluster(t);
	const {api, client} = cluster;
	const log = recordingLog();
	// A busy machine is not what is tested.
	const events = new PodEvents({
		client,
		node: 'worker-0',
		log,
		sendTimeoutMs: 100_000,
		drainTimeoutMs: 100_000,
		...options,
	});
	t.teardown(async () => events[Symbol.asyncDispose]());
	const {
		metadata: {uid},
	} = api.put('pods', {metadata: pod, spec: {}});
	return {
		...cluster,
		events,
		log,
		uid,
		async stored(count) {
			return api.until(() => {
				const all = api.list('events');
				return all.length >= count && all;
			});
		},
	};
}

test('an event refers to the pod and its uid, and names the component and the node', async t => {
	const {events, stored, uid} = await fixture(t);
	events.tell(pod, failed);
	const [event] = await stored(1);
	t.like(event, {
		apiVersion: 'v1',
		kind: 'Event',
		type: 'Warning',
		reason: 'PodVMStartFailed',
		message: 'Could not start',
		count: 1,
		involvedObject: {apiVersion: 'v1', kind: 'Pod', namespace: 'default', name: 'web', uid},
		source: {component: 'cloud-api-adaptor', host: 'worker-0'},
		reportingComponent: 'cloud-api-adaptor',
		reportingInstance: 'worker-0',
	});
	t.regex(event?.metadata.name ?? '', /^web\.[\da-f]{16}$/);
	t.regex(textAt(event, 'lastTimestamp') ?? '', /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
});

test('a known uid is not requested; events of a pod that is gone are still sent', async t => {
	const {api, events, stored} = await fixture(t);
	events.tell({...pod, uid: 'known'}, failed);
	events.tell({name: 'gone', namespace: 'default'}, failed);
	t.deepEqual((await stored(2)).map(event => at(event, 'involvedObject', 'uid')).toSorted(), ['known', undefined]);
	t.deepEqual(
		api.calls.filter(({plural}) => plural === 'pods').map(({name}) => name),
		['gone'],
	);
});

test('a repeated event increments the count; a different message, pod or UID is a new event', async t => {
	const {api, events, stored} = await fixture(t);
	events.tell(pod, failed);
	events.tell(pod, failed);
	events.tell(pod, numbered(1));
	events.tell({...pod, name: 'other'}, failed);
	await stored(3);
	api.delete('pods', 'web', 'default');
	api.put('pods', {metadata: pod, spec: {}});
	events.tell(pod, failed);
	t.deepEqual((await stored(4)).map(event => numberAt(event, 'count')).toSorted(), [1, 1, 1, 2]);
});

test('a repetition with other numbers and ids increments the count, and the last message is shown', async t => {
	const {api, events, stored} = await fixture(t);
	const told = [
		['podvm-web-1a2b3c4d', 10_012],
		['podvm-web-99f0e1d2', 9987],
	].map(([vm, ms]) => ({...failed, message: `Could not reach the agent of ${vm} (stageMs ${ms})`}));
	for (const event of told) {
		events.tell(pod, event);
	}

	await api.until(() => api.calls.some(({plural, verb}) => plural === 'events' && verb === 'patch'));
	await events[Symbol.asyncDispose]();
	t.deepEqual(
		(await stored(1)).map(event => [numberAt(event, 'count'), textAt(event, 'message')]),
		[[2, told[1]?.message]],
	);
});

test('if the API server has deleted an event, a repetition creates it again', async t => {
	const {api, events, stored} = await fixture(t);
	events.tell(pod, failed);
	const [event] = await stored(1);
	api.delete('events', event?.metadata.name ?? '', 'default');
	events.tell(pod, failed);
	t.is(numberAt((await stored(1))[0], 'count'), 1);
});

test('an event whose request got no answer is stored once', async t => {
	const {api, events, stored} = await fixture(t);
	{
		let faults = 0;
		using _ = api.fault(({verb}) => (verb === 'create' && faults++ === 0 ? 'drop-after' : undefined));
		events.tell(pod, numbered(1));
		events.tell(pod, numbered(2));
		await stored(2);
	}

	await events[Symbol.asyncDispose]();
	t.is(api.list('events').length, 2);
});

test('a long message is cut to what the API server takes, between characters', async t => {
	const {events, stored} = await fixture(t);
	events.tell(pod, {...failed, message: `${'x'.repeat(1019)}ü${'y'.repeat(100)}`});
	events.tell(pod, {...failed, message: 'ü'.repeat(512)});
	events.tell(pod, {...failed, message: `x${'ü'.repeat(512)}`});
	t.deepEqual(
		new Set((await stored(3)).map(event => textAt(event, 'message'))),
		new Set([`${'x'.repeat(1019)}ü…`, 'ü'.repeat(512), `x${'ü'.repeat(510)}…`]),
	);
});

test('the events of one pod are limited without affecting other pods', async t => {
	const {events, stored, log} = await fixture(t, {perPod: {burst: 3, refillMs: 300_000}});
	for (let number = 0; number < 10; number++) {
		events.tell(pod, numbered(number));
	}

	events.tell({...pod, name: 'other'}, failed);
	t.deepEqual((await stored(4)).map(event => textAt(event, 'involvedObject', 'name')).toSorted(), [
		'other',
		'web',
		'web',
		'web',
	]);
	t.deepEqual(
		log.lines.filter(({message}) => message === 'event of a pod dropped').map(({level}) => level),
		['warn', ...Array.from({length: 6}, () => 'debug')],
	);
});

test('the events of all pods together are limited', async t => {
	const {events, api} = await fixture(t, {inAll: {burst: 5, refillMs: 300_000}});
	for (let number = 0; number < 10; number++) {
		events.tell({...pod, name: `web-${number}`}, failed);
	}

	await events[Symbol.asyncDispose]();
	t.is(api.list('events').length, 5);
});

test('missing permission for events is logged once, and again only after events were allowed', async t => {
	const {api, events, log, stored} = await fixture(t);
	const said = (): number =>
		log.lines.filter(({message}) => message === 'no permission to write events of pods').length;
	{
		using _ = api.fault(({verb}) => (verb === 'create' ? 'forbidden' : undefined));
		events.tell(pod, numbered(1));
		events.tell(pod, numbered(2));
		await api.until(() => api.calls.filter(({verb}) => verb === 'create').length === 2);
	}

	events.tell(pod, numbered(3));
	await stored(1);
	t.is(said(), 1);
	using _ = api.fault(({verb}) => (verb === 'create' ? 'forbidden' : undefined));
	events.tell(pod, numbered(4));
	await events[Symbol.asyncDispose]();
	t.is(said(), 2);
});

test('a silent API server delays nobody: the event is dropped after a time limit, and the next one is sent', async t => {
	const {api, events, log, stored} = await fixture(t, {sendTimeoutMs: 6000});
	let isFirst = true;
	using _ = api.fault(({verb}) => {
		const fault = verb === 'create' && isFirst ? 'silence' : undefined;
		isFirst &&= fault === undefined;
		return fault;
	});
	// Telling does not wait: the API server is in this process.
	events.tell(pod, numbered(1));
	events.tell(pod, numbered(2));
	t.is(textAt((await stored(1))[0], 'message'), numbered(2).message);
	t.true(
		log.lines.some(
			({message, fields}) =>
				message === 'could not write an event of a pod' && /Timed out after 6000 ms/.test(String(fields.err)),
		),
	);
});

test('disposing sends the events that were recorded before, none after, and is idempotent', async t => {
	const {api, events, log} = await fixture(t);
	for (let number = 0; number < 5; number++) {
		events.tell(pod, numbered(number));
	}

	await Promise.all([events[Symbol.asyncDispose](), events[Symbol.asyncDispose]()]);
	t.is(api.list('events').length, 5);
	events.tell(pod, numbered(6));
	t.is(api.list('events').length, 5);
	t.is(log.lines.at(-1)?.fields.reason, 'stopping');
});

test('disposing does not wait for a silent API server', async t => {
	const {api, events, log} = await fixture(t, {drainTimeoutMs: 20});
	using _ = api.fault(() => 'silence');
	events.tell(pod, numbered(1));
	events.tell(pod, numbered(2));
	await api.until(() => api.calls.length > 0);
	await events[Symbol.asyncDispose]();
	t.deepEqual(
		log.lines.map(({message}) => message),
		['could not write an event of a pod', 'events of pods dropped'],
	);
	t.is(log.lines.at(-1)?.fields.count, 1);
});

test('a token bucket gives the tokens that it has, and one more at each refill', t => {
	const bucket = new Bucket({burst: 2, refillMs: 100}, 0);
	t.deepEqual(
		[0, 0, 0, 99, 100, 101, 1000, 1000, 1000].map(now => bucket.take(now)),
		[true, true, false, false, true, false, true, true, false],
	);
});

test('refused events of one pod do not use up the limit of the others', t => {
	const limits = new EventLimits(0, {burst: 1, refillMs: 1000}, {burst: 3, refillMs: 1_000_000});
	t.deepEqual(
		['a', 'a', 'a', 'b', 'c', 'd'].map(name => limits.allows(name, 0)),
		[true, false, false, true, true, false],
	);
});
