/**
 * Measures the webhook under the load of a cluster: 200 reviews per second, evenly spaced regardless of the answers,
 * over persistent TLS connections like those of an API server. Budget: 99 of 100 answered within 5 ms. For comparison,
 * it measures in the same minute an HTTPS server that does nothing, to show the share of the machine, and the cost of
 * one review without a network. `node bench/webhook.ts [reviews per second] [seconds]`. The client is a separate
 * process. On a busy machine: `chrt --fifo 1 node bench/webhook.ts`.
 */
import {fork} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {createServer} from 'node:https';
import type {AddressInfo} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {silentLogger} from '../src/core/log.ts';
import {answerReview} from '../src/webhook/admission-review.ts';
import {startWebhook} from '../src/webhook/server.ts';
import {Client, makeIssuer, MountedSecret} from '../test/webhook/harness.ts';
import {podOf, policy, reviewOf} from '../test/webhook/pods.ts';

const [rate = 200, seconds = 10] = process.argv.slice(2).map(Number);
const percentiles = [50, 90, 99, 99.9, 100];

/** A pod as large as in a service mesh: three containers with some environment variables, two init containers. */
const container = {
	resources: {limits: {cpu: '1500m', memory: '1Gi'}, requests: {cpu: '500m', memory: '512Mi'}},
	env: Array.from({length: 30}, (_, index) => ({name: `SETTING_${index}`, value: 'x'.repeat(40)})),
};
const question = JSON.stringify(
	reviewOf(
		podOf([container, container, container], {
			initContainers: [container, {...container, restartPolicy: 'Always'}],
		}),
	),
);

interface Order {
	readonly port: number;
	readonly ca: string;
}

if (process.send === undefined) {
	await measure();
} else {
	process.on('disconnect', () => process.exit());
	process.on('message', (order: Order) => {
		void load(order).then(latencies => process.send?.(latencies));
	});
}

async function measure(): Promise<void> {
	const directory = await mkdtemp(join(tmpdir(), 'caat-bench-'));
	const child = fork(import.meta.filename, process.argv.slice(2));
	try {
		const issuer = await makeIssuer();
		const pair = await issuer.issue();
		const secret = new MountedSecret(directory);
		await secret.write(pair);
		await using webhook = await startWebhook({
			port: 0,
			probePort: 0,
			tlsDirectory: directory,
			tls: {},
			policy,
			drainDelayMs: 0,
			log: silentLogger,
		});
		const idle = createServer({cert: pair.cert, key: pair.key.reveal()}, (request, response) => {
			request.resume().on('end', () => response.end('{}'));
		}).listen(0);
		await once(idle, 'listening');

		process.stdout.write(
			`${rate} reviews a second of ${question.length} bytes, ${seconds} s; milliseconds\n${''.padEnd(22)}${percentiles.map(percentile => `p${percentile}`.padStart(9)).join('')}\n`,
		);
		for (const [name, port] of [
			['webhook', webhook.port],
			['HTTPS doing nothing', (idle.address() as AddressInfo).port],
		] as const) {
			child.send({port, ca: issuer.ca} satisfies Order);
			const [latencies] = (await once(child, 'message')) as [number[]];
			const sorted = latencies.toSorted((a, b) => a - b);
			process.stdout.write(
				`${name.padEnd(22)}${percentiles.map(percentile => (sorted[Math.ceil((sorted.length * percentile) / 100) - 1] ?? Number.NaN).toFixed(2).padStart(9)).join('')}\n`,
			);
		}

		const repetitions = 2000;
		const began = process.cpuUsage();
		for (let index = 0; index < repetitions; index += 1) {
			JSON.stringify(answerReview(JSON.parse(question), policy).review);
		}

		const {user, system} = process.cpuUsage(began);
		process.stdout.write(
			`one review without a network: ${((user + system) / 1000 / repetitions).toFixed(3)} ms of processor\n`,
		);

		idle.close();
		idle.closeAllConnections();
	} finally {
		child.disconnect();
		await rm(directory, {recursive: true});
	}
}

/** Duration of each review in milliseconds. Each review is sent on time, even if earlier ones are not answered. */
async function load({port, ca}: Order): Promise<number[]> {
	const client = new Client(port, ca, {maxSockets: 25});
	// Warm up connections and the compiler first.
	await Promise.all(Array.from({length: 500}, async () => client.call({body: question})));
	const latencies: Array<Promise<number>> = [];
	const started = performance.now();
	for (let index = 0; index < rate * seconds; index += 1) {
		const due = started + (index * 1000) / rate;
		await new Promise(resolve => setTimeout(resolve, Math.max(0, due - performance.now())));
		const sent = performance.now();
		latencies.push(client.call({body: question}).then(() => performance.now() - sent));
	}

	const all = await Promise.all(latencies);
	client.close();
	return all;
}
