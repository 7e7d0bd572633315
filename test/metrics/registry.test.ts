import test from 'ava';
import {addProcessMetrics} from '../../src/metrics/process-metrics.ts';
import {atMost, MetricRegistry, oneOf} from '../../src/metrics/registry.ts';
import {samplesOf, seriesOf} from './samples.ts';

test('a value outside of the bound of its label counts as other', async t => {
	const registry = new MetricRegistry();
	const calls = registry.counter('caa_calls_total', 'Calls.', {method: oneOf(['a', 'b'])});
	for (const method of ['a', 'x', 'y', '"\n\\', '']) {
		calls.add({method});
	}

	const {text} = await registry.exposition();
	t.deepEqual(
		[...samplesOf(text)],
		[
			['caa_calls_total{method="a"}', 1],
			['caa_calls_total{method="b"}', 0],
			['caa_calls_total{method="other"}', 4],
		],
	);
});

test('a label without a list of values takes so many different ones, and never more', async t => {
	const registry = new MetricRegistry();
	const seconds = registry.histogram('caa_call_seconds', 'Calls.', [1], {procedure: atMost(3)});
	for (let index = 0; index < 1000; index++) {
		seconds.observe({procedure: `p${index % 500}`}, 0.5);
	}

	const {text} = await registry.exposition();
	t.deepEqual(seriesOf(text, 'caa_call_seconds_count'), [
		'caa_call_seconds_count{procedure="p0"}',
		'caa_call_seconds_count{procedure="p1"}',
		'caa_call_seconds_count{procedure="p2"}',
		'caa_call_seconds_count{procedure="other"}',
	]);
});

test('a text cannot end its label value', async t => {
	const registry = new MetricRegistry();
	registry.counter('caa_calls_total', 'Calls.', {method: atMost(5)}).add({method: 'a"} 5\ncaa_forged_total 1\\'});
	const {text} = await registry.exposition();
	t.true(text.includes('caa_calls_total{method="a\\"} 5\\ncaa_forged_total 1\\\\"} 1\n'));
	t.deepEqual(seriesOf(text, 'caa_forged_total'), []);
});

test('a reading that is not known now is absent, and comes back', async t => {
	const registry = new MetricRegistry();
	let value: number | undefined = 5;
	registry.reading('caa_pool_bytes', 'Pool.', () => value);
	const read = async (): Promise<number | undefined> =>
		samplesOf((await registry.exposition()).text).get('caa_pool_bytes');
	t.is(await read(), 5);
	value = undefined;
	t.is(await read(), undefined);
	value = 7;
	t.is(await read(), 7);
});

test('a process tells its build, memory, CPU time and start', async t => {
	const registry = new MetricRegistry();
	using _sampling = addProcessMetrics(registry, {component: 'libvirt', version: '1.2.3'});
	const samples = samplesOf((await registry.exposition()).text);
	t.is(samples.get(`caa_build_info{component="libvirt",version="1.2.3",node_version="${process.version}"}`), 1);
	t.true((samples.get('caa_resident_memory_bytes') ?? 0) > 10e6);
	t.true((samples.get('caa_heap_used_bytes') ?? 0) > 1e6);
	t.true((samples.get('caa_cpu_seconds_total') ?? 0) > 0);
	t.true((samples.get('caa_start_time_seconds') ?? 0) > 1.5e9);
});
