import {readFileSync} from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {addProcessMetrics} from '../../src/metrics/process-metrics.ts';
import {MetricRegistry} from '../../src/metrics/registry.ts';
import type {AdaptorEvent} from '../../src/observers/event.ts';
import {daemonMetrics, relayMetrics} from '../../src/observers/metrics-observer.ts';
import {webhookMetrics} from '../../src/observers/webhook-metrics.ts';
import type {WebhookEvent} from '../../src/webhook/events.ts';
import {metricsComplaints} from '../metrics/promtool.ts';
import {samplesOf} from '../metrics/samples.ts';

const pod = {name: 'web', namespace: 'shop', uid: 'u-1'} as const;
const sandbox = {sandboxId: 'abc', pod, instanceName: 'podvm-web-abc'};
const error = new AdaptorError({code: 'resource-exhausted', what: 'The pool is full'});
const uri = 'qemu:///system';
const server = {driver: 'QEMU', libvirtVersion: '9.0.0', hostname: 'kvm', transport: 'ssh'};

/** An event of each kind, by name, so that a new kind is not forgotten here. */
const events: {readonly [Kind in AdaptorEvent['kind']]: Extract<AdaptorEvent, {readonly kind: Kind}>} = {
	'sandbox-changed': {kind: 'sandbox-changed', sandbox, from: 'creating', to: 'created'},
	'sandbox-created': {
		kind: 'sandbox-created',
		sandbox,
		size: {vcpus: 1, vcpusFrom: 'x', memoryMib: 1, memoryFrom: 'x'},
		initdata: undefined,
		vni: 1,
		netns: '/x',
	},
	'vm-started': {
		kind: 'vm-started',
		sandbox,
		vm: {vmId: 'u', address: '10.0.0.2', mac: '52:54:00:00:00:01', vni: 1},
		stagesMs: {'start the VM': 300, 'reach the agent': 5000},
	},
	'size-limited': {kind: 'size-limited', sandbox, limited: ['1 CPU']},
	'start-failed': {kind: 'start-failed', sandbox, error, stage: 'start the VM', stageMs: 5},
	'start-slow': {
		kind: 'start-slow',
		sandbox,
		afterMs: 20_000,
		stage: 'reach the agent',
		addresses: [{address: '192.168.122.2', progress: 'no answer yet'}],
		consoleLine: 'Booting',
	},
	'vm-ended': {kind: 'vm-ended', sandbox, error, vmId: 'u'},
	'sandbox-rolled-back': {kind: 'sandbox-rolled-back', sandbox, error},
	'roll-back-failed': {kind: 'roll-back-failed', sandbox, error},
	'sandbox-resumed': {
		kind: 'sandbox-resumed',
		sandbox,
		vm: {vmId: 'u', address: '10.0.0.2', mac: '52:54:00:00:00:01', vni: 1},
	},
	'created-sandbox-resumed': {kind: 'created-sandbox-resumed', sandbox, vni: 1},
	'resumption-failed': {kind: 'resumption-failed', sandbox, error, attempt: 1},
	'sandbox-handed-over': {kind: 'sandbox-handed-over', sandbox, reason: 'x', vmId: 'u'},
	'sandbox-superseded': {kind: 'sandbox-superseded', sandbox, by: 'def'},
	'superseded-sandbox-not-removed': {kind: 'superseded-sandbox-not-removed', sandbox, error},
	'sandbox-removed': {kind: 'sandbox-removed', sandbox, durationMs: 700, wasKnown: true},
	'removal-failed': {kind: 'removal-failed', sandbox, error, attempt: 1},
	'removal-not-recorded': {kind: 'removal-not-recorded', sandbox, error},
	'relay-not-closed': {kind: 'relay-not-closed', sandbox, error},
	'vm-not-watched': {kind: 'vm-not-watched', sandbox, error},
	'reconcile-failed': {kind: 'reconcile-failed', error},
	reconciled: {kind: 'reconciled', durationMs: 20, orphans: 2},
	decided: {kind: 'decided', sandbox, action: 'roll back'},
	'vms-not-listed': {kind: 'vms-not-listed', error, isNews: true},
	'removal-decided': {kind: 'removal-decided', sandbox, reason: 'x', isUnderWay: false},
	'orphan-removal-decided': {kind: 'orphan-removal-decided', sandbox, reason: 'x', createdAt: new Date(0)},
	'orphan-not-removed': {kind: 'orphan-not-removed', sandbox, error},
	'sandbox-left-alone': {kind: 'sandbox-left-alone', sandbox, reason: 'x'},
	'vm-left-alone': {kind: 'vm-left-alone', sandbox, reason: 'x'},
	'record-unreadable': {kind: 'record-unreadable', sandbox, error},
	'decision-postponed': {kind: 'decision-postponed', sandbox, reason: 'x'},
	'decision-not-carried-out': {kind: 'decision-not-carried-out', sandbox, error},
	'predecessors-ended': {kind: 'predecessors-ended'},
	'predecessor-record-unreadable': {kind: 'predecessor-record-unreadable', error},
	'shutdown-timed-out': {kind: 'shutdown-timed-out', error, count: 1},
	'call-answered': {kind: 'call-answered', method: 'StartVM', durationMs: 5300, sandboxId: 'abc'},
	'call-failed': {kind: 'call-failed', method: 'StopVM', durationMs: 5, sandboxId: 'abc', error},
	'caller-connected': {kind: 'caller-connected', protocol: 'ttrpc'},
	'caller-cut-off': {kind: 'caller-cut-off', error},
	'forwarder-reached': {kind: 'forwarder-reached', sandbox, address: '10.0.0.2', durationMs: 4000},
	'address-progress': {kind: 'address-progress', sandbox, address: 'a', progress: 'connection refused'},
	'address-refused': {kind: 'address-refused', sandbox, address: 'a', attempt: 1, reason: 'x', remedy: 'y'},
	'unused-connection-closed': {kind: 'unused-connection-closed', sandbox, error: undefined},
	'shim-connected': {kind: 'shim-connected', sandbox},
	'shim-disconnected': {kind: 'shim-disconnected', sandbox, count: 0, bytes: 5, durationMs: 5, isNews: true},
	'agent-call': {
		kind: 'agent-call',
		sandbox,
		method: 'grpc.AgentService/CreateContainer',
		durationMs: 12,
		code: 'OK',
		requestBytes: 2000,
		responseBytes: 30,
	},
	'calls-replayed': {kind: 'calls-replayed', sandbox, count: 3},
	'late-answer': {kind: 'late-answer', sandbox, method: 'x', durationMs: 5, code: 'OK'},
	'answers-lost': {kind: 'answers-lost', sandbox, error, count: 2},
	'vm-lost': {kind: 'vm-lost', sandbox, error, count: 4, attempt: 1},
	'vm-back': {kind: 'vm-back', sandbox, count: 1, durationMs: 5, attempt: 1},
	'vm-unreachable': {kind: 'vm-unreachable', sandbox, error, isNews: true},
	'vm-slow': {kind: 'vm-slow', sandbox, durationMs: 5},
	'vm-gone': {kind: 'vm-gone', sandbox, error, count: 1},
	'protocol-violated': {kind: 'protocol-violated', sandbox, by: 'VM', violation: 'x'},
	'shim-cut-off': {kind: 'shim-cut-off', sandbox, error},
	'daemon-registered': {kind: 'daemon-registered', path: '/x'},
	'daemon-gone': {kind: 'daemon-gone', path: '/x', hasOther: false},
	'call-waits': {kind: 'call-waits', method: 'StartVM'},
	'call-waited': {kind: 'call-waited', method: 'StartVM', durationMs: 5},
	'call-repeated': {kind: 'call-repeated', method: 'StopVM'},
	'call-lost': {kind: 'call-lost', method: 'StartVM', error},
	'libvirt-connected': {kind: 'libvirt-connected', uri, connection: 1, durationMs: 5, server},
	'libvirt-connect-failed': {kind: 'libvirt-connect-failed', uri, error, attempt: 1, retryInMs: 5},
	'libvirt-lost': {kind: 'libvirt-lost', uri, error, connection: 1, transport: 'ssh'},
	'libvirt-connection-replaced': {kind: 'libvirt-connection-replaced', uri, transport: 'ssh'},
	'libvirt-replacement-failed': {kind: 'libvirt-replacement-failed', uri, error},
	'libvirt-call': {kind: 'libvirt-call', uri, procedure: 'domainCreate', durationMs: 80, error: undefined},
	'libvirt-call-repeated': {kind: 'libvirt-call-repeated', uri, error},
	'libvirt-packet-ignored': {kind: 'libvirt-packet-ignored', uri, serial: 1, procedure: 1},
	'libvirt-listener-failed': {kind: 'libvirt-listener-failed', uri, error},
	'tunnels-guarded': {kind: 'tunnels-guarded', dropped: 5},
	'pool-observed': {kind: 'pool-observed', capacityBytes: 1000n, availableBytes: 400n},
	'pool-not-observed': {kind: 'pool-not-observed'},
};
const reviews: readonly WebhookEvent[] = [
	{kind: 'review-answered', outcome: 'changed', durationMs: 0.4},
	{kind: 'review-answered', outcome: 'denied', durationMs: 0.2},
	{kind: 'review-refused', status: 413},
];

