/**
 * Serves the metrics of this process over HTTP: `GET /metrics`. Plain HTTP and without authorisation: meant for the
 * loopback address, with a proxy such as kube-rbac-proxy in front of it (deploy/monitoring).
 */
import type {RequestListener, ServerResponse} from 'node:http';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {SharedAnswer} from '../core/concurrency/shared-answer.ts';
import {serveHttpPort} from '../core/http-port.ts';
import type {ListenAddress} from '../core/listen-address.ts';
import {neverAborts} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {Exposition} from './registry.ts';

export interface MetricsServerOptions {
	readonly at: ListenAddress;
	/** The variable with the port, for remedies. */
	readonly setting: string;
	readonly exposition: () => Promise<Exposition>;
	readonly log: Logger;
	/** First and longest pause between attempts to listen. */
	readonly retryMs?: readonly [first: number, longest: number];
}

const path = '/metrics';

/**
 * Returns at once. If the port is in use, it retries in the background: during a rolling update the predecessor uses
 * it. No pod may depend on metrics.
 */
export function serveMetrics({
	at,
	setting,
	exposition,
	log,
	retryMs = [500, 5000],
}: MetricsServerOptions): AsyncDisposable {
	const fields = {address: at.host, port: at.port};
	return serveHttpPort({
		at,
		onRequest: answer(exposition, log),
		retryMs,
		onFailure: (error, {attempt, retryInMs}) =>
			log[attempt === 1 ? 'warn' : 'debug'](
				{...fields, retryInMs, err: error, remedy: `Choose another ${setting}.`},
				'could not listen on the port of the metrics; trying again',
			),
		onListening: () => log.info(fields, 'metrics are served'),
	});
}

function answer(exposition: MetricsServerOptions['exposition'], log: Logger): RequestListener {
	const failures = new FailureLog();
	// Scrapes at the same time share one collection.
	const collected: SharedAnswer<Exposition> = new SharedAnswer(async () => {
		try {
			return await exposition();
		} finally {
			collected.forget();
		}
	});
	return (request, response) => {
		if (request.url?.split('?', 1)[0] !== path) {
			reply(response, 404, `Metrics are at ${path}.`);
			return;
		}

		if (request.method !== 'GET') {
			response.setHeader('Allow', 'GET');
			reply(response, 405, 'Read the metrics with GET.');
			return;
		}

		collected.get(neverAborts).then(
			({contentType, text}) => {
				failures.recovered();
				response.writeHead(200, {'Content-Type': contentType, 'Content-Length': Buffer.byteLength(text)});
				response.end(text);
			},
			(error: unknown) => {
				if (failures.failed()) {
					log.error({err: error}, 'could not collect the metrics');
				}

				reply(response, 500, 'Could not collect the metrics; see the log.');
			},
		);
	};
}

function reply(response: ServerResponse, status: number, text: string): void {
	// A body that may follow is not read.
	response.writeHead(status, {'Content-Type': 'text/plain; charset=utf-8', Connection: 'close'}).end(`${text}\n`);
}
