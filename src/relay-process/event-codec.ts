/** Events of relays as messages of the contract. Errors become their message and code. */
import {AdaptorError, codeOf, type ErrorCode} from '../core/errors.ts';
import {parseJsonOrNothing} from '../core/json.ts';
import type {RelayEvent} from '../relay/events.ts';
import type {RelayEventMessage} from './contract.ts';
import type {RelayProcessEvent} from './events.ts';

export function encodeEvent(number: number, event: RelayEvent | RelayProcessEvent): RelayEventMessage {
	const {kind, sandbox, connection, ...fields} = {sandbox: undefined, connection: undefined, ...event};
	return {
		number: String(number),
		kind,
		sandbox_id: sandbox?.sandboxId ?? '',
		instance_name: sandbox?.instanceName ?? '',
		connection: connection ?? 0,
		fields: JSON.stringify(fields, (_, value: unknown) =>
			value instanceof Error ? {message: value.message, code: codeOf(value)} : value,
		),
	};
}

/**
 * @returns undefined if the fields are not an object. An event of an unknown kind (from a later version) is passed on.
 */
export function decodeEvent(message: RelayEventMessage): RelayEvent | RelayProcessEvent | undefined {
	const fields = parseJsonOrNothing(message.fields);
	if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) {
		return undefined;
	}

	const {error, ...others} = fields as Readonly<Record<string, unknown>>;
	// The relay process encoded it from such an event, so the cast is safe.
	return {
		...others,
		...('error' in fields ? {error: errorOf(error)} : {}),
		kind: message.kind,
		...(message.sandbox_id === ''
			? {}
			: {sandbox: {sandboxId: message.sandbox_id, instanceName: message.instance_name}}),
		...(message.connection === 0 ? {} : {connection: message.connection}),
	} as unknown as RelayEvent | RelayProcessEvent;
}

function errorOf(encoded: unknown): Error | undefined {
	if (typeof encoded !== 'object' || encoded === null) {
		return undefined;
	}

	const {message, code} = encoded as {readonly message?: unknown; readonly code?: unknown};
	return new AdaptorError({code: String(code) as ErrorCode, what: String(message)});
}