/** What a daemon that serves its sockets itself tells after these events. */
async function told(...happened: readonly AdaptorEvent[]): Promise<ReadonlyMap<string, number>> {
	const registry = new MetricRegistry();
	const observer = daemonMetrics(registry, {withRelays: true});
	for (const event of happened) {
		observer.notify(event);
	}

	return samplesOf((await registry.exposition()).text);
}

async function expositions(): Promise<Readonly<Record<'libvirt' | 'relay' | 'webhook', string>>> {
	const [daemon, relay, webhook] = [new MetricRegistry(), new MetricRegistry(), new MetricRegistry()];
	using _samples = addProcessMetrics(daemon, {component: 'libvirt', version: '1'});
	const observers = [daemonMetrics(daemon, {withRelays: true}), relayMetrics(relay)];
	const {'pool-not-observed': _unknown, ...seen} = events;
	for (const event of Object.values<AdaptorEvent>(seen)) {
		for (const observer of observers) {
			observer.notify(event);
		}
	}

	const observer = webhookMetrics(webhook);
	for (const event of reviews) {
		observer.notify(event);
	}

	const [a, b, c] = await Promise.all([daemon, relay, webhook].map(async each => (await each.exposition()).text));
	return {libvirt: a ?? '', relay: b ?? '', webhook: c ?? ''};
}

