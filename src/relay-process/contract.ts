/** proto/relay.proto: the messages between the daemon and the relay process, in the form of proto-loader. */
import {fileURLToPath} from 'node:url';
import {loadSync, type ServiceDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../core/errors.ts';
import type {ClientMethod} from '../ttrpc/client.ts';

/** The version is increased when one side has to know the features of the other side. */
export const contractVersion = 1;

export type Empty = object;

export interface Hello {
	readonly version: number;
}

export interface Issue {
	readonly instance_name: string;
}

export interface Issued {
	readonly server_key: string;
	readonly server_cert: string;
	readonly client_ca: string;
	readonly min_version: string;
	readonly cipher_suites: readonly string[];
}

export interface Open {
	readonly sandbox_id: string;
	readonly instance_name: string;
	readonly socket_path: string;
}

export interface Opened {
	readonly address: string;
}

export interface OpenRelay extends Open, Opened {
	readonly failure: string;
}

export interface RelayEventMessage {
	readonly number: string;
	readonly kind: string;
	readonly sandbox_id: string;
	readonly instance_name: string;
	readonly connection: number;
	readonly fields: string;
}

/** By method: request and response. */
export interface RelayMethods {
	readonly Hello: readonly [Hello, Hello];
	readonly Issue: readonly [Issue, Issued];
	readonly Open: readonly [Open, Opened];
	readonly Offer: readonly [{readonly sandbox_id: string; readonly address: string}, Empty];
	readonly Close: readonly [
		{readonly sandbox_id: string; readonly deadline_exceeded: boolean; readonly time_limit: string},
		Empty,
	];
	readonly Discard: readonly [{readonly socket_path: string}, Empty];
	readonly Fail: readonly [{readonly sandbox_id: string; readonly reason: string}, Empty];
	readonly List: readonly [Empty, {readonly relays: readonly OpenRelay[]}];
	readonly Watch: readonly [{readonly after: string}, {readonly events: readonly RelayEventMessage[]}];
	readonly Register: readonly [{readonly socket_path: string}, Empty];
	readonly Unregister: readonly [Empty, Empty];
}

export type RelayMethod = keyof RelayMethods;

const protoDirectory = fileURLToPath(new URL('../../proto/', import.meta.url));

/** Field names as in the .proto file; absent fields get the defaults of proto3; numbers of 64 bits are decimal text. */
export function loadRelayContract(directory: string = protoDirectory): ServiceDefinition {
	const service = loadSync('relay.proto', {includeDirs: [directory], keepCase: true, defaults: true, longs: String})[
		'caa.relay.v1.Relay'
	];
	if (service === undefined || 'format' in service) {
		throw new AdaptorError({code: 'internal', what: 'relay.proto has no service Relay', where: {directory}});
	}

	return service;
}

/** A method for the ttrpc client. */
export function methodOf<Name extends RelayMethod>(
	contract: ServiceDefinition,
	name: Name,
): ClientMethod<RelayMethods[Name][0], RelayMethods[Name][1]> {
	// The definition has the types of the table above: both come from relay.proto.
	return contract[name] as unknown as ClientMethod<RelayMethods[Name][0], RelayMethods[Name][1]>;
}
