/** kata's remote hypervisor API and PodVMInfo as calls on the domain. Translation only. */
import type {ServiceDefinition} from '@grpc/proto-loader';
import {codeOf} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {Sandboxes} from '../sandbox/ports.ts';
import type {
	Contract,
	CreateVMRequest,
	CreateVMResponse,
	GetInfoRequest,
	GetInfoResponse,
	SandboxRequest,
	Version,
} from './contract.ts';

export interface CallContext {
	/** Aborts when the caller gives up: its deadline, its connection, or our shutdown. */
	readonly signal: AbortSignal;
}

export type UnaryHandler<Request, Response extends object> = (
	request: Request,
	context: CallContext,
) => Promise<Response>;

/** `never`: each handler takes what its own method's definition decodes. */
export type Handlers = Readonly<Record<string, UnaryHandler<never, object>>>;

/** A service of proto/ with the handlers of its methods, whatever protocol they are called by. */
export interface Service {
	readonly name: string;
	readonly definition: ServiceDefinition;
	readonly handlers: Handlers;
}

/** kata's shims do not look at it; upstream has answered this since the API exists. */
const apiVersion = '0.0.0';

/**
 * @param ending aborts when draining begins: who only waits for something to happen is answered then, so that draining
 * need not wait for it
 */
export function services(
	{hypervisor, podVmInfo}: Contract,
	sandboxes: Sandboxes,
	log: Logger,
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
		{name: 'hypervisor.Hypervisor', definition: hypervisor, handlers: observed(hypervisorHandlers, log)},
		{name: 'podvminfo.PodVMInfo', definition: podVmInfo, handlers: observed(podVmInfoHandlers, log)},
	];
}

/** Every call is logged once, here: nobody below needs to log what it throws. */
function observed(handlers: Handlers, log: Logger): Handlers {
	return Object.fromEntries(
		Object.entries(handlers).map(([method, handler]) => [
			method,
			async (request: never, context: CallContext) => {
				const startedAt = performance.now();
				const call = (): {method: string; durationMs: number; sandboxId?: string} => ({
					method,
					durationMs: Math.round(performance.now() - startedAt),
					...sandboxIdOf(request),
				});
				try {
					const response = await handler(request, context);
					log.debug(call(), 'call answered');
					return response;
				} catch (error) {
					const code = codeOf(error);
					log[code === 'internal' ? 'error' : 'warn']({...call(), code, err: error}, 'call failed');
					throw error;
				}
			},
		]),
	);
}

function sandboxIdOf(request: object): {sandboxId?: string} {
	return 'id' in request && typeof request.id === 'string' ? {sandboxId: request.id} : {};
}
