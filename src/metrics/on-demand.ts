/** Loads and serves the metrics of a process, only if a port for them is set: nothing else imports prom-client. */
import type {Observer} from '../core/observer.ts';
import type {MetricsOptions} from './metrics.ts';
import type {MetricRegistry} from './registry.ts';

/** Disposing closes the port. */
export interface ServedMetrics<Event> extends AsyncDisposable {
	/** Turns events into metrics. */
	readonly observer: Observer<Event>;
}

/**
 * @param observerOf declares the metrics in the registry; it imports its own module
 * @returns undefined without a port
 */
export async function metricsIfWanted<Event>(
	{at, ...options}: Omit<MetricsOptions, 'at'> & {readonly at: MetricsOptions['at'] | undefined},
	observerOf: (registry: MetricRegistry) => Promise<Observer<Event>>,
): Promise<ServedMetrics<Event> | undefined> {
	if (at === undefined) {
		return undefined;
	}

	const {openMetrics} = await import('./metrics.ts');
	await using undo = new AsyncDisposableStack();
	const metrics = undo.use(openMetrics({at, ...options}));
	const observer = await observerOf(metrics.registry);
	undo.move();
	return {observer, [Symbol.asyncDispose]: async () => metrics[Symbol.asyncDispose]()};
}
