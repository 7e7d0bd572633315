/** kata's remote hypervisor API and PodVMInfo as calls on the domain. Translation only. */
import {performance} from 'node:perf_hooks';
import {codeOf} from '../errors.ts';
import type {Logger} from '../log.ts';
import type {Sandboxes} from '../sandbox/ports.ts';
import type {Contract} from './contract.ts';

export interface CallContext {
	/** Aborts when the caller gives up: its deadline, its connection, or our shutdown. */
	readonly signal: AbortSignal;
}

export type UnaryHandler<Request, Response> = (request: Request, context: CallContext) => Promise<Response>;

/** A service definition of proto/ with the handlers of its methods, whatever protocol they are called by. */
export interface Service {
	readonly definition: Contract['hypervisor'] | Contract['podVmInfo'];
	// Each handler takes what its own method's definition decodes; that pairing is made once, below, where the compiler checks it.
	readonly handlers: Readonly<Record<string, UnaryHandler<never, object>>>;
}

/** kata's shims do not look at it; upstream has answered this since the API exists. */
const apiVersion = '0.0.0';

type RequestOf<Method> = Method extends {readonly requestDeserialize: (bytes: Buffer) => infer Request} ? Request : never;
type ResponseOf<Method> = Method extends {readonly responseDeserialize: (bytes: Buffer) => infer Response} ? Response : never;
type Handlers<Definition, Names extends keyof Definition> = {readonly [Name in Names]: UnaryHandler<RequestOf<Definition[Name]>, ResponseOf<Definition[Name]>>};

export function services({hypervisor, podVmInfo}: Contract, sandboxes: Sandboxes, log: Logger): readonly Service[] {
	const hypervisorHandlers: Handlers<Contract['hypervisor'], 'CreateVM' | 'StartVM' | 'StopVM' | 'Version'> = {
		CreateVM: async ({id, annotations, networkNamespacePath}, {signal}) => sandboxes.create({id, annotations, netnsPath: networkNamespacePath}, signal),
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
	const podVmInfoHandlers: Handlers<Contract['podVmInfo'], 'GetInfo'> = {
		GetInfo: async ({PodName, PodNamespace, Wait}, {signal}) => ({VMID: await sandboxes.vmOf({name: PodName, namespace: PodNamespace}, Wait, signal)}),
	};
	return [
		{definition: hypervisor, handlers: observed(hypervisorHandlers, log)},
		{definition: podVmInfo, handlers: observed(podVmInfoHandlers, log)},
	];
}

/** Every call is logged once, here: nobody below needs to log what it throws. */
function observed(handlers: Readonly<Record<string, UnaryHandler<never, object>>>, log: Logger): Service['handlers'] {
	return Object.fromEntries(Object.entries(handlers).map(([method, handler]) => [method, async (request: never, context: CallContext) => {
		const startedAt = performance.now();
		const call = (): {method: string; durationMs: number; sandboxId?: string} => ({method, durationMs: Math.round(performance.now() - startedAt), ...sandboxIdOf(request)});
		try {
			const response = await handler(request, context);
			log.debug(call(), 'call answered');
			return response;
		} catch (error) {
			const code = codeOf(error);
			log[code === 'internal' ? 'error' : 'warn']({...call(), code, err: error}, 'call failed');
			throw error;
		}
	}]));
}

function sandboxIdOf(request: object): {sandboxId?: string} {
	return 'id' in request && typeof request.id === 'string' ? {sandboxId: request.id} : {};
}
