/**
 * Domain lifecycle events: the names of their numbers. Source: libvirt, include/libvirt/libvirt-domain.h,
 * virDomainEventType and virDomainEvent…DetailType.
 */
import type {Domain} from './procedures.ts';
import {present} from '../../core/present.ts';

/** VIR_DOMAIN_EVENT_ID_LIFECYCLE */
export const lifecycleEventId = 0;

/** In the order of virDomainEventType. */
const lifecycleNames = [
	'defined',
	'undefined',
	'started',
	'suspended',
	'resumed',
	'stopped',
	'shutdown',
	'pmsuspended',
	'crashed',
] as const;

export type LifecycleName = (typeof lifecycleNames)[number] | 'unknown';

/** In the order of virDomainEventStoppedDetailType. */
const stoppedDetails = ['shutdown', 'destroyed', 'crashed', 'migrated', 'saved', 'failed', 'from-snapshot'] as const;

export interface LifecycleEvent {
	readonly domain: Domain;
	readonly name: LifecycleName;
	/** The number in libvirt's protocol. */
	readonly event: number;
	readonly detail: number;
	/** Why the domain stopped; only for 'stopped'. */
	readonly stopped?: (typeof stoppedDetails)[number];
}

export function lifecycleEvent(domain: Domain, event: number, detail: number): LifecycleEvent {
	const name = lifecycleNames[event] ?? 'unknown';
	const stopped = name === 'stopped' ? stoppedDetails[detail] : undefined;
	return {domain, name, event, detail, ...present({stopped})};
}
