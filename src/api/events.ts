/** The events of the API for its observer. */
import type {SandboxId} from '../sandbox/ports.ts';

/** `sandboxId` as sent by the caller; undefined for a call without one. */
export type CallEvent = {
	readonly method: string;
	readonly sandboxId: SandboxId | undefined;
	readonly durationMs: number;
} & ({readonly kind: 'call-answered'} | {readonly kind: 'call-failed'; readonly error: unknown});

export type ApiEvent =
	| CallEvent
	| {readonly kind: 'caller-connected'; readonly protocol: string}
	/** It violated the protocol too often. */
	| {readonly kind: 'caller-cut-off'; readonly error: Error};
