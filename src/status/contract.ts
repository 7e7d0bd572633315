/** proto/status.proto: the messages of the status API, in the form of proto-loader. */
import {fileURLToPath} from 'node:url';
import {loadSync, type ServiceDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../core/errors.ts';
import type {ClientMethod} from '../ttrpc/client.ts';

export type Empty = object;

export interface PodRequest {
	readonly pod: string;
}

/** Text is empty, and a number 0, if it is not known. Times are milliseconds since 1970. */
export interface Pod {
	readonly sandbox_id: string;
	readonly namespace: string;
	readonly name: string;
	readonly instance_name: string;
	readonly state: string;
	readonly stage: string;
	readonly stage_since: number;
	readonly state_since: number;
	readonly vcpus: number;
	readonly memory_mib: number;
	readonly image: string;
	readonly confidential: boolean;
	readonly address: string;
	readonly vni: number;
	readonly vm_id: string;
	readonly vm_created_at: number;
	readonly agent_calls: number;
	readonly last_error: string;
	readonly last_error_at: number;
	readonly is_removal_pending: boolean;
}

export interface ListPodsResponse {
	readonly node: string;
	readonly version: string;
	readonly pods: readonly Pod[];
	readonly host_error: string;
}

export interface Volume {
	readonly name: string;
	/** Bytes. */
	readonly capacity: number;
	/** Bytes. */
	readonly allocation: number;
}

export interface CommandOutput {
	readonly command: string;
	readonly output: string;
}

export interface InspectPodResponse {
	readonly pod: Pod;
	readonly record: string;
	readonly domain_xml: string;
	readonly volumes: readonly Volume[];
	readonly network: string;
	readonly commands: readonly CommandOutput[];
	readonly log: readonly string[];
	readonly errors: readonly string[];
}

export interface ReadConsoleRequest extends PodRequest {
	readonly position: number;
}

export interface ReadConsoleResponse {
	readonly output: Buffer;
	readonly position: number;
}

export interface LogLevelMessage {
	readonly level: string;
}

/** By method: request and response. */
export interface StatusMethods {
	readonly ListPods: readonly [Empty, ListPodsResponse];
	readonly InspectPod: readonly [PodRequest, InspectPodResponse];
	readonly ReadConsole: readonly [ReadConsoleRequest, ReadConsoleResponse];
	readonly RemovePod: readonly [PodRequest, Pod];
	readonly GetLogLevel: readonly [Empty, LogLevelMessage];
	readonly SetLogLevel: readonly [LogLevelMessage, LogLevelMessage];
}

export type StatusMethod = keyof StatusMethods;

const protoDirectory = fileURLToPath(new URL('../../proto/', import.meta.url));

/** Field names as in the .proto file; absent fields get the defaults of proto3. */
export function loadStatusContract(directory: string = protoDirectory): ServiceDefinition {
	const service = loadSync('status.proto', {
		includeDirs: [directory],
		keepCase: true,
		defaults: true,
		longs: Number,
	})['caa.status.v1.Status'];
	if (service === undefined || 'format' in service) {
		throw new AdaptorError({code: 'internal', what: 'status.proto has no service Status', where: {directory}});
	}

	return service;
}

/** A method for the ttrpc client. */
export function statusMethod<Name extends StatusMethod>(
	contract: ServiceDefinition,
	name: Name,
): ClientMethod<StatusMethods[Name][0], StatusMethods[Name][1]> {
	// The definition has the types of the table above: both come from status.proto.
	return contract[name] as unknown as ClientMethod<StatusMethods[Name][0], StatusMethods[Name][1]>;
}
