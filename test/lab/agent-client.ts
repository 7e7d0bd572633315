/**
 * A typed client of the agent API, like the kata shim, over an existing ttrpc connection: to the socket of a relay, or
 * to a guest. Does not know TLS and addresses. The messages are those of agent.proto, with its field names.
 */
import {fileURLToPath} from 'node:url';
import {loadSync, type MethodDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../../src/core/errors.ts';
import type {ClientMethod, TtrpcClient} from '../../src/ttrpc/client.ts';
import {statusCode, TtrpcError} from '../../src/ttrpc/status.ts';

export interface OciProcess {
	readonly Args: readonly string[];
	readonly Env?: readonly string[];
	readonly Cwd?: string;
	readonly Terminal?: boolean;
	readonly User?: {readonly UID: number; readonly GID: number};
}

interface ContainerRef {
	readonly container_id: string;
}

/** An empty or absent exec id means the first process of the container. */
export interface ProcessRef extends ContainerRef {
	readonly exec_id?: string;
}

type Empty = Readonly<Record<string, never>>;

/** By method: request and response. Absent fields of a response have the defaults of proto3. */
interface Methods {
	'Health/Check': [request: {service?: string}, response: {status: 'UNKNOWN' | 'SERVING' | 'NOT_SERVING'}];
	'Health/Version': [request: {service?: string}, response: {grpc_version: string; agent_version: string}];
	'AgentService/CreateSandbox': [
		request: {sandbox_id: string; hostname?: string; dns?: readonly string[]},
		response: Empty,
	];
	'AgentService/DestroySandbox': [request: Empty, response: Empty];
	'AgentService/GetGuestDetails': [
		request: Empty,
		response: {agent_details: {version: string; init_daemon: boolean}},
	];
	'AgentService/GetMetrics': [request: Empty, response: {metrics: string}];
	'AgentService/GetOOMEvent': [request: Empty, response: ContainerRef];
	'AgentService/SetPolicy': [request: {policy: string}, response: Empty];
	'AgentService/CreateContainer': [request: ContainerRef & {OCI: {Process: OciProcess}}, response: Empty];
	'AgentService/StartContainer': [request: ContainerRef, response: Empty];
	'AgentService/PauseContainer': [request: ContainerRef, response: Empty];
	'AgentService/RemoveContainer': [request: ContainerRef & {timeout?: number}, response: Empty];
	'AgentService/ExecProcess': [request: Required<ProcessRef> & {process: OciProcess}, response: Empty];
	'AgentService/SignalProcess': [request: ProcessRef & {signal: number}, response: Empty];
	'AgentService/WaitProcess': [request: ProcessRef, response: {status: number}];
	'AgentService/WriteStdin': [request: ProcessRef & {data: Buffer}, response: {len: number}];
	'AgentService/ReadStdout': [request: ProcessRef & {len: number}, response: {data: Buffer}];
	'AgentService/ReadStderr': [request: ProcessRef & {len: number}, response: {data: Buffer}];
	'AgentService/CloseStdin': [request: ProcessRef, response: Empty];
	'AgentService/TtyWinResize': [request: ProcessRef & {row: number; column: number}, response: Empty];
	'AgentService/CopyFile': [
		request: {path: string; file_size: number; file_mode: number; dir_mode: number; offset: number; data: Buffer},
		response: Empty,
	];
}

export type AgentMethod = keyof Methods;

const definition = loadSync(fileURLToPath(new URL('agent.proto', import.meta.url)), {
	keepCase: true,
	defaults: true,
	enums: String,
	longs: Number,
});

function clientMethod<M extends AgentMethod>(name: M): ClientMethod<Methods[M][0], Methods[M][1]> {
	const [service = '', method = ''] = name.split('/');
	const found = (definition[`grpc.${service}`] as Record<string, MethodDefinition<object, object>> | undefined)?.[
		method
	];
	if (found === undefined) {
		throw new AdaptorError({code: 'internal', what: 'A method is missing from agent.proto', where: {method: name}});
	}

	return found as unknown as ClientMethod<Methods[M][0], Methods[M][1]>;
}

export class AgentClient {
	readonly #client: TtrpcClient;

	constructor(client: TtrpcClient) {
		this.#client = client;
	}

	/**
	 * @param timeoutMs no timeout by default, like the blocking calls of a shim (WaitProcess, ReadStdout, GetOOMEvent)
	 */
	async call<M extends AgentMethod>(
		method: M,
		request: Methods[M][0],
		signal: AbortSignal,
		timeoutMs?: number,
	): Promise<Methods[M][1]> {
		return this.#client.call(clientMethod(method), request, timeoutMs === undefined ? {} : {timeoutMs}, signal);
	}

	/** All output of a process. kata-agent 3.4 reports its end by an error, 4.1 by a success without data. */
	async readAll(output: 'Stdout' | 'Stderr', process: ProcessRef, signal: AbortSignal): Promise<string> {
		const chunks: Buffer[] = [];
		try {
			for (;;) {
				const {data} = await this.call(`AgentService/Read${output}`, {...process, len: 32_768}, signal);
				if (data.length === 0) {
					break;
				}

				chunks.push(data);
			}
		} catch (error) {
			if (!isEof(error)) {
				throw error;
			}
		}

		return Buffer.concat(chunks).toString();
	}
}

/** Creates the sandbox, and a sleeping container in which commands can run. */
export async function startSleeper(
	agent: AgentClient,
	sandboxId: string,
	containerId: string,
	signal: AbortSignal,
): Promise<void> {
	const timeoutMs = 120_000;
	await agent.call('AgentService/CreateSandbox', {sandbox_id: sandboxId, hostname: 'pod'}, signal, timeoutMs);
	await agent.call(
		'AgentService/CreateContainer',
		{container_id: containerId, OCI: {Process: {Args: ['sleep', '3600'], Env: ['PATH=/bin'], Cwd: '/'}}},
		signal,
		timeoutMs,
	);
	await agent.call('AgentService/StartContainer', {container_id: containerId}, signal, timeoutMs);
}

export interface CommandResult {
	readonly exitCode: number;
	readonly stdout: string;
	readonly stderr: string;
}

/** Runs a command in a running container and waits for its end. */
export async function runCommand(
	agent: AgentClient,
	containerId: string,
	argv: readonly string[],
	signal: AbortSignal,
): Promise<CommandResult> {
	const process = {container_id: containerId, exec_id: `exec-${crypto.randomUUID()}`};
	await agent.call(
		'AgentService/ExecProcess',
		{...process, process: {Args: argv, Env: ['PATH=/bin'], Cwd: '/'}},
		signal,
	);
	await agent.call('AgentService/CloseStdin', process, signal);
	const [stdout, stderr, {status}] = await Promise.all([
		agent.readAll('Stdout', process, signal),
		agent.readAll('Stderr', process, signal),
		agent.call('AgentService/WaitProcess', process, signal),
	]);
	return {exitCode: status, stdout, stderr};
}

/** kata-containers, src/agent/src/rpc.rs: `read meet eof` from a pipe, `eof` from a terminal. */
function isEof(error: unknown): boolean {
	return (
		error instanceof TtrpcError && error.status.code === statusCode.internal && /\beof$/.test(error.status.message)
	);
}
