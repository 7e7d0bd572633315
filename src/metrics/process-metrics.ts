/** Metrics about the process itself: build, memory, CPU, event loop. */
import {performance} from 'node:perf_hooks';
import {cpuUsage, memoryUsage, version as nodeVersion} from 'node:process';
import {oneOf, type MetricRegistry} from './registry.ts';

/** Idle processes should rarely wake up, and only delays that a caller notices matter. */
const sampleEveryMs = 1000;
const delayBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/**
 * @param component the command that runs: `libvirt`, `relay`, `webhook`
 * @returns disposing ends the samples of the event loop
 */
export function addProcessMetrics(
	registry: MetricRegistry,
	{component, version}: {readonly component: string; readonly version: string},
): Disposable {
	registry
		.gauge('caa_build_info', 'Always 1. The labels identify the program.', {
			component: oneOf([component]),
			version: oneOf([version]),
			node_version: oneOf([nodeVersion]),
		})
		.set({component, version, node_version: nodeVersion}, 1);
	registry.reading(
		'caa_start_time_seconds',
		'Start of the process in seconds since 1970.',
		() => performance.timeOrigin / 1000,
	);
	registry.reading('caa_resident_memory_bytes', 'Resident memory of the process.', () => memoryUsage.rss());
	registry.reading('caa_heap_used_bytes', 'Used part of the JavaScript heap.', () => memoryUsage().heapUsed);
	registry.countReading('caa_cpu_seconds_total', 'CPU time of the process, user and system.', () => {
		const {user, system} = cpuUsage();
		return (user + system) / 1e6;
	});
	const delay = registry.histogram(
		'caa_event_loop_delay_seconds',
		'How late a timer ran, sampled once a second.',
		delayBuckets,
	);
	let due = performance.now() + sampleEveryMs;
	const timer = setInterval(() => {
		const now = performance.now();
		delay.observe({}, Math.max(0, now - due) / 1000);
		due = now + sampleEveryMs;
	}, sampleEveryMs).unref();
	return {[Symbol.dispose]: () => clearInterval(timer)};
}
