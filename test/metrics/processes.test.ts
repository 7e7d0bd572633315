/** The metrics of the processes as a container runs them, with a libvirt and a relay process. */
import {connect} from 'node:net';
import {join} from 'node:path';
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {loadContract} from '../../src/api/contract.ts';
import {TtrpcClient, type ClientMethod} from '../../src/ttrpc/client.ts';
import {directoryOf} from '../support/directory.ts';
import {freePort} from '../support/port.ts';
import {pool, startTestDriverHost} from '../support/test-driver-host.ts';
import {Client, makeIssuer, MountedSecret} from '../webhook/harness.ts';
import {podOf, reviewOf} from '../webhook/pods.ts';
import {processOf} from './process.ts';
import {metricsComplaints} from './promtool.ts';
import {samplesOf} from './samples.ts';

const never = new AbortController().signal;

async function scrape(port: number): Promise<string> {
	const response = await fetch(`http://127.0.0.1:${port}/metrics`);
	return response.text();
}

/** Scrapes until the series has a value that suits. */
async function settled(port: number, series: string, suits: (value: number) => boolean): Promise<string> {
	for (;;) {
		const text = await scrape(port);
		const value = samplesOf(text).get(series);
		if (value !== undefined && suits(value)) {
			return text;
		}

		await turn();
	}
}

async function environmentOf(t: ExecutionContext): Promise<Readonly<Record<string, string>>> {
	const directory = await directoryOf(t);
	return {
		REMOTE_HYPERVISOR_ENDPOINT: join(directory, 'run/h.sock'),
		PODS_DIR: join(directory, 'p'),
		CLUSTER_ID: 'test',
		NODE_NAME: 'worker-0',
		LIBVIRT_URI: `test:///default?socket=${directory}/none`,
		LIBVIRT_POOL: pool,
	};
}

async function call(socketPath: string, method: 'StopVM' | 'Version', request: object): Promise<void> {
	await using client = new TtrpcClient(connect(socketPath));
	const definition = loadContract().hypervisor[method] as unknown as ClientMethod<object, object>;
	await client.call(definition, request, {}, never);
}

test('a daemon tells of its calls, of libvirt and of the pool, and promtool has no complaint', async t => {
	await using host = await startTestDriverHost(await directoryOf(t));
	const port = await freePort();
	const env = await environmentOf(t);
	const daemon = processOf(t, 'libvirt', {
		...env,
		LIBVIRT_URI: `test:///default?socket=${host.socketPath}`,
		METRICS_PORT: String(port),
	});
	await daemon.event('ready');
	t.like(await daemon.event('metrics are served'), {address: '127.0.0.1', port});
	const socketPath = env['REMOTE_HYPERVISOR_ENDPOINT'] ?? '';
	await call(socketPath, 'Version', {version: ''});
	await call(socketPath, 'StopVM', {id: 'unknown'});
	await settled(port, 'caa_pool_capacity_bytes', value => value > 0);
	const text = await settled(port, 'caa_reconcile_seconds_count', value => value > 0);
	const samples = samplesOf(text);
	t.is(samples.get('caa_libvirt_connected'), 1);
	t.is(samples.get('caa_api_calls_total{method="Version",code="ok"}'), 1);
	t.is(samples.get('caa_api_calls_total{method="StopVM",code="ok"}'), 1);
	t.true((samples.get('caa_libvirt_call_seconds_count{procedure="connectListAllDomains"}') ?? 0) > 0, text);
	t.is(samples.get('caa_sandboxes{state="stopping"}'), 0);
	t.is(samples.get('caa_orphan_vms'), 0);
	t.true(samples.has('caa_relay_shims'));
	t.is(await metricsComplaints(text), '');
	await daemon.stop();
	await t.throwsAsync(scrape(port));
});

test('a relay process has the metrics of relays, and its daemon has not', async t => {
	const [port, relayPort] = [await freePort(), await freePort()];
	const env = await environmentOf(t);
	const relay = processOf(t, 'relay', {...env, RELAY_METRICS_PORT: String(relayPort)});
	await relay.event('ready');
	const daemon = processOf(t, 'libvirt', {...env, METRICS_PORT: String(port), RELAY_PROCESS: 'required'});
	await daemon.event('ready');
	await Promise.all([relay, daemon].map(async each => each.event('metrics are served')));
	const text = await settled(relayPort, 'caa_relay_process_daemons_total{event="registered"}', value => value === 1);
	t.is(samplesOf(text).get('caa_relay_shims'), 0);
	t.is(await metricsComplaints(text), '');
	const ofDaemon = await scrape(port);
	t.false(ofDaemon.includes('caa_relay_'));
	t.is(samplesOf(ofDaemon).get('caa_libvirt_connected'), 0);
});

test('the webhook tells of its reviews', async t => {
	const port = await freePort();
	const issuer = await makeIssuer();
	const secret = new MountedSecret(await directoryOf(t));
	await secret.write(await issuer.issue());
	const webhook = processOf(t, 'webhook', {
		WEBHOOK_PORT: '0',
		WEBHOOK_PROBE_PORT: '0',
		WEBHOOK_CERT_DIR: secret.directory,
		WEBHOOK_METRICS_PORT: `0.0.0.0:${port}`,
	});
	const {port: reviewPort} = await webhook.event('ready');
	t.like(await webhook.event('metrics are served'), {address: '0.0.0.0', port});
	const client = new Client(Number(reviewPort), issuer.ca);
	t.teardown(() => client.close());
	const pods = [podOf([{name: 'a'}]), podOf([{name: 'a', resources: {limits: {memory: '-1'}}}])];
	for (const pod of pods) {
		t.is((await client.call({body: JSON.stringify(reviewOf(pod))})).status, 200);
	}

	t.is((await client.call({body: 'no json'})).status, 400);
	t.is((await client.call({path: '/', body: '{}'})).status, 404);
	const text = await settled(port, 'caa_webhook_refusals_total{status="404"}', value => value === 1);
	const samples = samplesOf(text);
	t.is(samples.get('caa_webhook_reviews_total{outcome="changed"}'), 1);
	t.is(samples.get('caa_webhook_reviews_total{outcome="denied"}'), 1);
	t.is(samples.get('caa_webhook_refusals_total{status="400"}'), 1);
	t.is(samples.get('caa_webhook_review_seconds_count'), 2);
	t.is(await metricsComplaints(text), '');
});

test('without a port no process loads prom-client', async t => {
	const loaded = async (env: Readonly<Record<string, string>>): Promise<boolean> => {
		const daemon = processOf(t, 'libvirt', {...(await environmentOf(t)), ...env, NODE_DEBUG: 'module'});
		await daemon.event('ready');
		await daemon.stop();
		return daemon.lines.some(line => line.includes('prom-client'));
	};
	t.false(await loaded({}));
	t.true(await loaded({METRICS_PORT: String(await freePort())}));
});
