/** The metrics of one process: the registry, and the port that serves it. Loaded only if a port is set. */
import type {ListenAddress} from '../core/listen-address.ts';
import type {Logger} from '../core/log.ts';
import {addProcessMetrics} from './process-metrics.ts';
import {MetricRegistry} from './registry.ts';
import {serveMetrics} from './server.ts';

export interface MetricsOptions {
	readonly at: ListenAddress;
	/** The variable with the port, for remedies. */
	readonly setting: string;
	/** The command that runs: `libvirt`, `relay`, `webhook`. */
	readonly component: string;
	readonly version: string;
	readonly log: Logger;
}

/** Disposing closes the port. */
export interface Metrics extends AsyncDisposable {
	readonly registry: MetricRegistry;
}

/** Returns at once; see `serveMetrics`. */
export function openMetrics({at, setting, component, version, log}: MetricsOptions): Metrics {
	const registry = new MetricRegistry();
	const sampling = addProcessMetrics(registry, {component, version});
	const server = serveMetrics({at, setting, exposition: async () => registry.exposition(), log});
	return {
		registry,
		async [Symbol.asyncDispose]() {
			sampling[Symbol.dispose]();
			await server[Symbol.asyncDispose]();
		},
	};
}
