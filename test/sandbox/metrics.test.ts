/** What happens to sandboxes, as the metrics tell it. */
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {MetricRegistry} from '../../src/metrics/registry.ts';
import {daemonMetrics} from '../../src/observers/metrics-observer.ts';
import {samplesOf} from '../metrics/samples.ts';
import {fixture, never, pod, type Fixture, type FixtureOptions} from './fixture.ts';

interface Measured extends Fixture {
	readonly sample: (series: string) => Promise<number | undefined>;
	/** States with sandboxes in them, as the gauge has them. */
	readonly states: () => Promise<Readonly<Record<string, number>>>;
	/** Resolves when the series has the value. */
	readonly reaches: (series: string, value: number) => Promise<void>;
}

function measured(t: ExecutionContext, options: FixtureOptions = {}): Measured {
	const registry = new MetricRegistry();
	const made = fixture(t, {...options, observer: daemonMetrics(registry, {withRelays: true})});
	const samples = async (): Promise<ReadonlyMap<string, number>> => samplesOf((await registry.exposition()).text);
	const sample = async (series: string): Promise<number | undefined> => (await samples()).get(series);
	return {
		...made,
		sample,
		async states() {
			const entries = [...(await samples())].flatMap(([series, count]) => {
				const state = /^caa_sandboxes\{state="(?<state>\w+)"\}$/v.exec(series)?.groups?.['state'];
				return state === undefined || count === 0 ? [] : [[state, count] as const];
			});
			return Object.fromEntries(entries);
		},
		async reaches(series, value) {
			while ((await sample(series)) !== value) {
				await new Promise(resolve => setImmediate(resolve));
			}
		},
	};
}

test('a sandbox is counted in its state from CreateVM until it is removed', async t => {
	const {registry, states, sample} = measured(t);
	await registry.create(pod('a'), never);
	await registry.create(pod('b', 'db'), never);
	t.deepEqual(await states(), {created: 2});
	await registry.start('a', never);
	t.deepEqual(await states(), {created: 1, running: 1});
	t.is(await sample('caa_vm_starts_total{result="started"}'), 1);
	t.is(await sample('caa_vm_start_stage_seconds_count{stage="reach the agent"}'), 1);
	await registry.stop('a', never);
	await registry.stop('b', never);
	t.deepEqual(await states(), {});
	t.is(await sample('caa_sandbox_removals_total'), 2);
});

test('a failed start is counted with the stage that failed', async t => {
	const {registry, states, sample} = measured(t, {
		before(call) {
			if (call === 'podVms.start') {
				throw new AdaptorError({code: 'resource-exhausted', what: 'The pool is full'});
			}
		},
	});
	await registry.create(pod('a'), never);
	await t.throwsAsync(registry.start('a', never), {code: 'resource-exhausted'});
	t.deepEqual(await states(), {failed: 1});
	t.is(await sample('caa_vm_starts_total{result="failed"}'), 1);
	t.is(await sample('caa_vm_start_failures_total{stage="start the VM",reason="resource-exhausted"}'), 1);
	t.is(await sample('caa_vm_starts_total{result="started"}'), 0);
});

test('a start that is stopped is no failure', async t => {
	const {registry, sample, states} = measured(t, {
		async before(call, signal) {
			if (call === 'relays.open') {
				await new Promise((_, reject) => {
					signal.addEventListener('abort', () => reject(signal.reason as Error), {once: true});
				});
			}
		},
	});
	await registry.create(pod('a'), never);
	const start = t.throwsAsync(registry.start('a', never));
	while ((await states())['booting'] !== 1) {
		await new Promise(resolve => setImmediate(resolve));
	}

	await registry.stop('a', never);
	await start;
	t.is(await sample('caa_vm_starts_total{result="failed"}'), 0);
});

test('a removal that fails is pending until it has succeeded', async t => {
	let isBroken = true;
	const {registry, reaches, states} = measured(t, {
		before(call) {
			if (call === 'podVms.delete' && isBroken) {
				throw new AdaptorError({code: 'unavailable', what: 'No libvirt'});
			}
		},
	});
	await registry.create(pod('a'), never);
	await registry.start('a', never);
	await t.throwsAsync(registry.stop('a', never));
	await reaches('caa_pending_deletions', 1);
	t.deepEqual(await states(), {stopping: 1});
	isBroken = false;
	await reaches('caa_pending_deletions', 0);
	t.deepEqual(await states(), {});
});

test('each round of the reconcile loop counts with its decisions, and orphans while they are there', async t => {
	const {registry, reaches, sample, podVms} = measured(t);
	await registry.create(pod('a'), never);
	await registry.start('a', never);
	await reaches('caa_orphan_vms', 0);
	const vm = (await podVms.list(never)).find(({sandboxId}) => sandboxId === 'a');
	t.truthy(vm);
	while (((await sample('caa_reconcile_decisions_total{action="serve"}')) ?? 0) < 2) {
		await new Promise(resolve => setImmediate(resolve));
	}

	t.true(((await sample('caa_reconcile_seconds_count')) ?? 0) >= 2);
});

test('a VM without a sandbox is an orphan until it is removed', async t => {
	const before = fixture(t);
	await before.registry.create(pod('a'), never);
	await before.registry.start('a', never);
	await using _dead = before.kill();
	await before.records.remove('a');
	const registry = new MetricRegistry();
	await before.restart({orphanGraceMs: 60_000, observer: daemonMetrics(registry, {withRelays: true})});
	const orphans = async (): Promise<number | undefined> =>
		samplesOf((await registry.exposition()).text).get('caa_orphan_vms');
	while ((await orphans()) !== 1) {
		await new Promise(resolve => setImmediate(resolve));
	}

	t.pass();
});
