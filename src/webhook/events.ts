/** Events of the webhook for the observer. */

export type WebhookEvent =
	/** `outcome`: the pod was changed, denied, or left as it is, because no rule is for it. */
	| {
			readonly kind: 'review-answered';
			readonly outcome: 'changed' | 'denied' | 'unchanged';
			readonly durationMs: number;
	  }
	/** It was no admission review, or over a limit. `status` is that of HTTP. */
	| {readonly kind: 'review-refused'; readonly status: number};
