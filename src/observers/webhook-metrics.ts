/** Turns events of the webhook into metrics. As in metrics-observer.ts, every label has a bound. */
import type {Observer} from '../core/observer.ts';
import {oneOf, type MetricRegistry} from '../metrics/registry.ts';
import type {WebhookEvent} from '../webhook/events.ts';

/** A review takes less than a millisecond; the API server gives up after seconds. */
const buckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5];

export function webhookMetrics(registry: MetricRegistry): Observer<WebhookEvent> {
	const reviews = registry.counter('caa_webhook_reviews_total', 'Answered admission reviews by outcome.', {
		outcome: oneOf(['changed', 'denied', 'unchanged']),
	});
	const seconds = registry.histogram(
		'caa_webhook_review_seconds',
		'Time from the whole request to its answer.',
		buckets,
	);
	const refusals = registry.counter('caa_webhook_refusals_total', 'Refused requests by status of HTTP.', {
		status: oneOf(['400', '404', '405', '413', '415', '429', '500']),
	});
	return {
		notify(event) {
			if (event.kind === 'review-answered') {
				reviews.add({outcome: event.outcome});
				seconds.observe({}, event.durationMs / 1000);
			} else {
				refusals.add({status: String(event.status)});
			}
		},
	};
}
