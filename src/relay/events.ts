/** What happens to the agent's traffic, as the relay tells its observer. */
import type {Without} from '../core/observer.ts';
import type {SandboxId} from '../sandbox/ports.ts';

/** `connection` counts the shim's connections to the sandbox's socket, from 1. */
export type RelayEvent = {
	readonly sandbox: {readonly sandboxId: SandboxId; readonly instanceName: string};
	readonly connection?: number;
} & (
	| {readonly kind: 'forwarder-reached'; readonly address: string; readonly durationMs: number}
	/** Something at the address is not the VM, or the VM refuses us. */
	| {
			readonly kind: 'address-refused';
			readonly address: string;
			readonly attempt: number;
			readonly reason: string;
			readonly remedy: string;
	  }
	| {readonly kind: 'unused-connection-closed'; readonly error: Error | undefined}
	| {readonly kind: 'shim-connected'}
	| {
			readonly kind: 'shim-disconnected';
			/** Calls that were open. */
			readonly count: number;
			readonly bytes: number;
			readonly durationMs: number;
			/** Neither ours to close nor a probe: the shim itself has ended. */
			readonly isNews: boolean;
	  }
	| {readonly kind: 'agent-call'; readonly method: string; readonly durationMs: number; readonly code: string}
	| {readonly kind: 'vm-lost'; readonly error: Error; readonly count: number; readonly attempt: number}
	| {readonly kind: 'vm-back'; readonly count: number; readonly durationMs: number; readonly attempt: number}
	| {readonly kind: 'vm-unreachable'; readonly error: unknown; readonly isNews: boolean}
	| {readonly kind: 'vm-slow'; readonly durationMs: number}
	/** Its calls fail. */
	| {readonly kind: 'vm-gone'; readonly error: Error; readonly count: number}
	| {readonly kind: 'protocol-violated'; readonly by: 'shim' | 'VM'; readonly violation: string}
	| {readonly kind: 'shim-cut-off'; readonly error: Error}
);

/** What happens on one of the shim's connections: whoever has the connection adds which one it is. */
export type ConnectionEvent = Without<RelayEvent, 'sandbox' | 'connection'>;
