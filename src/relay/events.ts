/** The events of the relay for the observer. */
import type {Without} from '../core/observer.ts';
import type {SandboxId} from '../sandbox/ports.ts';

/** `connection` is the number of the shim connection to the socket of the sandbox, from 1. */
export type RelayEvent = {
	readonly sandbox: {readonly sandboxId: SandboxId; readonly instanceName: string};
	readonly connection?: number;
} & (
	| {readonly kind: 'forwarder-reached'; readonly address: string; readonly durationMs: number}
	/** Another host has the address, or the VM refuses this client. */
	| {
			readonly kind: 'address-refused';
			readonly address: string;
			readonly attempt: number;
			readonly reason: string;
			readonly remedy: string;
	  }
	/** The result of dialling an address has changed. */
	| {readonly kind: 'address-progress'; readonly address: string; readonly progress: string}
	| {readonly kind: 'unused-connection-closed'; readonly error: Error | undefined}
	| {readonly kind: 'shim-connected'}
	| {
			readonly kind: 'shim-disconnected';
			/** Calls that were open. */
			readonly count: number;
			readonly bytes: number;
			readonly durationMs: number;
			/** The shim has closed the connection: the relay did not close it, and it was not a probe. */
			readonly isNews: boolean;
	  }
	| {
			readonly kind: 'agent-call';
			readonly method: string;
			readonly durationMs: number;
			readonly code: string;
			/** With all frames of the shim. */
			readonly requestBytes: number;
			/** 0 if the relay itself answered. */
			readonly responseBytes: number;
	  }
	/** Calls that may have been executed were sent again, on a new connection to the VM. */
	| {readonly kind: 'calls-replayed'; readonly count: number}
	/** An answer arrived on a replaced connection to the VM. `durationMs` is the time since the request. */
	| {readonly kind: 'late-answer'; readonly method: string; readonly durationMs: number; readonly code: string}
	/** These calls fail, although the VM may have executed or answered them. */
	| {readonly kind: 'answers-lost'; readonly error: Error; readonly count: number}
	| {readonly kind: 'vm-lost'; readonly error: Error; readonly count: number; readonly attempt: number}
	| {readonly kind: 'vm-back'; readonly count: number; readonly durationMs: number; readonly attempt: number}
	| {readonly kind: 'vm-unreachable'; readonly error: unknown; readonly isNews: boolean}
	| {readonly kind: 'vm-slow'; readonly durationMs: number}
	/** The VM is gone, so its calls fail. */
	| {readonly kind: 'vm-gone'; readonly error: Error; readonly count: number}
	| {readonly kind: 'protocol-violated'; readonly by: 'shim' | 'VM'; readonly violation: string}
	| {readonly kind: 'shim-cut-off'; readonly error: Error}
);

/** Events of one shim connection. The owner of the connection adds its number. */
export type ConnectionEvent = Without<RelayEvent, 'sandbox' | 'connection'>;
