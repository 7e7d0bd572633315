/**
 * Acts as the kata shim towards the daemon: calls the remote hypervisor API of kata over ttrpc, with a new connection
 * for each call, like the Go shim (kata-containers, src/runtime/virtcontainers/remote.go).
 */
import {randomBytes} from 'node:crypto';
import {loadContract, type CreateVMRequest, type CreateVMResponse, type Version} from '../../src/api/contract.ts';
import {connect} from '../../src/ttrpc/client.ts';

const {hypervisor} = loadContract();
const startTimeoutMs = 600_000;

/** A sandbox id in the format of containerd. */
export const newSandboxId = (): string => randomBytes(32).toString('hex');

/** The annotations of containerd that identify the pod of a sandbox. */
export function podAnnotations(name: string, namespace: string): Readonly<Record<string, string>> {
	return {'io.kubernetes.cri.sandbox-name': name, 'io.kubernetes.cri.sandbox-namespace': namespace};
}

export class Shim {
	readonly #socketPath: string;

	/** @param socketPath of the hypervisor API, as a path for this process */
	constructor(socketPath: string) {
		this.#socketPath = socketPath;
	}

	/** @returns the API version of the daemon */
	async version(signal: AbortSignal): Promise<string> {
		return (await this.#call<Version>('Version', {version: '0.0.0'}, undefined, signal)).version;
	}

	/** @returns the path of the agent socket, as a path for the daemon */
	async createVm(request: CreateVMRequest, signal: AbortSignal): Promise<string> {
		return (await this.#call<CreateVMResponse>('CreateVM', request, undefined, signal)).agentSocketPath;
	}

	async startVm(id: string, signal: AbortSignal): Promise<void> {
		await this.#call('StartVM', {id}, startTimeoutMs, signal);
	}

	async stopVm(id: string, signal: AbortSignal): Promise<void> {
		await this.#call('StopVM', {id}, undefined, signal);
	}

	async #call<Response>(
		name: string,
		request: object,
		timeoutMs: number | undefined,
		signal: AbortSignal,
	): Promise<Response> {
		const method = hypervisor[name];
		if (method === undefined) {
			throw new TypeError(`hypervisor.proto has no ${name}`);
		}

		await using client = await connect(this.#socketPath, signal);
		return (await client.call(method, request, timeoutMs === undefined ? {} : {timeoutMs}, signal)) as Response;
	}
}
