/** Maps the remote hypervisor API of kata and PodVMInfo to calls on the domain. */
import type {ServiceDefinition} from '@grpc/proto-loader';
import {Scope} from '../core/lifetime.ts';
import type {Observer, Without} from '../core/observer.ts';
import type {Sandboxes} from '../sandbox/ports.ts';
import {
	apiVersion,
	type Contract,
	type CreateVMRequest,
	type CreateVMResponse,
	type GetInfoRequest,
	type GetInfoResponse,
	type SandboxRequest,
	type Version,
} from './contract.ts';
import type {CallEvent} from './events.ts';

export interface CallContext {
	/** Aborts at the deadline of the caller, when its connection ends, or at shutdown. */
	readonly signal: AbortSignal;
}

export type UnaryHandler<Request, Response extends object> = (
	request: Request,
	context: CallContext,
) => Promise<Response>;

/** `never`: each handler accepts the type that its own definition decodes. */
export type Handlers = Readonly<Record<string, UnaryHandler<never, object>>>;

/** A service of proto/ with handlers for its methods, independent of the protocol. */
export interface Service {
	readonly name: string;
	readonly definition: ServiceDefinition;
	readonly handlers: Handlers;
}

/**
 * @param ending aborts when draining begins: then calls that only wait for an event are answered, so that draining does
 * not wait for them
 */
export function services(
	{hypervisor, podVmInfo}: Contract,
	sandboxes: Sandboxes,
	observer: Observer<CallEvent>,
	ending: AbortSignal,
): readonly Service[] {
	const hypervisorHandlers: {
		CreateVM: UnaryHandler<CreateVMRequest, CreateVMResponse>;
		StartVM: UnaryHandler<SandboxRequest, object>;
		StopVM: UnaryHandler<SandboxRequest, object>;
		Version: UnaryHandler<Version, Version>;
	} = {
		CreateVM: async ({id, annotations, networkNamespacePath}, {signal}) =>
			sandboxes.create({id, annotations, netnsPath: networkNamespacePath}, signal),
		async StartVM({id}, {signal}) {
			await sandboxes.start(id, signal);
			return {};
		},
		async StopVM({id}, {signal}) {
			await sandboxes.stop(id, signal);
			return {};
		},
		Version: async () => ({version: apiVersion}),
	};
	const podVmInfoHandlers: {GetInfo: UnaryHandler<GetInfoRequest, GetInfoResponse>} = {
		async GetInfo({PodName, PodNamespace, Wait}, {signal}) {
			using scope = new Scope(signal, ending);
			return {VMID: await sandboxes.vmOf({name: PodName, namespace: PodNamespace}, Wait, scope.signal)};
		},
	};
	return [
		{name: 'hypervisor.Hypervisor', definition: hypervisor, handlers: observed(hypervisorHandlers, observer)},
		{name: 'podvminfo.PodVMInfo', definition: podVmInfo, handlers: observed(podVmInfoHandlers, observer)},
	];
}

/** Notifies the observer of every call, so that handlers need not report their errors. */
function observed(handlers: Handlers, observer: Observer<CallEvent>): Handlers {
	return Object.fromEntries(
		Object.entries(handlers).map(([method, handler]) => [
			method,
			async (request: never, context: CallContext) => {
				const startedAt = performance.now();
				const call = (): Without<CallEvent, 'kind' | 'error'> => ({
					method,
					durationMs: Math.round(performance.now() - startedAt),
					sandboxId: sandboxIdOf(request),
				});
				try {
					const response = await handler(request, context);
					observer.notify({kind: 'call-answered', ...call()});
					return response;
				} catch (error) {
					observer.notify({kind: 'call-failed', error, ...call()});
					throw error;
				}
			},
		]),
	);
}

function sandboxIdOf(request: object): string | undefined {
	return 'id' in request && typeof request.id === 'string' ? request.id : undefined;
}
