/**
 * One connection of a watch, from its first byte to its end. Knows lines and event types; the caller handles the end.
 * Source: Kubernetes, "API Concepts", "Efficient detection of changes", "Watch bookmarks".
 */
import {KubernetesError, refusal} from './errors.ts';
import {at, numberAt, parseJson, textAt} from '../core/json.ts';
import {tooLong} from './connection.ts';

export interface RawWatchEvent {
	readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';
	readonly object: unknown;
	/** Where the watch continues after this event. */
	readonly resourceVersion: string;
}

/**
 * Events in order; ends when the server closes.
 * @throws KubernetesError for an ERROR event (410 if the history is no longer stored), and errors of the body
 */
export async function* watchEvents(
	body: AsyncIterable<Uint8Array>,
	maxEventBytes: number,
): AsyncGenerator<RawWatchEvent, void> {
	for await (const line of lines(body, maxEventBytes)) {
		const event = parsed(line);
		const object = at(event, 'object');
		const type = textAt(event, 'type');
		if (type === 'ERROR') {
			throw refusal(numberAt(object, 'code') ?? 500, JSON.stringify(object), undefined, {});
		}

		const resourceVersion = textAt(object, 'metadata', 'resourceVersion');
		if (
			resourceVersion !== undefined &&
			(type === 'ADDED' || type === 'MODIFIED' || type === 'DELETED' || type === 'BOOKMARK')
		) {
			yield {type, object, resourceVersion};
		}
	}
}

function parsed(line: string): unknown {
	try {
		return parseJson(line);
	} catch {
		throw new KubernetesError({
			code: 'data-loss',
			what: 'An event of the Kubernetes API is not JSON',
			where: {},
		});
	}
}

/** Complete lines; text after the last line feed is incomplete. */
export async function* lines(body: AsyncIterable<Uint8Array>, maxBytes: number): AsyncGenerator<string, void> {
	let parts: Uint8Array[] = [];
	let bytes = 0;
	for await (const chunk of body) {
		let start = 0;
		for (let end = chunk.indexOf(0x0a); end !== -1; end = chunk.indexOf(0x0a, start)) {
			const line = Buffer.concat([...parts, chunk.subarray(start, end)]).toString();
			parts = [];
			bytes = 0;
			start = end + 1;
			if (line.trim() !== '') {
				yield line;
			}
		}

		const rest = chunk.subarray(start);
		bytes += rest.length;
		if (bytes > maxBytes) {
			throw tooLong(`${maxBytes} bytes`);
		}

		parts.push(rest);
	}
}
