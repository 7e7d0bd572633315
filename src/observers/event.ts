/** All events of the parts of the daemon. */
import type {ApiEvent} from '../api/events.ts';
import type {NetworkEvent} from '../network/events.ts';
import type {PoolEvent} from '../podvm/events.ts';
import type {SessionEvent} from '../libvirt/session-events.ts';
import type {RelayEvent} from '../relay/events.ts';
import type {RelayProcessEvent} from '../relay-process/events.ts';
import type {SandboxEvent, ReconcileEvent} from '../sandbox/events.ts';

export type AdaptorEvent =
	SandboxEvent | ReconcileEvent | ApiEvent | RelayEvent | RelayProcessEvent | SessionEvent | NetworkEvent | PoolEvent;

/** Events of one kind. */
export type EventOf<Kind extends AdaptorEvent['kind']> = Extract<AdaptorEvent, {readonly kind: Kind}>;