for (const component of ['libvirt', 'relay', 'webhook'] as const) {
	test(`promtool has no complaint about the metrics of ${component}`, async t => {
		const exposition = (await expositions())[component];
		t.true(samplesOf(exposition).size > 5);
		t.is(await metricsComplaints(exposition), '');
	});
}

test('promtool finds a wrong name', async t => {
	t.regex(
		await metricsComplaints('# HELP caa_x X.\n# TYPE caa_x counter\ncaa_x 1\n'),
		/counter metrics should have/v,
	);
});

test('every metric begins with caa_, and docs/metrics.md lists it and no other', async t => {
	const names = new Set(
		Object.values(await expositions()).flatMap(text =>
			[...text.matchAll(/^# TYPE (?<name>\S+)/gmv)].map(({groups}) => groups?.['name'] ?? ''),
		),
	);
	t.deepEqual(
		[...names].filter(name => !name.startsWith('caa_')),
		[],
	);
	const markdown = readFileSync(new URL('../../docs/metrics.md', import.meta.url), 'utf8');
	const listed = new Set(
		[...markdown.matchAll(/^\| `(?<name>caa_\w+)/gmv)].map(({groups}) => groups?.['name'] ?? ''),
	);
	t.deepEqual([...names.symmetricDifference(listed)], []);
});

test('a start counts with the time of each stage, a failed one with its stage and error code', async t => {
	const samples = await told(events['vm-started'], events['start-failed'], events['start-failed']);
	t.is(samples.get('caa_vm_starts_total{result="started"}'), 1);
	t.is(samples.get('caa_vm_starts_total{result="failed"}'), 2);
	t.is(samples.get('caa_vm_start_failures_total{stage="start the VM",reason="resource-exhausted"}'), 2);
	t.is(samples.get('caa_vm_start_stage_seconds_sum{stage="reach the agent"}'), 5);
	t.is(samples.get('caa_vm_start_seconds_sum'), 5.3);
	t.is(samples.get('caa_vm_start_seconds_bucket{le="5"}'), 0);
	t.is(samples.get('caa_vm_start_seconds_bucket{le="10"}'), 1);
});

test('sandboxes are counted by state until they are gone', async t => {
	const change = (
		sandboxId: string,
		from: 'created' | 'stopping' | undefined,
		to: 'created' | 'stopping' | 'gone',
	): AdaptorEvent => ({
		kind: 'sandbox-changed',
		sandbox: {sandboxId},
		from,
		to,
	});
	const samples = await told(
		change('a', undefined, 'created'),
		change('b', undefined, 'created'),
		change('c', undefined, 'stopping'),
		change('b', 'created', 'stopping'),
		change('c', 'stopping', 'gone'),
	);
	t.deepEqual(
		[...samples].filter(([series, value]) => series.startsWith('caa_sandboxes{') && value !== 0),
		[
			['caa_sandboxes{state="created"}', 1],
			['caa_sandboxes{state="stopping"}', 1],
		],
	);
});

test('a deletion is pending from its first failure until the sandbox is gone', async t => {
	const failed = [events['removal-failed'], events['roll-back-failed'], events['removal-failed']];
	t.is((await told()).get('caa_pending_deletions'), 0);
	t.is((await told(...failed)).get('caa_pending_deletions'), 1);
	const samples = await told(...failed, {kind: 'sandbox-changed', sandbox, from: 'stopping', to: 'gone'});
	t.is(samples.get('caa_pending_deletions'), 0);
	t.is(samples.get('caa_sandbox_removal_failures_total{reason="resource-exhausted"}'), 3);
});

test('a StopVM for an unknown id is no removal', async t => {
	const samples = await told({kind: 'sandbox-removed', sandbox, durationMs: 5, wasKnown: false});
	t.is(samples.get('caa_sandbox_removals_total'), 0);
});

test('dropped packets count since the start of this daemon, also after the table was made again', async t => {
	const dropped = async (...counts: readonly number[]): Promise<number | undefined> =>
		(await told(...counts.map((count): AdaptorEvent => ({kind: 'tunnels-guarded', dropped: count})))).get(
			'caa_tunnel_packets_dropped_total',
		);
	t.is(await dropped(7), 0);
	t.is(await dropped(7, 7, 10), 3);
	t.is(await dropped(7, 10, 2, 4), 7);
});

test('the pool and the orphans are absent while they are not known', async t => {
	const known = await told(events['pool-observed'], events.reconciled);
	t.is(known.get('caa_pool_available_bytes'), 400);
	t.is(known.get('caa_pool_capacity_bytes'), 1000);
	t.is(known.get('caa_orphan_vms'), 2);
	const unknown = await told(events['pool-observed'], events['pool-not-observed'], events.reconciled, {
		...events.reconciled,
		orphans: undefined,
	});
	t.false(unknown.has('caa_pool_available_bytes'));
	t.false(unknown.has('caa_orphan_vms'));
});

test('libvirt is connected from the first connection until it is lost', async t => {
	const connected = async (...happened: readonly AdaptorEvent[]): Promise<number | undefined> =>
		(await told(...happened)).get('caa_libvirt_connected');
	t.is(await connected(), 0);
	t.is(await connected(events['libvirt-connected']), 1);
	t.is(await connected(events['libvirt-connected'], events['libvirt-connection-replaced']), 1);
	t.is(await connected(events['libvirt-connected'], events['libvirt-lost']), 0);
});

test('each libvirt procedure has a series of its own', async t => {
	const names = Object.values(procedures).map(({name}) => name);
	const samples = await told(
		...names.map((procedure): AdaptorEvent => ({...events['libvirt-call'], procedure, error})),
	);
	for (const name of names) {
		t.is(samples.get(`caa_libvirt_call_seconds_count{procedure="${name}"}`), 1, name);
		t.is(samples.get(`caa_libvirt_call_failures_total{procedure="${name}",reason="resource-exhausted"}`), 1, name);
	}
});

test('bytes and calls of the agent count by method; methods that kata does not have count as other', async t => {
	const samples = await told(
		events['agent-call'],
		{...events['agent-call'], method: 'grpc.AgentService/Mine'},
		{...events['agent-call'], method: 'evil"} 1', code: '4711'},
	);
	t.is(samples.get('caa_relay_calls_total{method="grpc.AgentService/CreateContainer",code="OK"}'), 1);
	t.is(samples.get('caa_relay_calls_total{method="other",code="OK"}'), 1);
	t.is(samples.get('caa_relay_calls_total{method="other",code="other"}'), 1);
	t.is(samples.get('caa_relay_bytes_total{method="other",direction="request"}'), 4000);
});

test('every agent method of the recorded protocol is known', async t => {
	const proto = readFileSync(new URL('../lab/agent.proto', import.meta.url), 'utf8');
	const methods = [...proto.matchAll(/^\s*rpc (?<name>\w+)/gmv)].map(({groups}) => groups?.['name'] ?? '');
	t.true(methods.length > 3);
	const samples = await told(
		...methods.map((name): AdaptorEvent => ({
			...events['agent-call'],
			method: name === 'Check' || name === 'Version' ? `grpc.Health/${name}` : `grpc.AgentService/${name}`,
		})),
	);
	t.false(samples.has('caa_relay_calls_total{method="other",code="OK"}'), methods.join());
});

test('whatever shims, VMs and callers send, the number of series has a limit', async t => {
	const registry = new MetricRegistry();
	const observer = daemonMetrics(registry, {withRelays: true});
	const known = Object.values<AdaptorEvent>(events);
	await fc.assert(
		fc.asyncProperty(
			fc.array(fc.tuple(fc.constantFrom(...known), fc.string(), fc.string(), fc.integer()), {maxLength: 50}),
			async happened => {
				for (const [event, text, other, number] of happened) {
					// As a hostile peer could: any text in place of each text.
					const texts = {method: text, code: other, procedure: text, stage: text, by: text, action: text};
					const changed = Object.fromEntries(
						Object.entries(event).map(([name, value]) => [
							name,
							name in texts ? texts[name as keyof typeof texts] : value,
						]),
					);
					observer.notify({
						...changed,
						sandbox: {sandboxId: text, instanceName: other, pod: {name: text, namespace: other, uid: text}},
						...(event.kind === 'call-failed'
							? {error: new AdaptorError({code: 'internal', what: text})}
							: {}),
						...(event.kind === 'vm-started' ? {stagesMs: {[text]: Math.abs(number)}} : {}),
					} as AdaptorEvent);
				}
			},
		),
		{numRuns: 300},
	);
	for (let index = 0; index < 5000; index++) {
		observer.notify({...events['agent-call'], method: `m${index}`, code: `c${index}`});
		observer.notify({...events['libvirt-call'], procedure: `p${index}`, error});
		observer.notify({...events['start-failed'], stage: `s${index}`});
	}

	const {text} = await registry.exposition();
	const series = samplesOf(text).size;
	t.true(series < 4000, String(series));
	t.false(/m4999|c4999|p4999|s4999|shop|podvm/v.test(text));
});

test('an event of a later version is ignored', async t => {
	const registry = new MetricRegistry();
	const observer = relayMetrics(registry);
	const before = (await registry.exposition()).text;
	observer.notify({kind: 'something-new'} as unknown as AdaptorEvent);
	t.is((await registry.exposition()).text, before);
});

test('a daemon with a relay process leaves the metrics of relays to it', async t => {
	const registry = new MetricRegistry();
	const observer = daemonMetrics(registry, {withRelays: false});
	observer.notify(events['vm-lost']);
	t.false((await registry.exposition()).text.includes('caa_relay_'));
});

test('reviews count by outcome, refused requests by status', async t => {
	const samples = samplesOf((await expositions()).webhook);
	t.is(samples.get('caa_webhook_reviews_total{outcome="changed"}'), 1);
	t.is(samples.get('caa_webhook_reviews_total{outcome="denied"}'), 1);
	t.is(samples.get('caa_webhook_reviews_total{outcome="unchanged"}'), 0);
	t.is(samples.get('caa_webhook_refusals_total{status="413"}'), 1);
	t.is(samples.get('caa_webhook_review_seconds_count'), 2);
});
